"""Set up Ray Tune for a search: its space, its searcher and its scheduler."""

import itertools
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import ray.tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
)
from ray.tune.search import BasicVariantGenerator

from workflows.cluster.ray_private import HEAD_NODE
from workflows.search.records import (
    Search,
    higher_is_better,
)
from workflows.search.trial import TOGETHER, event_of
from workflows.spec import AshaSpec, GridSpec, MedianSpec, PipelineSpec, PopulationSpec, TpeSpec, TuneSpec
from workflows.spec.space import Choice, Dimension, Values, parse

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
    most_steps: Callable[[], int],
    earlier: Sequence[Values],
    run_config: Any,
    chosen: Sequence[Values] | None = None,
) -> Any:
    """A Tuner with this search's searcher and scheduler.

    `most_steps()` is the length of the longest training, which a scheduler may need to know; `earlier` are settings
    to begin with, those that a search before this one had chosen; `chosen` are the settings of all trials, where they
    are known before.
    """
    tune = spec.tune
    assert tune is not None
    names: dict[str, str] = {}

    def number_of(trial: Any) -> str:
        return names.setdefault(trial.trial_id, str(len(names)))

    dimensions = {field: parse(entry) for field, entry in tune.space.items()}
    directions = ["max" if higher_is_better(metric) else "min" for metric in tune.metric]
    is_population = isinstance(tune.scheduler, PopulationSpec)
    # All members of a population are alive, and those that have no workers wait: what limits them is a resource.
    # A trial's memory is a word: its workers' own request says what it really needs.
    resources = {HEAD_NODE: _seat(search.at_once)} if is_population else {"memory": 1.0}
    limit = None if is_population else search.at_once
    if chosen is None:
        drawing = _drawing(tune, dimensions, directions, search, earlier, limit)
    else:
        drawing = _listed(tune.seed, chosen, limit)
    single = len(tune.metric) == 1
    return ray.tune.Tuner(
        ray.tune.with_resources(trainable, ray.tune.PlacementGroupFactory([resources])),
        param_space=drawing.space,
        tune_config=ray.tune.TuneConfig(
            metric=tune.metric[0] if single else None,
            mode=directions[0] if single else None,
            search_alg=drawing.searcher,
            scheduler=_scheduler(spec, dimensions, most_steps),
            num_samples=drawing.samples,
            max_concurrent_trials=drawing.limit,
            time_budget_s=search.seconds_allowed,
            reuse_actors=True,
            trial_name_creator=number_of,
            trial_dirname_creator=number_of,
        ),
        run_config=run_config,
    )


@dataclass(frozen=True)
class _Drawing:
    """How a search's trials get their settings."""

    searcher: Any
    space: Mapping[str, object]
    """for Tune's own searchers; others know theirs"""
    samples: int
    """-1: until time is over"""
    limit: int | None
    """trials at the same time, where Tune and not the searcher keeps it"""


def _drawing(
    tune: TuneSpec,
    dimensions: dict[str, Dimension],
    directions: list[str],
    search: Search,
    earlier: Sequence[Values],
    limit: int | None,
) -> _Drawing:
    samples = -1 if search.wanted is None else search.wanted
    if isinstance(tune.searcher, TpeSpec):
        return _Drawing(_tpe(tune, dimensions, directions, earlier[: search.wanted]), {}, samples, limit)
    if isinstance(tune.searcher, GridSpec):
        combined = itertools.product(*(dimension.ends for dimension in dimensions.values()))
        cut = [dict(zip(dimensions, values, strict=True)) for values in itertools.islice(combined, search.wanted)]
        return _listed(tune.seed, cut, limit)
    searcher = BasicVariantGenerator(max_concurrent=limit or 0, random_state=tune.seed)
    space = {field: _domain(dimension) for field, dimension in dimensions.items()}
    return _Drawing(searcher, space, samples, None)


