"""The best of a search while it runs: what a report costs here does not grow with the number of trials."""

import math
from collections.abc import Iterable

from models.training.report import Report
from workflows.search.pareto import ParetoFront, Point
from workflows.search.records import RUNNING, Trial, badness


class Standing:
    """The leader, and with several metrics the Pareto front, as `Search.leader` and `Search.front` have them."""

    def __init__(self, metrics: list[str]) -> None:
        self._metrics = metrics
        self._leader: tuple[Trial, Report] | None = None
        self._ended: ParetoFront[tuple[Trial, Report]] = ParetoFront(len(metrics))
        """of the ended trials: running ones move"""

    def add(self, trial: Trial, report: Report) -> None:
        """A trial has reported."""
        metric = self._metrics[0]
        if not math.isfinite(report.figures[metric]):
            return
        if self._leader is not None:
            first, best = self._leader
            now, before = badness(metric, report.figures[metric]), badness(metric, best.figures[metric])
            if (now, trial.number) >= (before, first.number):
                return
        self._leader = (trial, report)

    def end(self, trial: Trial) -> None:
        """A trial has ended."""
        if len(self._metrics) > 1 and (pair := self._point(trial)) is not None:
            self._ended.add(*pair)

    def begin_again(self, trials: Iterable[Trial]) -> None:
        """One of these trials had ended and goes on."""
        self._ended = ParetoFront(len(self._metrics))
        for trial in trials:
            if trial.state != RUNNING:
                self.end(trial)

    def best(self, running: Iterable[Trial]) -> list[tuple[Trial, Report]]:
        """The leader, and with several metrics the front; `running` are the trials that have not ended."""
        found = [] if self._leader is None else [self._leader]
        if len(self._metrics) > 1:
            found += self._ended.joined(pair for trial in running if (pair := self._point(trial)) is not None)
        return found

    def _point(self, trial: Trial) -> tuple[Point, tuple[Trial, Report]] | None:
        point, report = trial.point(self._metrics), trial.best(self._metrics[0])
        return None if point is None or report is None else (point, (trial, report))
