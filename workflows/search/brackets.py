"""The scheduler `hyperband`: stops trials at rungs of tokens. Decides by reports alone; imports no Ray.

brackets = Brackets(first=16_384, factor=3.0, count=2)
brackets.goes_on(trial=7, tokens=17_000, badness=2.41)      # after each report, in the order in which they come
"""

import math
from bisect import bisect_left, insort
from collections.abc import Iterator

GRACE_SHARE = 0.4
"""the first rung by default: this share of the longest training (benchmarks/search_replay.py)"""

WORST = 1e300
"""in place of a metric that is no number: worse than any, and comparable"""

_MOST_TURNS = 1000


class Rungs:
    """The trials' values at `first`, `first * factor`, `first * factor**2`, ... tokens.

    A trial's value at a rung is its report at the first checkpoint there or later, so trials with different batch
    sizes are compared after the same number of tokens.
    """

    def __init__(self, first: float, factor: float) -> None:
        self._first, self._factor = first, factor
        self.values: list[dict[int, float]] = []
        """of each rung: the badness of each trial that has reached it"""
        self._sorted: list[list[float]] = []
        self._passed: dict[int, int] = {}
        """of each trial: how many rungs it has reached"""

    def reached(self, trial: int, tokens: float, badness: float) -> Iterator[int]:
        """Record a report; the rungs that the trial reaches with it."""
        value = badness if math.isfinite(badness) else WORST
        while tokens >= self._first * self._factor ** (rung := self._passed.get(trial, 0)):
            self._passed[trial] = rung + 1
            if rung == len(self.values):
                self.values.append({})
                self._sorted.append([])
            self.values[rung][trial] = value
            insort(self._sorted[rung], value)
            yield rung

    def better(self, trial: int, rung: int) -> int:
        """How many trials have a better value at a rung."""
        return bisect_left(self._sorted[rung], self.values[rung][trial])


class Brackets:
    """Asynchronous Hyperband (Li et al. 2018, arXiv:1603.06560; 2020, arXiv:1810.05934).

    Trials of bracket b are compared from rung b on, with all trials that have reached the rung: so some trials get
    `factor ** b` times the tokens before their first comparison.
    """

    def __init__(self, first: float, factor: float, count: int) -> None:
        self._rungs = Rungs(first, factor)
        self._factor = factor
        self._order = _order(factor, count)

    def goes_on(self, trial: int, tokens: float, badness: float) -> bool:
        """Whether a trial continues after this report."""
        decisions = [
            rung < self._order[trial % len(self._order)] or self._is_among_the_best(trial, rung)
            for rung in self._rungs.reached(trial, tokens, badness)
        ]
        return not decisions or decisions[-1]

    def _is_among_the_best(self, trial: int, rung: int) -> bool:
        values = self._rungs.values[rung]
        if values[trial] == WORST:
            return False
        return self._rungs.better(trial, rung) < max(1, int(len(values) / self._factor))


def _order(factor: float, count: int) -> list[int]:
    """The bracket of each trial, in turn: each bracket has as many trials as gives it about the same tokens."""
    shares = [min(_MOST_TURNS, max(1, round(factor ** (count - 1 - bracket)))) for bracket in range(count)]
    places = [((index + 0.5) / share, bracket) for bracket, share in enumerate(shares) for index in range(share)]
    return [bracket for _, bracket in sorted(places)]
