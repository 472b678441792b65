"""Find the winner of a search, and measure its checkpoint again."""

from models.training.report import Report
from workflows.cluster.errors import StageCrashed
from workflows.search.records import Search, Trial, Winner, trial_folder
from workflows.search.seat import WorkerGroupLost, job_of
from workflows.search.trial import Shared
from workflows.search.worker_group import WorkerGroup
from workflows.spec import PipelineSpec
from workflows.spec.space import with_values
from workflows.stage import StageFailed
from workflows.store import Store

_AGREEMENT = 0.01
"""maximum relative difference of the winner's loss when it is measured again"""


def find_winner(spec: PipelineSpec, store: Store, search: Search, shared: Shared) -> Winner:
    """The best report, measured again by other workers; raises StageFailed."""
    found = search.leader()
    if found is None:
        reasons = {trial.error for trial in search.trials if trial.error}
        raise StageFailed(
            f"tune: no trial has reported a result: {'; '.join(sorted(reasons)) or 'the time limit was reached'}"
        )
    trial, report = found
    figure = search.metrics[0] if search.metrics[0].startswith("held_out_") else "held_out_loss"
    reported = report.figures[figure]
    again = _measured_again(spec, store, trial, report, shared)
    remeasured = again.figures[figure]
    if abs(remeasured - reported) > _AGREEMENT * abs(reported):
        raise StageFailed(
            f"tune: trial {trial.number} reported a {figure} of {reported:.6g} at step {report.step}, and its "
            f"checkpoint gives {remeasured:.6g}; there is no winner"
        )
    assert report.checkpoint is not None
    return Winner(trial.number, trial.key, report.step, report.checkpoint, reported, remeasured)


def _measured_again(spec: PipelineSpec, store: Store, trial: Trial, report: Report, shared: Shared) -> Report:
    """The figures of a report's checkpoint, measured again.

    If the checkpoint was deleted because it could not win an earlier search, trains it again.
    """
    folder, trial_spec = trial_folder(store, trial.key), with_values(spec, trial.values)
    group = WorkerGroup(spec, store, shared.inputs, shared.folder, shared.max_failures, shared.suites)
    seat = group.seats[0]
    try:
        if report.checkpoint is None:
            seat.begin(job_of(trial_spec, folder=folder))
            update = seat.next_update()
            while update.report is not None and update.report.step < report.step:
                update = seat.next_update()
            report.checkpoint = update.report.checkpoint if update.report is not None else None
        else:
            seat.begin(
                job_of(trial_spec, folder=folder, checkpoint=f"{folder}/{report.checkpoint}", only_measure=True)
            )
            update = seat.next_update()
    except WorkerGroupLost as error:
        raise _not_measured(str(error), "\n".join(getattr(error, "__notes__", []))) from error
    finally:
        group.close()
    if update.report is None:
        raise _not_measured(update.failed, update.traceback)
    return update.report


def _not_measured(reason: str, traceback: str) -> Exception:
    text = f"tune: cannot measure the winner again: {reason}"
    if not traceback:
        return StageFailed(text)
    error = StageCrashed(text)
    error.add_note(traceback)
    return error
