"""Set up Ray Tune for a search: its space, its searcher and its scheduler."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ray.tune
from ray.tune.search import Searcher

from workflows.cluster.ray_private import HEAD_NODE
from workflows.search.brackets import GRACE_SHARE, Brackets
from workflows.search.budget import Budget
from workflows.search.draws import Draws
from workflows.search.hyperband import Hyperband
from workflows.search.population import Population
from workflows.search.priced import UntilGainIsSmall, WithinCost
from workflows.search.records import Search, higher_is_better
from workflows.search.schedulers import Asha, Median
from workflows.search.steered import SteeredSearcher
from workflows.search.steering import Steering
from workflows.search.trial import TOGETHER
from workflows.search.warm_start import Prior
from workflows.spec import (
    AshaSpec,
    GridSpec,
    HyperbandSpec,
    MedianSpec,
    PipelineSpec,
    PopulationSpec,
    TpeSpec,
    TuneSpec,
)
from workflows.spec.space import Dimension, Values, all_settings, combinations, dimensions_of, with_values

ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # it prints the search space at any verbosity
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the recorder writes what these would
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the command's
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}

# Ray Train's share of the head node's own resource, for each training.
_RAY_TRAIN_TAKES = 0.001


def _seat(seats: int) -> float:
    """Each member's share of the head node's own resource, of which there is 1: with Ray Train's shares, exactly this
    many members can run.
    """
    return ((1 - _RAY_TRAIN_TAKES * seats) / seats + 1 / (seats + 1)) / 2


def tuner_of(
    trainable: Any,
    spec: PipelineSpec,
    search: Search,
    *,
    run_config: Any,
    steps_of: Callable[[Values], int],
    earlier: Mapping[int, Values] | None = None,
    chosen: Sequence[Values] | None = None,
    first: Values | None = None,
    priors: Sequence[Prior] = (),
    steering: Steering | None = None,
    budget: Budget | None = None,
) -> Any:
    """A Tuner with this search's searcher and scheduler.

    `steps_of` is the number of steps of a training with these settings, which a scheduler may need to know; `earlier`
    are the settings that a searcher before this one chose, by their number; `chosen` are those of all trials, where
    they are known before; `first` are those of the first trial; `priors` are the trials of other searches;
    `steering`: what people may ask of the search while it runs; `budget`: what it may spend.
    """
    tune = spec.tune
    assert tune is not None
    names: dict[str, str] = {}

    def number_of(trial: Any) -> str:
        return names.setdefault(trial.trial_id, str(len(names)))

    dimensions = dimensions_of(tune.space)
    is_population = isinstance(tune.scheduler, PopulationSpec)
    # All members of a population are alive, and those that have no workers wait: what limits them is a resource.
    # A trial's memory is a word: its workers' own request says what it really needs.
    resources = {HEAD_NODE: _seat(search.at_once)} if is_population else {"memory": 1.0}
    wanted = len(chosen) if chosen is not None else search.wanted
    searcher = InOrder(chosen) if chosen is not None else searcher_of(tune, dimensions, earlier or {}, first, priors)
    if tune.min_gain is not None or budget is not None:
        searcher = UntilGainIsSmall(searcher, tune.min_gain or 0.0, tune.metric[0], search)
    if budget is not None:
        searcher = WithinCost(searcher, budget, search)
    if steering is not None:
        searcher, wanted = SteeredSearcher(searcher, steering.wanted, steering), None
    space: dict[str, object] = {}
    if is_population:  # for which Tune allows no searcher
        members = itertools.islice(Draws(dimensions, tune.seed, may_repeat=True), wanted)
        searcher, wanted, space = None, 1, {TOGETHER: ray.tune.grid_search([*members])}
    return ray.tune.Tuner(
        ray.tune.with_resources(trainable, ray.tune.PlacementGroupFactory([resources])),
        param_space=space,
        tune_config=ray.tune.TuneConfig(
            metric=tune.metric[0],
            mode="max" if higher_is_better(tune.metric[0]) else "min",
            search_alg=searcher,
            scheduler=scheduler_of(spec, dimensions, steps_of),
            num_samples=-1 if wanted is None else wanted,
            max_concurrent_trials=None if is_population else search.at_once,
            time_budget_s=search.seconds_allowed,
            reuse_actors=True,
            trial_name_creator=number_of,
            trial_dirname_creator=number_of,
        ),
        run_config=run_config,
    )


def searcher_of(
    tune: TuneSpec,
    dimensions: dict[str, Dimension],
    earlier: Mapping[int, Values],
    first: Values | None = None,
    priors: Sequence[Prior] = (),
) -> Any:
    """The searcher that `tune.searcher` names; for `earlier` and `priors`, see `tuner_of`."""
    if isinstance(tune.searcher, TpeSpec):
        from workflows.search.tpe import TpeSearch  # other searches do not need Optuna

        before = {**earlier, 0: first} if first else earlier
        return TpeSearch(tune.searcher, tune.seed, dimensions, tune.metric, before, tune.constraints, priors)
    is_grid = isinstance(tune.searcher, GridSpec)
    settings: Iterable[Values] = all_settings(dimensions) if is_grid else Draws(dimensions, tune.seed)
    if first:
        settings = itertools.chain([first], (values for values in settings if values != first))
    return InOrder(settings)


class InOrder(Searcher):  # type: ignore[misc]
    """Takes settings one after the other; the search ends after the last."""

    def __init__(self, settings: Iterable[Values]) -> None:
        super().__init__()
        self._settings = iter(settings)
        self._added: list[Values] = []

    def __getstate__(self) -> dict[str, object]:
        """Keep no state for Tune's restore: our searches resume from their own records."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """Called by Tune for the settings of the next trial."""
        values = next((each for each in self._settings if each not in self._added), None)
        return Searcher.FINISHED if values is None else {TOGETHER: values}

    def add(self, trial_id: str, values: Values) -> None:
        """Another trial has these settings: they do not come again."""
        self._added.append(values)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, object] | None = None, error: bool = False
    ) -> None:
        """Called by Tune at a trial's end."""

    def save(self, checkpoint_path: str) -> None:
        """Called by Tune to keep a state."""


