"""A trial as a Ray Tune Trainable: each of its steps trains up to the next checkpoint.

The process that Tune starts for a trial keeps its worker group, and trains the next trial with it when Tune reuses
the process. Reports that a trial with the same settings made before, in this search or another, are replayed first.
"""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray
import ray.tune

from models.base import load as base
from models.training.report import PACKED, Report
from workflows.search.checkpoints import is_whole, new_mark
from workflows.search.job_queue import JobUpdate
from workflows.search.records import (
    FAILED,
    RUNNING,
    Origin,
    Trial,
    higher_is_better,
    read_trial,
    trial_folder,
)
from workflows.search.seat import Seat, job_of
from workflows.spec import PipelineSpec
from workflows.spec.space import Values, with_values
from workflows.store import Store, content_key
from workflows.suites.suite import Suite
from workflows.training.inputs import TrainingInputs

if TYPE_CHECKING:
    from workflows.search.worker_group import WorkerGroup

TOGETHER = "values"
"""key of a trial's settings in Tune's configuration: dotted fields are no keys for Tune"""


@dataclass(frozen=True)
class Shared:
    """What all trials of a search share."""

    spec: PipelineSpec
    """without its section `tune`"""
    store: str
    inputs: TrainingInputs
    search: str
    """the search's key"""
    folder: str
    """its folder in the store"""
    metrics: list[str]
    is_population: bool
    max_failures: int
    suites: Sequence[Suite] = ()
    """whose scores are among the metrics"""
    suites_key: str = ""
    """changes with what is in them"""
    are_alone: bool = False
    """whether a trial needs figures of its own, its time or its memory"""
    groups: Any = None
    """the actor of `PackedGroups` that several trials share; None: each has a worker group of its own"""


@dataclass(frozen=True)
class TrialEvent:
    """An event of a trial, which the recorder reads from Tune's result."""

    key: str
    values: Values
    origin: Origin | None
    report: Report | None
    failures: int = 0
    was_known: bool = False
    failed: str = ""
    traceback: str = ""
    """the traceback of a failure that is not a user's mistake"""
    retry: bool = False
    """whether the next search tries again what has failed"""
    store_failed: bool = False
    """whether the store failed, so that no trial can go on"""
    known: Sequence[Report] = ()
    """with the first event of a trial: the reports that its records had"""
    note: str = ""
    """a line for the display"""


RESULT = "line"
"""key of the TrialEvent in Tune's result"""

_SAVED = "saved"
"""where in a checkpoint of Tune's is what a trial needs to go on"""


@dataclass(frozen=True)
class _Saved:
    """The state of a population's member."""

    key: str
    number: int
    origin: Origin | None
    step: int
    checkpoint: str | None
    """the checkpoint in the store from which it continues"""


_SECONDS_BETWEEN_ASKING = 0.2

TuneResult = dict[str, float | TrialEvent]
"""what Tune expects from a trial's step, as flat keys: `step`, each metric, `done`, and the event"""


def event_of(result: Mapping[str, object]) -> TrialEvent:
    """The event in Tune's result."""
    event = result[RESULT]
    assert isinstance(event, TrialEvent)
    return event


def values_of(config: Mapping[str, Any]) -> Values:
    """The settings in Tune's configuration."""
    return dict(config[TOGETHER])


def key_of(
    spec: PipelineSpec, keys: Mapping[str, str], origin: Origin | None = None, number: int = 0, suites_key: str = ""
) -> str:
    """The key of a trial: the same for the same training with the same measurements, in any search.

    Two members of a population may copy the same trial and draw the same settings; then the key includes their
    numbers.
    """
    settings: dict[str, object] = {
        "train": spec.train.result_fields(),
        "base_model": base.identity(spec.base_model),
        "inputs": keys,
    }
    if (mixture := spec.data.mixture_fields()) is not None:
        settings["mixture"] = mixture
    if origin is not None:
        settings["origin"] = [origin.key, origin.step, number]
    if suites_key:
        settings["suites"] = suites_key
    return content_key(settings)


