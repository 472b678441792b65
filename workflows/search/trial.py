"""A trial as Ray Tune runs it: each step of it is the training up to its next checkpoint.

The process that Tune starts for a trial keeps its workers, a worker group, and trains the next trial with them when
Tune gives it another one. What a trial of the same settings has reported before, in this search or another, is said
again first.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray.tune

from models.base import load as base
from models.training.report import Report
from workflows.search.job_queue import JobUpdate
from workflows.search.records import (
    FAILED,
    HIGHER_IS_BETTER,
    RUNNING,
    Origin,
    Trial,
    Values,
    read_trial,
    trial_folder,
)
from workflows.spec import PipelineSpec
from workflows.spec.space import with_values
from workflows.store import Store, content_key

if TYPE_CHECKING:
    from workflows.search.worker_group import WorkerGroup

TOGETHER = "values"
"""key of a configuration that has all values in one mapping, as a grid's has"""


@dataclass(frozen=True)
class Shared:
    """What all trials of a search have in common."""

    spec: PipelineSpec
    """without its section `tune`"""
    store: str
    keys: dict[str, str]
    """the artifacts that they read, by stage"""
    folder: str
    """the search's, on the store"""
    metrics: list[str]
    is_population: bool
    max_failures: int


@dataclass(frozen=True)
class TrialEvent:
    """One thing that a trial says, as the recorder reads it in a result of Tune's."""

    key: str
    values: Values
    origin: Origin | None
    report: Report | None
    failures: int = 0
    was_known: bool = False
    failed: str = ""
    traceback: str = ""
    """of a failure that is no mistake of the user's"""


RESULT = "line"
"""where in a result of Tune's the TrialEvent is"""

_SAVED = "saved"
"""where in a checkpoint of Tune's is what a trial needs to go on"""


@dataclass(frozen=True)
class _Saved:
    """Where a member of a population stands."""

    key: str
    number: int
    origin: Origin | None
    step: int
    checkpoint: str | None
    """where on the store it goes on from"""


TuneResult = dict[str, float | TrialEvent]
"""what Tune asks of a trial's step, flat: `step`, each metric, `done`, and the event"""


def event_of(result: Mapping[str, object]) -> TrialEvent:
    """The event in a result of Tune's."""
    event = result[RESULT]
    assert isinstance(event, TrialEvent)
    return event


def values_of(config: Mapping[str, Any]) -> Values:
    """The settings in a configuration of Tune's."""
    return dict(config.get(TOGETHER, config))


def key_of(spec: PipelineSpec, keys: dict[str, str], origin: Origin | None = None, number: int = 0) -> str:
    """The name of a trial: the same for the same training, in whichever search.

    Two members of a population may copy the same one and draw the same settings: then their numbers tell them apart.
    """
    settings: dict[str, object] = {
        "train": spec.train.result_fields(),
        "base_model": base.identity(spec.base_model),
        "inputs": keys,
    }
    if origin is not None:
        settings["origin"] = [origin.key, origin.step, number]
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
        self._begin(values_of(config))

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        """Called by Tune in place of a new process."""
        self._begin(values_of(new_config))
        return True

    def _begin(
        self, values: Values, origin: Origin | None = None, step: int = 0, checkpoint: str | None = None
    ) -> None:
        """Another trial, from its start, or after a step from a checkpoint on the store."""
        self._trial_spec = with_values(self._spec, values)
        key = key_of(self._trial_spec, self._shared.keys, origin, int(self.trial_name))
        known = read_trial(self._store, key) or Trial(0, key, values)
        if known.state == FAILED and known.failures:  # of lost workers: not the settings' fault
            known.state = RUNNING
        if self._shared.is_population:  # anybody may come to copy any of its steps
            known.reports = list(itertools.takewhile(lambda report: report.checkpoint is not None, known.reports))
        self._trial = replace(known, values=values, origin=origin)
        self._to_say = [report for report in known.reports if report.step > step]
        self._said = step
        self._checkpoint = checkpoint
        self._is_at_work = False

    def step(self) -> TuneResult:
        """The next report, as Tune asks for it."""
        if self._to_say:
            return self._result(self._to_say.pop(0), was_known=True)
        if self._trial.state == FAILED:
            return self._failure(self._trial.error, self._trial.failures)
        update = self._next_update()
        if update.report is None:
            return self._failure(update.failed, update.failures if update.was_lost else 0, update.traceback)
        report = update.report
        figures = {name: value for name, value in report.figures.items() if name != "resumed_from_step"}
        if self._trial_spec.train.objective.name == "adversarial" and report.step < report.num_steps:
            figures |= dict.fromkeys(self._shared.metrics, math.nan)  # of a pair the last checkpoint counts
        return self._result(replace(report, figures=figures), failures=update.failures)

    def _next_update(self) -> JobUpdate:
        """The worker group's next update of what has not been said yet."""
        from workflows.search.worker_group import WorkerGroup, job_of

        if self._group is None:
            self._group = WorkerGroup(
                self._spec, self._store, self._shared.keys, self._shared.folder, self._shared.max_failures
            )
        if not self._is_at_work:
            folder = trial_folder(self._store, self._trial.key)
            self._group.begin(job_of(self._trial_spec, folder=folder, checkpoint=self._checkpoint))
            self._is_at_work = True
        while True:
            update = self._group.next_update()
            # A report that was known is trained again for want of a checkpoint.
            if update.report is None or update.report.step > self._said:
                return update

    def _result(self, report: Report, failures: int = 0, was_known: bool = False) -> TuneResult:
        self._said = report.step
        if report.checkpoint is not None:
            self._checkpoint = f"{trial_folder(self._store, self._trial.key)}/{report.checkpoint}"
        line = TrialEvent(self._trial.key, self._trial.values, self._trial.origin, report, failures, was_known)
        metrics = {metric: report.figures[metric] for metric in self._shared.metrics}
        return {"step": report.step, **metrics, RESULT: line, "done": report.step >= report.num_steps}

    def _failure(self, reason: str, failures: int, traceback: str = "") -> TuneResult:
        """The end of a trial that failed: for Tune a result worse than any, since an error would cost the workers."""
        line = TrialEvent(
            self._trial.key,
            self._trial.values,
            self._trial.origin,
            None,
            failures,
            failed=reason,
            traceback=traceback,
        )
        worst = {m: float("-inf") if m in HIGHER_IS_BETTER else float("inf") for m in self._shared.metrics}
        return {"step": self._said + 1, **worst, RESULT: line, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, object]:
        """For Tune, which saves a population's members to stop them or to have them copied: where it stands."""
        saved = _Saved(self._trial.key, int(self.trial_name), self._trial.origin, self._said, self._checkpoint)
        return {_SAVED: saved}

    def load_checkpoint(self, checkpoint: Mapping[str, object] | None) -> None:
        """Go on from there; where another member was saved there, as a copy of it."""
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
