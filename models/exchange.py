"""A prompt and one reply to it, in tokens: what an adversarial training works on, and packed batches of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from models.packing import PackedBatch, pack_replies
from models.trees import replies_of

Tokens = Sequence[int]


@dataclass(frozen=True)
class Exchange:
    """A history with a reply, in tokens; the reply with its end token, unless it is cut."""

    history: Tokens
    reply: Tokens

    @property
    def sequence(self) -> tuple[list[int], list[bool]]:
        """As `pack` takes it: the reply is supervised."""
        return [*self.history, *self.reply], [False] * len(self.history) + [True] * len(self.reply)


def packed(
    exchanges: Sequence[Exchange], weight: int | None = None, values: dict[str, torch.Tensor] | None = None
) -> PackedBatch:
    """Neighbours with the same history read it once."""
    return pack_replies([(each.history, each.reply, [True] * len(each.reply)) for each in exchanges], weight, values)


def exchange_of(row: Mapping[str, Any], max_reply_tokens: int, choose: Callable[[int], int]) -> Exchange:
    """One reply of a conversation with what is before it; `choose(n)` says which of n. What is too long is cut, as
    the generator's replies are.
    """
    replies = replies_of(row)
    history, reply = replies[choose(len(replies))]
    return Exchange(history, reply[:max_reply_tokens])