class TrialRunner(ray.tune.Trainable):  # type: ignore[misc]
    """Trains one trial after another."""

    def setup(self, config: Mapping[str, Any], shared: Shared | None = None) -> None:
        """Called by Tune in a new process."""
        assert shared is not None
        self._shared = shared
        self._spec = shared.spec
        self._store = Store(shared.store)
        self._group: WorkerGroup | None = None
        self._seat: Seat | None = None
        self._begin(values_of(config))

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        """Called by Tune to reuse this process."""
        self._begin(values_of(new_config))
        return True

    def _begin(
        self, values: Values, origin: Origin | None = None, step: int = 0, checkpoint: str | None = None
    ) -> None:
        """Begin another trial, from its start or from a checkpoint in the store."""
        self._trial_spec = with_values(self._spec, values)
        keys, suites_key = self._shared.inputs.keys, self._shared.suites_key
        key = key_of(self._trial_spec, keys, origin, int(self.trial_name), suites_key)
        known = read_trial(self._store, key) or Trial(0, key, values)
        if known.state == FAILED and known.retry:
            known.state, known.error = RUNNING, ""
        self._known: Sequence[Report] = known.reports
        if self._shared.are_alone:  # figures of packs are those of all members together
            known.reports = list(itertools.takewhile(lambda report: not report.figures.get(PACKED), known.reports))
        if self._shared.is_population:  # any member may copy any of its steps
            known.reports = list(itertools.takewhile(lambda report: report.checkpoint is not None, known.reports))
        self._trial = replace(known, values=values, origin=origin)
        self._to_say = [report for report in known.reports if report.step > step]
        self._said = step
        self._checkpoint, self._checkpoint_step = checkpoint, step
        self._is_at_work = False
        self._note = ""

    def step(self) -> TuneResult:
        """The next report, as Tune asks for it."""
        if self._to_say:
            return self._result(self._to_say.pop(0), was_known=True)
        if self._trial.state == FAILED:
            return self._failure(JobUpdate(failed=self._trial.error), was_known=True)
        update = self._next_update()
        if update.report is None:
            return self._failure(update)
        report = update.report
        figures = {name: value for name, value in report.figures.items() if name != "resumed_from_step"}
        if self._trial_spec.train.objective.name == "adversarial" and report.step < report.num_steps:
            figures |= dict.fromkeys(self._shared.metrics, math.nan)  # for a pair, the last checkpoint is the result
        return self._result(replace(report, figures=figures), failures=update.failures)

    def _next_update(self) -> JobUpdate:
        """The worker group's next update after the replayed reports."""
        if self._seat is None:
            self._seat = self._take_seat()
        if not self._is_at_work:
            start = self._start()
            if start is None and self._trial.origin is not None:
                origin = self._trial.origin
                return JobUpdate(
                    failed=f"cannot go on: the checkpoint of trial {origin.number} at step {origin.step}, which it "
                    "copied, is gone or incomplete",
                    retry=True,
                )
            folder = trial_folder(self._store, self._trial.key)
            mark = new_mark(self._shared.search)
            self._seat.begin(job_of(self._trial_spec, folder=folder, checkpoint=start, mark=mark))
            self._is_at_work = True
        while True:
            update = self._seat.next_update()
            # Without a checkpoint, replayed steps are trained again.
            if update.report is None or update.report.step > self._said:
                return update

    def _take_seat(self) -> Seat:
        """A seat in a worker group of this process, or in one that several trials share."""
        from workflows.search.worker_group import WorkerGroup

        shared = self._shared
        if shared.groups is not None:
            me = ray.get_runtime_context().current_actor
            while True:
                seat: Seat | None = ray.get(shared.groups.take.remote(me))
                if seat is not None:
                    return seat
                time.sleep(_SECONDS_BETWEEN_ASKING)
        self._group = WorkerGroup(
            self._spec, self._store, shared.inputs, shared.folder, shared.max_failures, shared.suites
        )
        return self._group.seats[0]

    def _start(self) -> str | None:
        """The latest checkpoint that is whole, to go on from; None if the trial begins at its start."""
        folder, said = trial_folder(self._store, self._trial.key), self._said
        own = [report for report in self._trial.reports if report.checkpoint is not None and report.step <= said]
        steps = {f"{folder}/{report.checkpoint}": report.step for report in own}
        if self._checkpoint is not None:
            steps[self._checkpoint] = self._checkpoint_step
        latest_first = sorted(steps, key=lambda path: steps[path], reverse=True)
        found = next((path for path in latest_first if is_whole(self._store, path)), None)
        step = 0 if found is None else steps[found]
        if step < said:
            where = f"goes on from step {step}" if step else "is trained again"
            self._note = f"its checkpoint at step {said} is gone or incomplete, so it {where}"
        return found

    def _result(self, report: Report, failures: int = 0, was_known: bool = False) -> TuneResult:
        self._said = report.step
        if report.checkpoint is not None:
            self._checkpoint = f"{trial_folder(self._store, self._trial.key)}/{report.checkpoint}"
            self._checkpoint_step = report.step
        line = self._event(report, failures, was_known)
        metrics = {metric: report.figures[metric] for metric in self._shared.metrics}
        return {"step": report.step, **metrics, RESULT: line, "done": report.step >= report.num_steps}

    def _failure(self, update: JobUpdate, was_known: bool = False) -> TuneResult:
        """The result of a failed trial: worse than any other, because an error would make Tune end the workers."""
        line = replace(
            self._event(None, update.failures if update.was_lost else 0, was_known),
            failed=update.failed, traceback=update.traceback,
            retry=update.was_lost or update.retry, store_failed=update.store_failed,
        )  # fmt: skip
        worst = {m: float("-inf") if higher_is_better(m) else float("inf") for m in self._shared.metrics}
        return {"step": self._said + 1, **worst, RESULT: line, "done": True}

    def _event(self, report: Report | None, failures: int, was_known: bool) -> TrialEvent:
        trial, known, note = self._trial, self._known, self._note
        self._known, self._note = (), ""
        return TrialEvent(
            trial.key, trial.values, trial.origin, report, failures, was_known, known=known, note=note
        )  # fmt: skip

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, object]:
        """Called by Tune to stop a population's member or to let another copy it; saves its state."""
        saved = _Saved(self._trial.key, int(self.trial_name), self._trial.origin, self._said, self._checkpoint)
        return {_SAVED: saved}

    def load_checkpoint(self, checkpoint: Mapping[str, object] | None) -> None:
        """Resume from a saved state; as a copy, if the state is another member's."""
        assert checkpoint is not None
        saved = checkpoint[_SAVED]
        assert isinstance(saved, _Saved)
        is_own = saved.number == int(self.trial_name)
        origin = saved.origin if is_own else Origin(saved.key, saved.number, saved.step)
        self._begin(self._trial.values, origin, saved.step, saved.checkpoint)

    def cleanup(self) -> None:
        """Called by Tune before this process ends."""
        if self._group is not None:
            self._group.close()
        elif self._seat is not None:
            ray.get(self._shared.groups.leave.remote(self._seat))