def _first_rung(spec: PipelineSpec, scheduler: HyperbandSpec, steps_of: Callable[[Values], int]) -> float:
    """In tokens."""
    if scheduler.grace_tokens is not None:
        return scheduler.grace_tokens
    longest = 0
    for values in combinations(spec):
        train = with_values(spec, values).train
        longest = max(longest, steps_of(values) * train.pass_tokens * train.passes * train.max_workers)
    return GRACE_SHARE * longest


def scheduler_of(spec: PipelineSpec, dimensions: dict[str, Dimension], steps_of: Callable[[Values], int]) -> Any:
    """Ray Tune's scheduler of a search; None if every trial trains to its end."""
    assert spec.tune is not None
    scheduler, every = spec.tune.scheduler, spec.train.checkpoint_every_steps
    if isinstance(scheduler, HyperbandSpec):
        brackets = Brackets(_first_rung(spec, scheduler, steps_of), scheduler.reduction_factor, scheduler.brackets)
        return Hyperband(brackets, spec.tune.metric[0], spec.tune.constraints)
    if isinstance(scheduler, AshaSpec | MedianSpec):
        longest = max(map(steps_of, combinations(spec)))
        grace = scheduler.grace_steps or max(1, round(GRACE_SHARE * longest))
        if isinstance(scheduler, MedianSpec):
            return Median(grace, min_samples_required=scheduler.min_trials)
        return Asha(grace, max_t=max(grace, longest), reduction_factor=scheduler.reduction_factor)
    if isinstance(scheduler, PopulationSpec):
        return Population(scheduler, spec.tune.seed, dimensions, scheduler.every_steps or every, steps_of)
    return None
