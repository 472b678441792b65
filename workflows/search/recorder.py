"""Record a search: writes every trial's reports, keeps the checkpoints that can still win, and shows the progress.

Only the recorder writes trials' records and deletes their checkpoints. It writes a trial's end before showing it.
"""

import math
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray.tune

from models.training.report import Report
from workflows.cluster.errors import describe_error, full_traceback, is_users_mistake, write_traceback
from workflows.progress import Progress
from workflows.search.records import (
    FAILED,
    FINISHED,
    STOPPED,
    Search,
    Trial,
    badness,
    trial_folder,
    write_search,
    write_trial,
)
from workflows.search.table import search_summary, search_table
from workflows.search.trial import TrialEvent, event_of, values_of
from workflows.store import Store

_SECONDS_BETWEEN_WRITES = 1.0
_SECONDS_BETWEEN_SEARCH_WRITES = 5.0
_SECONDS_BETWEEN_SHOWS = 0.5


class SearchRecorder(ray.tune.Callback):  # type: ignore[misc]
    """Tune calls it with every result."""

    def __init__(self, search: Search, store: Store, progress: Progress, is_population: bool) -> None:
        self._search = search
        self._store = store
        self._progress = progress
        self._is_population = is_population
        self._trials: dict[tuple[int, str], Trial] = {}
        self._running: dict[int, Trial] = {}
        self._of_key: dict[str, list[Trial]] = {}
        self._leader: tuple[Trial, Report] | None = None
        self._unwritten: dict[str, Trial] = {}
        self._kept: set[tuple[str, str]] = set()
        """checkpoints in the store: the trial's key, the folder's name"""
        self._files: dict[str, str] = {}
        """the files of tracebacks, by traceback"""
        self._deleting = ThreadPoolExecutor(max_workers=1)
        self._began = time.monotonic()
        self._wrote = self._wrote_search = self._showed = 0.0

    def __getstate__(self) -> dict[str, object]:
        """Keep no state for Tune's restore: our searches resume from their own records."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, object], **_: Any
    ) -> None:
        """Handle a report, or a trial's failure."""
        line = event_of(result)
        mine = self._trial(int(str(trial)), line)
        mine.failures = max(mine.failures, line.failures)
        if line.failed:
            self._end(mine, FAILED, self._with_traceback(mine.number, line.failed, line.traceback))
            return
        report = line.report
        assert report is not None
        if mine.last is None or report.step > mine.last.step:
            mine.reports.append(report)
            mine.reused += line.was_known
            self._compare(mine, report)
            if report.checkpoint is not None:
                self._kept.add((mine.key, report.checkpoint))
        if result["done"]:
            self._end(mine, FINISHED if report.step >= report.num_steps else STOPPED)
        else:
            if not line.was_known:  # otherwise the record already has this report, and maybe later ones
                self._unwritten[mine.key] = mine
            self._write(_SECONDS_BETWEEN_WRITES)
            self._show()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Handle a trial whose process ended more often than allowed."""
        number = int(str(trial))
        mine = self._running.get(number) or self._add(
            number, TrialEvent(f"lost-{number}", values_of(trial.config), None, None)
        )
        mine.failures += 1
        error = trial.get_pickled_error()
        if error is None:
            self._end(mine, FAILED, _last_line(trial.get_error()))
            return
        kept = "" if is_users_mistake(error) else full_traceback(error)
        self._end(mine, FAILED, self._with_traceback(number, describe_error(error), kept))

    def _with_traceback(self, number: int, reason: str, traceback: str) -> str:
        """The reason of a failure, with the file of its traceback, if it has one; prints it at once."""
        if not traceback:
            return reason
        if traceback not in self._files:  # only once for trials that fail with the same traceback
            file = self._files[traceback] = write_traceback(traceback)
            self._progress.note(f"tune: trial {number}: {reason} (details in {file})", traceback=file)
        return f"{reason} (details in {self._files[traceback]})"

    def close(self) -> None:
        """The search has ended: trials that still run were stopped with it."""
        for number in [*self._running]:
            self._stop(number)
        self._is_population = False  # no member can copy any more
        self._write()
        self._deleting.shutdown()

    def _trial(self, number: int, line: TrialEvent) -> Trial:
        """The trial of an event; a population's member that copies another becomes a new trial."""
        if (known := self._trials.get((number, line.key))) is not None:
            self._running[number] = known
            return known
        self._stop(number)
        return self._add(number, line)

    def _add(self, number: int, line: TrialEvent) -> Trial:
        trial = Trial(number, line.key, line.values, origin=line.origin)
        self._trials[number, line.key] = self._running[number] = trial
        self._of_key.setdefault(line.key, []).append(trial)
        self._search.trials.append(trial)
        return trial

    def _stop(self, number: int) -> None:
        if (trial := self._running.pop(number, None)) is not None:
            trial.state = STOPPED
            self._unwritten[trial.key] = trial

    def _compare(self, trial: Trial, report: Report) -> None:
        """Update the result of `search.leader()` without scanning all reports."""
        metric = self._search.metrics[0]
        if not math.isfinite(report.figures[metric]):
            return
        if self._leader is not None:
            first, best = self._leader
            now, before = badness(metric, report.figures[metric]), badness(metric, best.figures[metric])
            if (now, trial.number) >= (before, first.number):
                return
        self._leader = (trial, report)

    def _end(self, trial: Trial, state: str, error: str = "") -> None:
        trial.state, trial.error = state, error
        self._running.pop(trial.number, None)
        self._unwritten[trial.key] = trial
        self._write()
        self._show()

    def _write(self, at_most_every: float = 0.0) -> None:
        """Write what has changed, then delete the checkpoints that are no longer needed."""
        now = time.monotonic()
        if now - self._wrote < at_most_every:
            return
        useless = self._useless()
        for trial in self._unwritten.values():
            write_trial(self._store, trial)
        self._unwritten.clear()
        self._wrote = time.monotonic()
        for key, name in useless:
            self._deleting.submit(self._store.filesystem.delete_dir, f"{trial_folder(self._store, key)}/{name}")
        if now - self._wrote_search > _SECONDS_BETWEEN_SEARCH_WRITES:
            self._search.seconds = round(now - self._began, 1)
            write_search(self._store, self._search)
            self._wrote_search = now

    def _useless(self) -> list[tuple[str, str]]:
        """Checkpoints that can neither win nor be resumed; removes them from the records."""
        useful = {(trial.key, report.checkpoint) for trial, report in self._worth_keeping()}
        useless = [pair for pair in self._kept if pair not in useful]
        gone = set(useless)
        self._kept.difference_update(gone)
        for key in {key for key, _ in useless}:
            for trial in self._of_key[key]:
                for report in trial.reports:
                    if (key, report.checkpoint) in gone:
                        report.checkpoint = None
                self._unwritten[key] = trial
        return useless

    def _worth_keeping(self) -> list[tuple[Trial, Report]]:
        trials = self._search.trials
        if self._is_population:  # any member may copy any of them
            return [(trial, report) for trial in trials for report in trial.reports]
        found = [(trial, trial.last) for trial in self._running.values() if trial.last is not None]
        if self._leader is not None:
            found.append(self._leader)
        if len(self._search.metrics) > 1:
            found += self._search.front()
        return found

    def _show(self) -> None:
        if time.monotonic() - self._showed < _SECONDS_BETWEEN_SHOWS:
            return
        self._showed = time.monotonic()
        self._search.seconds = round(time.monotonic() - self._began, 1)
        figures = search_summary(self._search)
        del figures["trials_done"]  # a population's members may appear there several times
        done = len({trial.number for trial in self._search.trials}) - len(self._running)
        self._progress.update(done, self._search.wanted, "trials", figures)
        self._progress.show(lambda: search_table(self._search, self._progress.console.width))


def _last_line(error: Any) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else "its process ended without an error message"
