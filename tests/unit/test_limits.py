"""Token buckets, with a simulated clock."""

import asyncio
import math
from dataclasses import dataclass, field

import pytest

from serve.access.rate_limits import Limits, Taken


@dataclass
class Clocked:
    """Rate limits with a clock that tests set."""

    now: float = 0.0
    limits: Limits = field(init=False)

    def __post_init__(self) -> None:
        self.limits = Limits(clock=lambda: self.now)

    def take(self, amount: int, name: str = "a", per_minute: int = 60) -> Taken:
        return asyncio.run(self.limits.take(name, per_minute, amount))

    def give_back(self, amount: int) -> None:
        asyncio.run(self.limits.give_back("a", 60, amount))


@pytest.fixture
def clocked() -> Clocked:
    return Clocked()


def test_a_bucket_holds_a_minute_and_fills_evenly(clocked: Clocked) -> None:
    assert clocked.take(20) == Taken(True, 40, 0.0, 20.0)
    assert clocked.take(41) == Taken(False, 40, 1.0, 20.0), "nothing is taken where there is too little"
    assert clocked.take(40) == Taken(True, 0, 0.0, 60.0)
    clocked.now = 0.5
    assert clocked.take(1) == Taken(False, 0, 0.5, 59.5)
    clocked.now = 1.0
    assert clocked.take(1) == Taken(True, 0, 0.0, 60.0)
    clocked.now = 10_000.0
    assert clocked.take(0) == Taken(True, 60, 0.0, 0.0), "never more than a minute's worth"


def test_a_minute_never_gives_more_than_twice_its_limit(clocked: Clocked) -> None:
    granted = 0
    for tick in range(600):
        clocked.now = tick / 10
        granted += clocked.take(7).granted * 7
    assert 100 < granted <= 120


def test_more_than_a_minute_holds_is_never_granted(clocked: Clocked) -> None:
    assert clocked.take(61) == Taken(False, 60, math.inf, 0.0)
    assert clocked.take(60).granted


def test_unused_tokens_are_returned_to_the_bucket(clocked: Clocked) -> None:
    clocked.take(50)
    clocked.give_back(30)
    assert clocked.take(0).remaining == 40
    clocked.give_back(30)
    assert clocked.take(0).remaining == 60, "never more than a minute's worth"


def test_buckets_are_separate_and_a_changed_limit_is_a_new_bucket(clocked: Clocked) -> None:
    clocked.take(60)
    assert clocked.take(1, name="b").granted
    assert not clocked.take(1).granted
    assert clocked.take(1, per_minute=120).remaining == 119
