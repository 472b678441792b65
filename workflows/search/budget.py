"""What a search may still spend (`tune.max_cost`). Imports no Ray.

budget = Budget(max_cost=5.0, price_per_hour=2.0)
budget.begin("7")
budget.report("7", step=10, num_steps=90)     # after each checkpoint
budget.allows_more("7")                       # whether the trial may go on to its next checkpoint
budget.end("7", is_new=True)
budget.allows_another()                       # whether another trial may begin
"""

import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

_HOUR = 3600.0


@dataclass
class _Running:
    began: float
    reported: float
    """when it reported last, or began"""
    is_known: bool
    """whether an earlier start has recorded it, and it has not reported more yet"""
    trained: float = 0.0
    """seconds of its steps until then"""
    interval: float = 0.0
    """seconds between its last two reports"""
    whole: float | None = None
    """seconds that it takes, by its own pace"""


class Budget:
    """The nodes of a search cost money from its start to its end, so its cost is its time.

    No trial begins that would end above the maximum cost, by the time that trials have taken; and a running one ends
    at the checkpoint after which another one would be above it.
    """

    def __init__(
        self,
        max_cost: float,
        price_per_hour: float,
        spent_before: float = 0.0,
        known: Collection[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`spent_before`: by earlier starts of the search; `known`: the numbers of the trials that these have
        recorded, which cost nothing again.
        """
        self.known = known
        self._clock, self._began = clock, clock()
        self._price = price_per_hour / _HOUR
        self._spent_before = spent_before
        self._seconds = (max_cost - spent_before) / self._price
        """from the start of this search to its end"""
        self._running: dict[str, _Running] = {}
        self._durations: list[float] = []
        self._begun_again = 0

    def begin(self, trial: str, is_known: bool = False) -> None:
        """A trial has begun; `is_known` if an earlier start has recorded it."""
        now = self._clock()
        self._running[trial] = _Running(now, now, is_known)
        self._begun_again += is_known

    def report(self, trial: str, step: int, num_steps: int, trained: float = 0.0, was_known: bool = False) -> None:
        """A trial has reached a checkpoint; `trained`: the seconds of its steps, by its report. They count where an
        earlier start has made the report, which then comes at once.
        """
        if trial not in self._running:  # a member of a population
            self.begin(trial)
        now, mine = self._clock(), self._running[trial]
        mine.interval = max(now - mine.reported, trained - mine.trained)
        mine.reported, mine.trained, mine.is_known = now, trained, mine.is_known and was_known
        mine.whole = max(now - mine.began, trained) * num_steps / step

    def end(self, trial: str, is_new: bool) -> None:
        """A trial has ended; `is_new` unless all of it was known before."""
        mine = self._running.pop(trial, None)
        if mine is not None and (is_new or mine.trained):
            self._durations.append(max(self._clock() - mine.began, mine.trained))

    def allows_more(self, trial: str) -> bool:
        """Whether a trial may go on after a report."""
        return self._elapsed() + self._running[trial].interval <= self._seconds

    def allows_another(self) -> bool:
        """Whether another trial may begin; as long as nothing is known of their times, while there is money."""
        return self.may_allow_another() and self._elapsed() + self._typical() <= self._seconds

    def may_allow_another(self) -> bool:
        """Whether another trial may begin later: running ones may turn out to be shorter."""
        return self._elapsed() < self._seconds

    def is_used_up(self) -> bool:
        """Whether all trials end at once, also those that have not reported: the search has cost its maximum. What
        earlier starts have recorded is repeated before.
        """
        is_repeating = self._begun_again < len(self.known) or any(each.is_known for each in self._running.values())
        return 0 < self._seconds <= self._elapsed() and not is_repeating

    def cost_with_another(self) -> float:
        """The dollars that the search is expected to have cost at the end of another trial."""
        return self._spent_before + (self._elapsed() + self._typical()) * self._price

    def _elapsed(self) -> float:
        return self._clock() - self._began

    def _typical(self) -> float:
        """Seconds of a trial."""
        paces = [mine.whole for mine in self._running.values() if mine.whole is not None]
        return statistics.fmean(self._durations or paces or [0.0])
