"""Ray Tune's schedulers `asha` and `median`, for which a metric that is no number is the worst."""

import math
from collections.abc import Mapping
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from workflows.search.records import higher_is_better

# Worse than any metric. With infinity, percentiles and means of a rung would be NaN.
_WORST = 1e300


def comparable(metric: str, result: Mapping[str, Any]) -> Mapping[str, Any]:
    """One of Tune's results, with the worst number in place of a metric that is none."""
    if math.isfinite(result[metric]):
        return result
    return {**result, metric: -_WORST if higher_is_better(metric) else _WORST}


class _Stopping(FIFOScheduler):  # type: ignore[misc]
    """Stops a trial whose metric is no number, from `grace_period` steps on. Others are compared with it as with the
    worst.
    """

    def __init__(self, grace_period: int, **settings: Any) -> None:
        super().__init__(time_attr="step", grace_period=grace_period, **settings)
        self._least_steps = grace_period

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> Any:
        """Called by Tune with a report; decides whether the trial continues."""
        seen = comparable(self.metric, result)
        decision = super().on_trial_result(tune_controller, trial, seen)
        is_broken = seen is not result and result["step"] >= self._least_steps
        return TrialScheduler.STOP if is_broken else decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> None:
        """Called by Tune with the last report, or a failure, of a trial."""
        super().on_trial_complete(tune_controller, trial, comparable(self.metric, result))


class Asha(_Stopping, AsyncHyperBandScheduler):  # type: ignore[misc]
    """Asynchronous successive halving."""

    def __init__(self, grace_period: int, max_t: int, **settings: Any) -> None:
        """`max_t`: the steps of the longest training of the space, for which there are rungs."""
        super().__init__(grace_period, max_t=max_t, **settings)
        self._max_t = math.inf  # a trial that somebody has added may be longer


class Median(_Stopping, MedianStoppingRule):  # type: ignore[misc]
    """The median stopping rule."""
