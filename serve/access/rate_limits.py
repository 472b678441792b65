"""Rate limits of API keys per minute: requests, and tokens of prompts and replies.

limits = Limits()
taken = await limits.take("alice/tokens", per_minute=10_000, amount=900)
if taken.granted:
    ...                                                        # generate a reply
    await limits.give_back("alice/tokens", per_minute=10_000, amount=900 - used)

Each limit is a token bucket: its capacity is the limit of a minute, and it fills evenly, so an idle key can use a
minute's worth at once. A request takes its maximum when it is admitted, and returns the unused rest at its end.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Taken:
    """Whether the bucket had enough, and its state now."""

    granted: bool
    remaining: int
    wait_s: float
    """until there is enough; 0 if granted, infinite if the amount exceeds the bucket's capacity"""
    full_s: float
    """until it is full again"""


class _Bucket:
    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._filled = now

    def take(self, amount: int, now: float) -> Taken:
        self.put(0, now)
        missing = amount - self._level
        if missing <= 0:
            self._level -= amount
        per_second = self.per_minute / 60
        wait_s = math.inf if amount > self.per_minute else max(0.0, missing / per_second)
        full_s = (self.per_minute - self._level) / per_second
        return Taken(missing <= 0, math.floor(self._level), wait_s, full_s)

    def put(self, amount: int, now: float) -> None:
        level = self._level + (now - self._filled) * self.per_minute / 60 + amount
        self._level, self._filled = min(float(self.per_minute), level), now


class Limits:
    """The buckets of all keys, by name; for use from one asyncio loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    async def take(self, name: str, per_minute: int, amount: int) -> Taken:
        """Take `amount` from a bucket if it has enough, else nothing."""
        return self._bucket(name, per_minute).take(amount, self._clock())

    async def give_back(self, name: str, per_minute: int, amount: int) -> None:
        """Return an amount that was taken and not used."""
        self._bucket(name, per_minute).put(amount, self._clock())

    def _bucket(self, name: str, per_minute: int) -> _Bucket:
        bucket = self._buckets.get(name)
        if bucket is None or bucket.per_minute != per_minute:
            bucket = self._buckets[name] = _Bucket(per_minute, self._clock())
        return bucket
