"""A suite as types: items, their turns, and the score of a reply.

suite = read_suites(spec.evaluate)[0]
item = suite.items[0]
conversation = item.conversation(replies)          # what the next reply follows: turn len(replies)
suite.score(item, 0, {"role": "assistant", "content": "In 45 days."})
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.chat.form import Conversation, Message
from models.scorers.base import Scorer
from workflows.cluster.errors import describe_error
from workflows.stage import StageFailed
from workflows.suites.user_scorer import UserScorer


@dataclass(frozen=True)
class Turn:
    """What is said before a reply, and what is expected of that reply."""

    messages: tuple[Message, ...]
    """to add to the conversation before the model replies; the last is a user's or a tool's"""
    tools: list[dict[str, Any]] | None = None
    """that the model may call, in OpenAI's form"""
    expected: Any = None
    """plain JSON for the suite's scorer; None: the reply is not scored"""
    brings_knowledge: bool = False
    """whether the item states its own passages, perhaps none: `serve.knowledge` then adds none"""


@dataclass(frozen=True)
class Item:
    """Turns that one conversation has, with the model's replies between them."""

    id: str
    turns: tuple[Turn, ...]
    tags: Mapping[str, str] = field(default_factory=dict)
    """slices of the results, such as {"language": "de"}"""
    group: str = ""
    """items of one group belong together: statistics take them as one cluster"""
    place: str = ""
    """file:line"""

    def conversation(self, replies: Sequence[Message]) -> Conversation:
        """The conversation up to turn `len(replies)`, with the replies to the turns before it."""
        messages: list[Message] = []
        for turn, reply in zip(self.turns, replies, strict=False):
            messages += [*turn.messages, reply]
        last = self.turns[len(replies)]
        return Conversation([*messages, *last.messages], last.tools)

    @property
    def scored_turns(self) -> tuple[int, ...]:
        """The numbers of the turns whose replies are scored, from 0; at least one."""
        return tuple(number for number, turn in enumerate(self.turns) if turn.expected is not None)


@dataclass(frozen=True)
class Suite:
    """Items with one scorer."""

    name: str
    items: tuple[Item, ...]
    scorer: Scorer | UserScorer
    scorer_name: str
    """as a pipeline file names it"""
    golden: bool
    max_new_tokens: int
    field: str
    """of the pipeline file, dotted"""

    @property
    def is_scored_by_loss(self) -> bool:
        """Whether no reply is generated: the score is the model's loss, in nats a token, of the reply `expected` (a
        Message) to the only turn.
        """
        return self.scorer.is_scored_by_loss

    def item_score(self, item: Item, replies: Sequence[Message | None]) -> float:
        """The mean score of the turns that are scored; a reply that the endpoint refused (None) has none."""
        found = [
            0.0 if (reply := replies[turn]) is None else self.score(item, turn, reply) for turn in item.scored_turns
        ]
        return sum(found) / len(found)

    def score(self, item: Item, turn: int, reply: Message) -> float:
        """The score of a reply to a turn of an item: in [0, 1], or any finite number if the scorer is a function.

        Raises StageFailed, with the scorer and the item's place, if the scorer fails.
        """
        at = item.place if len(item.turns) == 1 else f"{item.place}, turn {turn}"
        try:
            found = self.scorer.score(item.turns[turn].expected, reply)
        except StageFailed:
            raise
        except (Exception, SystemExit) as error:
            where = self.scorer.place(error) if isinstance(self.scorer, UserScorer) else ""
            raise StageFailed(
                f"{self.field}.scorer: {self.scorer_name} raised {describe_error(error)}{where} for the reply to "
                f"{at}; mend the scorer or the item and run again: replies are not generated again"
            ) from None
        if not math.isfinite(found):
            raise StageFailed(
                f"{self.field}.scorer: {self.scorer_name} returned {found} for the reply to {at}; it must return a "
                "finite number"
            )
        return found
