"""Find the winner of a search, and measure its checkpoint again."""

import contextlib
from collections.abc import Iterator

from models.training.report import Report
from workflows.cluster.errors import StageCrashed
from workflows.progress import Progress
from workflows.search.checkpoints import is_whole, new_mark
from workflows.search.job_queue import JobUpdate
from workflows.search.records import Search, Trial, Winner, ranking, record_checkpoint, trial_folder
from workflows.search.seat import Seat, WorkerGroupLost, job_of
from workflows.search.trial import Shared
from workflows.search.worker_group import WorkerGroup
from workflows.spec import PipelineSpec
from workflows.spec.space import with_values
from workflows.stage import StageFailed
from workflows.store import Store

_AGREEMENT = 0.01
"""maximum relative difference of the winner's loss when it is measured again"""
_CANDIDATES = 3
"""maximum number of trials that are trained again to find a winner"""


def find_winner(spec: PipelineSpec, store: Store, search: Search, shared: Shared, progress: Progress) -> Winner:
    """The best report, measured again by other workers; raises StageFailed.

    If its checkpoint is gone, the trial is trained again; if that fails, the next best trial wins.
    """
    metric = search.metrics[0]
    ranked = ranking(search.trials, metric)
    if not ranked:
        reasons = {trial.error for trial in search.trials if trial.error}
        raise StageFailed(
            f"tune: no trial has reported a result: {'; '.join(sorted(reasons)) or 'the time limit was reached'}"
        )
    figure = metric if metric.startswith("held_out_") else "held_out_loss"
    failed = JobUpdate()
    for trial, report in ranked[:_CANDIDATES]:
        reported, name = report.figures[figure], f"the checkpoint of trial {trial.number} at step {report.step}"
        why = "is gone or incomplete"
        if report.checkpoint is not None and is_whole(store, f"{trial_folder(store, trial.key)}/{report.checkpoint}"):
            update = _measured_again(spec, store, trial, report, shared)
            if update.report is not None and not _agree(reported, update.report.figures[figure]):
                raise StageFailed(
                    f"tune: trial {trial.number} reported a {figure} of {reported:.6g} at step {report.step}, and "
                    f"its checkpoint gives {update.report.figures[figure]:.6g}; there is no winner"
                )
            if update.report is not None:
                return _winner(trial, report, figure, update.report)
            why = f"cannot be measured ({update.failed})"
        progress.note(f"tune: {name} {why}; the trial is trained again")
        update = _trained_again(spec, store, trial, report, shared)
        if update.report is not None and _agree(reported, update.report.figures[figure]):
            report.checkpoint = update.report.checkpoint
            record_checkpoint(store, search.key, trial, report)
            return _winner(trial, report, figure, update.report)
        if update.report is not None:
            now = update.report.figures[figure]
            update = JobUpdate(failed=f"it now has a {figure} of {now:.6g} instead of {reported:.6g}")
        progress.note(
            f"tune: trial {trial.number} cannot be trained again, so the next best one wins: {update.failed}"
        )
        failed = update
    raise _not_measured(failed)


def check_front(store: Store, search: Search, progress: Progress) -> None:
    """With several metrics: name the trials on the front whose checkpoints are gone or incomplete."""
    lost = []
    for trial, report in search.front() if len(search.metrics) > 1 else []:
        if report.checkpoint is None or not is_whole(store, f"{trial_folder(store, trial.key)}/{report.checkpoint}"):
            report.checkpoint = None
            lost.append(str(trial.number))
    if lost:
        progress.note(f"tune: on the Pareto front, no checkpoint is left of trial {', '.join(lost)}")


def _winner(trial: Trial, report: Report, figure: str, again: Report) -> Winner:
    assert report.checkpoint is not None
    return Winner(
        trial.number, trial.key, report.step, report.checkpoint, report.figures[figure], again.figures[figure]
    )  # fmt: skip


def _agree(reported: float, remeasured: float) -> bool:
    return abs(remeasured - reported) <= _AGREEMENT * abs(reported)


def _measured_again(spec: PipelineSpec, store: Store, trial: Trial, report: Report, shared: Shared) -> JobUpdate:
    """The figures of a report's checkpoint, measured again."""
    folder = trial_folder(store, trial.key)
    with _seat(spec, store, shared) as seat:
        checkpoint = f"{folder}/{report.checkpoint}"
        seat.begin(job_of(with_values(spec, trial.values), folder=folder, checkpoint=checkpoint, only_measure=True))
        return _checked(seat.next_update())


def _trained_again(spec: PipelineSpec, store: Store, trial: Trial, report: Report, shared: Shared) -> JobUpdate:
    """The report and its checkpoint, from the trial's earlier checkpoints or its start."""
    folder = trial_folder(store, trial.key)
    before = (f"{folder}/{other.checkpoint}" for other in reversed(trial.reports)
              if other.checkpoint is not None and other.step < report.step)  # fmt: skip
    start = next((path for path in before if is_whole(store, path)), None)
    if start is None and trial.origin is not None:
        return JobUpdate(failed=f"it copied trial {trial.origin.number}, and no checkpoint of its own is left")
    with _seat(spec, store, shared) as seat:
        mark = new_mark(shared.search)
        seat.begin(job_of(with_values(spec, trial.values), folder=folder, checkpoint=start, mark=mark))
        update = seat.next_update()
        while update.report is not None and update.report.step < report.step:
            update = seat.next_update()
        return _checked(update)


def _checked(update: JobUpdate) -> JobUpdate:
    if update.store_failed:
        raise StageFailed(f"tune: {update.failed}")
    return update


@contextlib.contextmanager
def _seat(spec: PipelineSpec, store: Store, shared: Shared) -> Iterator[Seat]:
    group = WorkerGroup(spec, store, shared.inputs, shared.folder, shared.max_failures, shared.suites)
    try:
        yield group.seats[0]
    except WorkerGroupLost as error:
        raise _not_measured(
            JobUpdate(failed=str(error), traceback="\n".join(getattr(error, "__notes__", [])))
        ) from error
    finally:
        group.close()


def _not_measured(update: JobUpdate) -> Exception:
    text = f"tune: cannot measure the winner again: {update.failed}"
    if not update.traceback:
        return StageFailed(text)
    error = StageCrashed(text)
    error.add_note(update.traceback)
    return error
