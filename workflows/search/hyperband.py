"""The scheduler `hyperband` for Ray Tune."""

from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from workflows.search.brackets import Brackets
from workflows.search.records import compared_badness
from workflows.search.trial import event_of


class Hyperband(FIFOScheduler):  # type: ignore[misc]
    """Stops the trials that its brackets end. Its state depends on the reports alone."""

    def __init__(self, brackets: Brackets, metric: str, constraints: Sequence[str] = ()) -> None:
        super().__init__()
        self._brackets, self._decisive, self._constraints = brackets, metric, constraints

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """Called by Tune with a report; decides whether the trial continues."""
        decision: str = TrialScheduler.CONTINUE if self._goes_on(trial, result) else TrialScheduler.STOP
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> None:
        """Called by Tune with a trial's last report, or with its failure."""
        self._goes_on(trial, result)

    def _goes_on(self, trial: Any, result: Mapping[str, Any]) -> bool:
        report = event_of(result).report if result else None
        if report is None:
            return False
        value = compared_badness(self._decisive, report.figures, self._constraints)
        return self._brackets.goes_on(int(str(trial)), report.figures["num_tokens"], value)
