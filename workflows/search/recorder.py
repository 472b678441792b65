"""Record a search: writes every trial's reports, keeps the checkpoints that can still win, and shows the progress.

Only the recorder writes the search's records and deletes checkpoints. It writes a trial's end before showing it. The
cost of a report does not grow with the number of trials; what does grow takes a bounded share of the time.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray.tune

from models.errors import RayconteurError
from models.training.report import Report
from workflows.cluster.errors import describe_error, full_traceback, is_users_mistake, root_cause, write_traceback
from workflows.pace import Pace
from workflows.progress import Progress
from workflows.search.checkpoints import Named, Needs
from workflows.search.records import (
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    Search,
    Trial,
    trial_text,
    write_search,
    write_trial,
)
from workflows.search.standing import Standing
from workflows.search.steering import Steering
from workflows.search.table import search_summary, search_table
from workflows.search.trial import TrialEvent, event_of, values_of
from workflows.spec.constraints import broken
from workflows.store import Store, StoreError

if TYPE_CHECKING:
    from rich.table import Table

_SECONDS_BETWEEN_WRITES = 1.0
_SECONDS_BETWEEN_SEARCH_WRITES = 5.0
_SECONDS_BETWEEN_SHOWS = 0.5
_MAX_SHARE = 0.02


class SearchRecorder(ray.tune.Callback):  # type: ignore[misc]
    """Tune calls it with every result."""

    def __init__(
        self, search: Search, store: Store, progress: Progress, is_population: bool, steering: Steering | None = None
    ) -> None:
        self.failure: RayconteurError | None = None
        """why the store ended the search"""
        self._search = search
        self._store = store
        self._progress = progress
        self._is_population = is_population
        self._steering = steering
        self._trials: dict[tuple[int, str], Trial] = {}
        self._running: dict[int, Trial] = {}
        self._of_key: dict[str, list[Trial]] = {}
        self._known: dict[str, Sequence[Report]] = {}
        """the reports that the records of a trial had before, by its key"""
        self._standing = Standing(search.metrics)
        self._unwritten: dict[str, None] = {}
        self._texts: dict[tuple[int, str], str] = {}
        """each trial as the search's record has it"""
        self._stale: dict[tuple[int, str], Trial] = {}
        """trials whose text is not the latest"""
        self._kept: set[Named] = set()
        """checkpoints in the store"""
        self._needs = Needs(store, search.key)
        self._files: dict[str, str] = {}
        """the files of tracebacks, by traceback"""
        self._deleting = ThreadPoolExecutor(max_workers=1)
        self._began = time.monotonic()
        self._records = Pace(_SECONDS_BETWEEN_WRITES, _MAX_SHARE)
        self._whole_search = Pace(_SECONDS_BETWEEN_SEARCH_WRITES, _MAX_SHARE)
        self._shows = Pace(_SECONDS_BETWEEN_SHOWS, _MAX_SHARE)
        self._tables = Pace(0.0, _MAX_SHARE)
        self._table: Table | None = None

    def __getstate__(self) -> dict[str, object]:
        """Keep no state for Tune's restore: our searches resume from their own records."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, object], **_: Any
    ) -> None:
        """Handle a report, or a trial's failure."""
        line = event_of(result)
        if line.store_failed:
            self.failure = StoreError(line.failed)
        if self.failure is not None:
            raise self.failure
        mine = self._trial(int(str(trial)), line)
        mine.failures = max(mine.failures, line.failures)
        if line.note:
            self._progress.note(f"tune: trial {mine.number}: {line.note}")
        if line.failed:
            mine.retry = line.retry
            reason = self._with_traceback(mine.number, line.failed, line.traceback)
            self._end(mine, FAILED, reason, is_new=not line.was_known)
            return
        report = line.report
        assert report is not None
        is_new = False
        if mine.last is None or report.step > mine.last.step:
            mine.error = broken(self._search.constraints, report.figures)
            if mine.error:  # before the report is there: the display reads it in another thread
                mine.excluded.append(report.step)
            mine.reports.append(report)
            mine.reused += line.was_known
            is_new = not line.was_known  # otherwise a record already has this report, and maybe later ones
            if not mine.error:
                self._standing.add(mine, report)
            if report.checkpoint is not None:
                self._kept.add((mine.key, report.checkpoint))
        if result["done"]:
            state = FINISHED if report.step >= report.num_steps else STOPPED
            if state == STOPPED and self._steering is not None:
                mine.is_stopped_by_hand = self._steering.was_stopped(mine.values, report.step)
            self._end(mine, state, mine.error, is_new=is_new)
        else:
            self._change(mine, is_new)
            if self._records.is_due:
                self._write()
            self._show()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Handle a trial whose process ended more often than allowed."""
        if self.failure is not None:
            return
        error = trial.get_pickled_error()
        if error is not None and isinstance(root_cause(error), StoreError):
            self.failure = StoreError(describe_error(error))
            raise self.failure
        number = int(str(trial))
        mine = self._running.get(number) or self._add(
            number, TrialEvent(f"lost-{number}", values_of(trial.config), None, None)
        )
        mine.failures += 1
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
        self._search.seconds = round(time.monotonic() - self._began, 1)
        self._write()
        self._deleting.shutdown()
        self._needs.write(self._kept, is_over=True)

    def abandon(self) -> None:
        """The search has failed: delete what workers had begun to write."""
        self._deleting.shutdown()
        with contextlib.suppress(OSError, StoreError):
            self._needs.sweep({trial.key for trial in self._running.values()} | self._unwritten.keys())

    def _trial(self, number: int, line: TrialEvent) -> Trial:
        """The trial of an event; a population's member that copies another becomes a new trial."""
        if (known := self._trials.get((number, line.key))) is not None:
            self._running[number] = known
            if known.state != RUNNING:
                known.state = RUNNING
                self._standing.begin_again(self._trials.values())
            return known
        self._stop(number)
        return self._add(number, line)

    def _add(self, number: int, line: TrialEvent) -> Trial:
        added = self._steering.words_of(number) if self._steering is not None else ""
        trial = Trial(number, line.key, line.values, origin=line.origin, added=added)
        self._trials[number, line.key] = self._running[number] = trial
        self._of_key.setdefault(line.key, []).append(trial)
        self._known.setdefault(line.key, line.known)
        self._search.trials.append(trial)
        self._texts[number, line.key] = ""
        self._change(trial)
        return trial

    def _change(self, trial: Trial, is_new: bool = False) -> None:
        """A trial has changed; `is_new` if no record of it has that."""
        self._stale[trial.number, trial.key] = trial
        if is_new:
            self._unwritten[trial.key] = None

    def _stop(self, number: int) -> None:
        if (trial := self._running.pop(number, None)) is not None:
            trial.state = STOPPED
            self._standing.end(trial)
            self._change(trial, len(trial.reports) > trial.reused)

    def _end(self, trial: Trial, state: str, error: str = "", is_new: bool = True) -> None:
        trial.state, trial.error = state, error
        self._running.pop(trial.number, None)
        self._standing.end(trial)
        self._change(trial, is_new)
        self._write()
        self._show()

    def _write(self) -> None:
        """Write what has changed, then delete the checkpoints that are no longer needed; raises StoreError."""
        try:
            with self._records.taking():
                useless = self._useless()
                self._needs.write(self._kept)  # before records show these checkpoints to other searches
                for key in self._unwritten:
                    write_trial(self._store, self._search.key, self._whole(key))
                self._unwritten.clear()
            if useless:
                self._deleting.submit(self._needs.delete, useless)
            if self._whole_search.is_due:
                with self._whole_search.taking():
                    self._write_search()
        except (OSError, StoreError) as error:
            store = self._store
            self.failure = error if isinstance(error, StoreError) else store.failure(store.root, error)
            raise self.failure from error

    def _whole(self, key: str) -> Trial:
        """What a trial's record gets: the reports of its longest training, and later ones that records had."""
        trial = max(self._of_key[key], key=lambda trial: len(trial.reports))
        last = trial.last.step if trial.last else 0
        later = [report for report in self._known[key] if report.step > last]
        return replace(trial, reports=[*trial.reports, *later], state=RUNNING, error="") if later else trial

    def _write_search(self) -> None:
        for name, trial in self._stale.items():
            self._texts[name] = trial_text(trial)
        self._stale.clear()
        self._search.seconds = round(time.monotonic() - self._began, 1)
        write_search(self._store, self._search, self._texts.values())

    def _useless(self) -> list[Named]:
        """Checkpoints that can neither win nor be resumed; removes them from the trials."""
        if self._is_population:  # any member may copy any of them
            return []
        running = self._running.values()
        latest = [(trial, trial.last) for trial in running if trial.last is not None]
        useful = {(trial.key, report.checkpoint) for trial, report in [*latest, *self._standing.best(running)]}
        useless = self._kept - useful
        self._kept -= useless
        for key in {key for key, _ in useless}:
            for trial in self._of_key[key]:
                for report in trial.reports:
                    if (key, report.checkpoint) in useless:
                        report.checkpoint = None
                self._change(trial)
        return sorted(useless)

    def _show(self) -> None:
        if not self._shows.is_due:
            return
        with self._shows.taking():
            self._search.seconds = round(time.monotonic() - self._began, 1)
            figures = search_summary(self._search)
            del figures["trials_done"]  # a population's members may appear there several times
            done = len({trial.number for trial in self._search.trials}) - len(self._running)
            self._progress.update(done, self._search.wanted, "trials", figures)
            self._progress.show(self._latest_table)

    def _latest_table(self) -> "Table":
        """Called by the display at every refresh."""
        if self._table is None or self._tables.is_due:
            with self._tables.taking():
                self._table = search_table(self._search, self._progress.console.width)
        return self._table


def _last_line(error: Any) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else "its process ended without an error message"
