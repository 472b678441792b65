"""Run the trials of a search with Ray Tune, and record them.

run_trials(spec, search, shared, progress)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
import ray.tune

from workflows.cluster.errors import StageCrashed, describe_error, is_users_mistake
from workflows.cluster.ray_private import HEAD_NODE
from workflows.progress import Progress
from workflows.search.budget import Budget
from workflows.search.packed_groups import PackedGroups
from workflows.search.price_text import price_lines
from workflows.search.priced import StopsAtCost
from workflows.search.recorder import SearchRecorder
from workflows.search.records import Search
from workflows.search.steering import Steering
from workflows.search.trial import Shared, TrialRunner, event_of
from workflows.search.tuner import tuner_of
from workflows.search.warm_start import Prior
from workflows.spec import PipelineSpec
from workflows.spec.constraints import broken
from workflows.spec.space import Values, dimensions_of, size_of
from workflows.stage import StageFailed
from workflows.store import Store, StoreError

_SECONDS_TO_END = 60.0


def run_trials(
    spec: PipelineSpec,
    search: Search,
    shared: Shared,
    progress: Progress,
    *,
    steps_of: Callable[[Values], int] = lambda values: 1,
    earlier: Mapping[int, Values] | None = None,
    chosen: Sequence[Values] | None = None,
    first: Values | None = None,
    pack: int = 1,
    num_groups: int = 1,
    priors: Sequence[Prior] = (),
    steering: Steering | None = None,
    budget: Budget | None = None,
) -> None:
    """Train all trials, and record them in `search` and the store; raises StageFailed or StageCrashed.

    For the settings from `steps_of` on, see `tuner_of`. `pack` trials share each of at most
    `num_groups` worker groups; 1: each trial has its own.
    """
    store = Store(shared.store)
    groups: Any = None
    if pack > 1:
        on_head = PackedGroups.options(resources={HEAD_NODE: 0.001})  # type: ignore[attr-defined]
        groups = on_head.remote(shared, pack, num_groups)
        shared = replace(shared, groups=groups)
    recorder = SearchRecorder(search, store, progress, shared.is_population, steering)
    tuner = tuner_of(
        ray.tune.with_parameters(TrialRunner, shared=shared),
        spec,
        search,
        steps_of=steps_of,
        earlier=earlier,
        chosen=chosen,
        priors=priors,
        first=first,
        steering=steering,
        budget=budget,
        run_config=ray.tune.RunConfig(
            name="run",
            storage_path=shared.folder,
            storage_filesystem=store.filesystem,
            callbacks=[recorder],
            stop=_Ends(search, steering, budget),
            failure_config=ray.tune.FailureConfig(max_failures=shared.max_failures),
            verbose=0,
        ),
    )
    try:
        try:
            tuner.fit()
        finally:
            _end(groups)
        if steering is not None:
            steering.close("the search has ended, so no trial can be stopped or added")
        recorder.close()
    except (ray.tune.TuneError, OSError, StoreError) as error:
        recorder.abandon()
        if recorder.failure is not None:  # Tune raises an error of its own, with the text of this one
            raise StageFailed(f"tune: {recorder.failure}") from error
        if isinstance(error, OSError):  # Tune also writes to the store
            raise StageFailed(f"tune: {store.failure(error.filename or shared.folder, error)}") from error
        failure = StageFailed if is_users_mistake(error) else StageCrashed
        raise failure(f"tune: {describe_error(error)}") from error
    if chosen is None and (used_up := _used_up(spec, search)):
        progress.note(used_up)
    for line in price_lines(search):
        progress.note(f"tune: {line}")


class _Ends(ray.tune.Stopper):  # type: ignore[misc]
    """What ends trials besides the scheduler."""

    def __init__(self, search: Search, steering: Steering | None, budget: Budget | None) -> None:
        self._search, self._steering, self._budget = search, steering, budget
        self._at_cost = None if budget is None else StopsAtCost(budget, search)

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Called by Tune with each report; whether the trial ends."""
        is_over = self._at_cost is not None and self._at_cost(trial_id, result)
        is_stopped = self._steering is not None and self._steering.stops(trial_id, result["step"])
        return is_over or is_stopped or is_excluded(self._search.constraints, result)

    def stop_all(self) -> bool:
        """Called by Tune between reports; whether all trials end."""
        if self._budget is None or not self._budget.is_used_up():
            return False
        self._search.stopped_by_cost = True
        return True

    def __getstate__(self) -> dict[str, object]:
        """Keep no state for Tune's restore: our searches resume from their own records."""
        return {}


def is_excluded(constraints: list[str], result: Mapping[str, object]) -> bool:
    """Whether a result of Tune's has a report that breaks the constraints of the search."""
    report = event_of(result).report
    return report is not None and bool(broken(constraints, report.figures))


def _end(groups: Any) -> None:
    """End the worker groups that trials share."""
    if groups is not None:
        ray.wait([groups.close.remote()], timeout=_SECONDS_TO_END)
        ray.kill(groups)


def _used_up(spec: PipelineSpec, search: Search) -> str:
    """That the search ended before its limit, because it has tried every setting; empty if it has not."""
    tune = spec.tune
    assert tune is not None
    size = size_of(dimensions_of(tune.space))
    begun = len({trial.number for trial in search.trials if not trial.added})
    is_expected = tune.searcher.name == "grid" or tune.scheduler.name == "population" or size == tune.trials
    if is_expected or size != begun:
        return ""
    return f"tune: the search ends, because all {size} settings of tune.space have been tried"
