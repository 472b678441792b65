"""Kinds of conversations that a template may treat differently, and a short conversation of each kind."""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from models.chat.renderer import Prepared


def kind_of(message: dict[str, Any]) -> tuple[Any, ...]:
    """The properties of a message that a template may distinguish."""
    if len(message) == 2:
        return (
            (message["role"], bool(message["content"]))
            if "content" in message
            else (message["role"], False, *message)
        )
    calls = min(2, len(message.get("tool_calls", ())))
    return message["role"], bool(message.get("content")), "reasoning_content" in message, calls, "name" in message


def rounds_of(messages: Prepared) -> tuple[list[int], list[list[int]]]:
    """The numbers of the messages before the first user's, and those of each round, which starts with a user's
    message.
    """
    return _rounds_of([message["role"] for message in messages])


def _rounds_of(roles: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    starts = [n for n, role in enumerate(roles) if role == "user" and (not n or roles[n - 1] != "user")]
    if not starts:
        return [], [list(range(len(roles)))]
    ends = [*starts[1:], len(roles)]
    return list(range(starts[0])), [list(range(*span)) for span in zip(starts, ends, strict=True)]


@functools.lru_cache(maxsize=4096)
def short_of_its_kind(kinds: tuple[Any, ...]) -> list[int]:
    """The numbers of messages that form a short conversation of the same kind: the first two rounds and the last one
    of each kind, and at most two consecutive equal steps in a round.
    """
    head, rounds = _rounds_of([kind[0] for kind in kinds])
    few = [_few(kinds, numbers) for numbers in rounds]
    round_kinds = [tuple(kinds[number] for number in numbers) for numbers in few]
    left, seen = Counter(round_kinds), Counter[Any]()
    kept = list(head)
    for place, (numbers, kind) in enumerate(zip(few, round_kinds, strict=True)):
        seen[kind] += 1
        if len(rounds) <= 3 or seen[kind] <= 2 or seen[kind] == left[kind] or place >= len(rounds) - 2:
            kept += numbers
    return kept


def _few(kinds: Sequence[Any], numbers: list[int]) -> list[int]:
    """A round without steps, of one or two messages, that repeat the two before them."""
    kept: list[int] = []
    for number in numbers:
        kept.append(number)
        for width in (1, 2):
            last = [kinds[place] for place in kept[-3 * width :]]
            if len(last) == 3 * width and last[:width] == last[width : 2 * width] == last[2 * width :]:
                del kept[-width:]
    return kept
