"""A prompt and one reply to it, in tokens: the data of adversarial training, and packed batches of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from models.packing import PackedBatch, pack_replies
from models.trees import replies_of

Tokens = Sequence[int]


@dataclass(frozen=True)
class Exchange:
    """A history with a reply, in tokens; the reply includes its end token, unless it is truncated."""

    history: Tokens
    reply: Tokens

    @property
    def sequence(self) -> tuple[list[int], list[bool]]:
        """The argument of `models.packing.pack`: the reply is supervised."""
        return [*self.history, *self.reply], [False] * len(self.history) + [True] * len(self.reply)


def packed(
    exchanges: Sequence[Exchange], weight: int | None = None, values: dict[str, torch.Tensor] | None = None
) -> PackedBatch:
    """A packed batch; neighbours with the same history share it."""
    return pack_replies([(each.history, each.reply, [True] * len(each.reply)) for each in exchanges], weight, values)


def exchange_of(row: Mapping[str, Any], max_reply_tokens: int, choose: Callable[[int], int]) -> Exchange:
    """One reply of a conversation with its history; `choose(n)` picks one of n replies. Long replies are truncated,
    as the generator's are.
    """
    replies = replies_of(row)
    history, reply = replies[choose(len(replies))]
    return Exchange(history, reply[:max_reply_tokens])
