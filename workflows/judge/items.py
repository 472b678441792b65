"""What a judge sees of an item of a suite and of the replies to it.

item_to_judge(suite.name, item, first=base_replies, second=tuned_replies)
"""

from collections.abc import Sequence

from models.chat.form import Message
from models.chat.plain_text import said_text, transcript
from workflows.judge.records import ToJudge
from workflows.suites.suite import Item


def item_to_judge(suite: str, item: Item, first: Sequence[Message], second: Sequence[Message]) -> ToJudge:
    """An item with two models' replies to its turns.

    Of several turns, all that follows the first one is judged as one reply: later turns answer the models' own
    replies.
    """
    return ToJudge(
        id=f"{suite}/{item.id}",
        asked=item.conversation([]),
        first=_as_one(item, first),
        second=_as_one(item, second),
        tags=item.tags,
        group=f"{suite}/{item.group or item.id}",
    )


def _as_one(item: Item, replies: Sequence[Message]) -> str:
    if len(item.turns) == 1:
        return said_text(replies[0])
    parts, tools = [transcript([replies[0]])], item.turns[0].tools
    for turn, reply in zip(item.turns[1:], replies[1:], strict=True):
        parts.append(transcript([*turn.messages, reply], None if turn.tools == tools else turn.tools))
        tools = turn.tools
    return "\n".join(parts)