def _listed(seed: int, settings: Sequence[Values], limit: int | None) -> _Drawing:
    """One trial for each of these settings."""
    searcher = BasicVariantGenerator(max_concurrent=limit or 0, random_state=seed)
    return _Drawing(searcher, {TOGETHER: ray.tune.grid_search(list(settings))}, 1, None)


def _domain(dimension: Dimension) -> Any:
    if isinstance(dimension, Choice):
        return ray.tune.choice(list(dimension.values))
    low, high = dimension.low, dimension.high
    if dimension.is_whole:
        return (ray.tune.lograndint if dimension.is_log else ray.tune.randint)(low, high + 1)
    return (ray.tune.loguniform if dimension.is_log else ray.tune.uniform)(low, high)


def _tpe(tune: TuneSpec, dimensions: dict[str, Dimension], directions: list[str], earlier: Sequence[Values]) -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    class Tpe(OptunaSearch):  # type: ignore[misc]
        """An Optuna search to which failed trials are reported as failed, not as the worst result."""

        def on_trial_complete(
            self, trial_id: str, result: Mapping[str, object] | None = None, error: bool = False
        ) -> None:
            if result is not None and event_of(result).failed:
                result, error = None, True
            super().on_trial_complete(trial_id, result, error)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    assert isinstance(tune.searcher, TpeSpec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # for multivariate TPE
        sampler = optuna.samplers.TPESampler(
            seed=tune.seed,
            multivariate=tune.searcher.multivariate,
            n_startup_trials=tune.searcher.startup_trials,
            constant_liar=True,  # running trials count as bad, so that concurrent trials differ
        )
    single = len(directions) == 1
    return Tpe(
        {field: _distribution(dimension) for field, dimension in dimensions.items()},
        metric=tune.metric[0] if single else list(tune.metric),
        mode=directions[0] if single else directions,
        points_to_evaluate=list(earlier),
        sampler=sampler,
    )


def _distribution(dimension: Dimension) -> Any:
    import optuna

    if isinstance(dimension, Choice):
        return optuna.distributions.CategoricalDistribution(dimension.values)
    if dimension.is_whole:
        return optuna.distributions.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.is_log)
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.is_log)


def _scheduler(spec: PipelineSpec, dimensions: dict[str, Dimension], most_steps: Callable[[], int]) -> Any:
    assert spec.tune is not None
    scheduler, every = spec.tune.scheduler, spec.train.checkpoint_every_steps
    if isinstance(scheduler, AshaSpec):
        grace = scheduler.grace_steps or every
        return AsyncHyperBandScheduler(
            time_attr="step",
            grace_period=grace,
            max_t=max(grace, most_steps()),
            reduction_factor=scheduler.reduction_factor,
        )
    if isinstance(scheduler, MedianSpec):
        return MedianStoppingRule(
            time_attr="step", grace_period=scheduler.grace_steps or every, min_samples_required=scheduler.min_trials
        )
    if isinstance(scheduler, PopulationSpec):
        return _population(scheduler, spec.tune.seed, dimensions, scheduler.every_steps or every)
    return None


def _population(scheduler: PopulationSpec, seed: int, dimensions: dict[str, Dimension], every: int) -> Any:
    class Population(PopulationBasedTraining):  # type: ignore[misc]
        """Population-based training that draws the same at the same step, so a resumed search repeats its copies."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, object]) -> Any:
            random.seed(f"{seed} {result['step']}")
            np.random.seed(random.getrandbits(32))
            return super().on_trial_result(tune_controller, trial, result)

    def inside(config: Values) -> Values:
        """Clip a perturbed value to its range."""
        drawn = cast(dict[str, float], config)
        return config | {field: dimension.nearest(drawn[field]) for field, dimension in dimensions.items()}

    changes = {
        field: list(dimension.values) if isinstance(dimension, Choice) else _domain(dimension)
        for field, dimension in dimensions.items()
    }
    return Population(
        time_attr="step",
        perturbation_interval=every,
        hyperparam_mutations=changes,
        quantile_fraction=scheduler.quantile,
        resample_probability=scheduler.resample_probability,
        custom_explore_fn=inside,
        log_config=False,
        synch=True,
    )
