"""tune: a search over settings of `train`, with Ray Tune over trainings of Ray Train and DeepSpeed.

    rayconteur tune PIPELINE

Leaves in the store: `search.json`, every trial with its reports, and the winner; `tensorboard/`. The winner is the
best report of all trials, measured once more from its checkpoint; `train` takes that checkpoint for its own.

Trials are kept beside it, each found by its settings (workflows/search.py): interrupted or widened, a search trains
only what was not trained before.
"""

import itertools
import logging
import os
import random
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray.tune
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
)
from ray.tune.search import BasicVariantGenerator

from models.operator import check_build_tools
from workflows.cluster import innermost
from workflows.desk import News
from workflows.gang import Gang, GangBroken, order_of
from workflows.pipeline import Context, StageFailed, num_steps
from workflows.plan import steps_per_epoch
from workflows.room import need_of_trial, nodes_of_cluster, trials_at_once, why_none_fits
from workflows.search import (
    FAILED,
    FINISHED,
    HIGHER_IS_BETTER,
    STOPPED,
    TRIALS,
    Report,
    Search,
    Trial,
    Values,
    Winner,
    read_search,
    trial_folder,
    write_search,
)
from workflows.search_events import write_events
from workflows.spec import PipelineSpec
from workflows.spec_space import Choice, Dimension, combinations, parse, trials_wanted, with_values
from workflows.spec_tune import AshaSpec, GridSpec, MedianSpec, PopulationSpec, TpeSpec, TuneSpec
from workflows.store import Store, content_key
from workflows.trial import RESULT, TOGETHER, Shared, TrialRunner, key_of
from workflows.watcher import Watcher

ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # it says what is searched, however quiet it is told to be
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the watcher keeps what they would write
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the command's
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
# Of the head's own resource, for each training.
_RAY_TRAIN_TAKES = 0.001
_AGREEMENT = 0.01
"""by what share of it the winner's loss may differ when it is measured once more"""


def run(context: Context) -> dict[str, Any]:
    """Search, and measure the winner once more; returns what was found."""
    spec, store = context.spec, context.store
    assert spec.tune is not None
    tune = spec.tune
    nodes = nodes_of_cluster(spec.cluster)
    if (why := why_none_fits(nodes, spec.train)) and not (spec.cluster.address and tune.max_concurrent):
        raise StageFailed(f"tune: {why}")
    if not spec.train.gpus_per_worker:
        check_build_tools()
    os.environ.update(ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    keys = {name: artifact.key for name, artifact in context.inputs.items()}
    folder = store.path("tune", context.key)
    search = Search(
        pipeline=spec.name,
        key=context.key,
        metrics=list(tune.metric),
        space=tune.space,
        searcher=tune.searcher.name,
        scheduler=tune.scheduler.name,
        wanted=trials_wanted(tune),
        seconds_allowed=tune.time_minutes and tune.time_minutes * 60,
        at_once=trials_at_once(spec, nodes),
        family=family_of(spec, keys),
    )
    earlier = _earlier(store, search)
    shared = Shared(
        spec=(spec.model_copy(update={"tune": None})).model_dump(),
        store=store.uri,
        keys=keys,
        folder=folder,
        metrics=search.metrics,
        is_population=isinstance(tune.scheduler, PopulationSpec),
        max_failures=tune.max_failures,
    )
    write_search(store, search)
    watcher = Watcher(search, store, context.progress, shared.is_population)
    context.progress.note(f"tune: trials at once: {search.at_once}, for each {need_of_trial(spec.train)}")
    tuner = tuner_of(
        ray.tune.with_parameters(TrialRunner, shared=shared),
        spec,
        search,
        most_steps=lambda: _most_steps(spec, store, keys["prepare"]),
        earlier=earlier,
        run_config=ray.tune.RunConfig(
            name="run",
            storage_path=folder,
            storage_filesystem=store.filesystem,
            callbacks=[watcher],
            failure_config=ray.tune.FailureConfig(max_failures=tune.max_failures),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except ray.tune.TuneError as error:
        raise StageFailed(f"tune: {innermost(error)}") from error
    watcher.close()
    search.winner = _winner(spec, store, search, shared)
    write_search(store, search)
    with tempfile.TemporaryDirectory() as name:
        write_events(search, Path(name))
        store.upload(Path(name), f"{folder}/tensorboard")
    return _figures(search)


def _seat(seats: int) -> float:
    """What each member of a population takes of the head's own resource, which is 1, so that as many have room
    beside what Ray Train takes, and not one more.
    """
    return ((1 - _RAY_TRAIN_TAKES * seats) / seats + 1 / (seats + 1)) / 2


def family_of(spec: PipelineSpec, keys: dict[str, str]) -> str:
    """The same for searches that differ in their budget alone."""
    assert spec.tune is not None
    settings = spec.tune.result_fields()
    for budget in ("trials", "time_minutes"):
        del settings[budget]
    return content_key({"tune": settings, "trial": key_of(spec, keys)})


def tuner_of(
    trainable: Any,
    spec: PipelineSpec,
    search: Search,
    *,
    most_steps: Callable[[], int],
    earlier: Sequence[Values],
    run_config: Any,
) -> Any:
    """Ray Tune with this search's searcher and scheduler.

    `most_steps()` is the length of the longest training, which a scheduler may need to know; `earlier` are settings
    to begin with, those that a search before this one had chosen.
    """
    tune = spec.tune
    assert tune is not None
    names: dict[str, str] = {}

    def number_of(trial: Any) -> str:
        return names.setdefault(trial.trial_id, str(len(names)))

    dimensions = {field: parse(entry) for field, entry in tune.space.items()}
    directions = ["max" if metric in HIGHER_IS_BETTER else "min" for metric in tune.metric]
    limit: int | None = search.at_once
    resources = {"memory": 1.0}  # its workers' own request says what a trial really needs
    if isinstance(tune.scheduler, PopulationSpec):
        # All members are alive, and those that have no workers wait: what limits them is a resource.
        resources, limit = {HEAD_NODE_RESOURCE_NAME: _seat(search.at_once)}, None
    space: dict[str, Any] = {field: _domain(dimension) for field, dimension in dimensions.items()}
    samples = -1 if search.wanted is None else search.wanted
    searcher: Any
    if isinstance(tune.searcher, TpeSpec):
        searcher = _tpe(tune, dimensions, directions, earlier[: search.wanted])
        space = {}
    else:
        searcher = BasicVariantGenerator(max_concurrent=limit or 0, random_state=tune.seed)
        limit = None
    if isinstance(tune.searcher, GridSpec):
        combined = itertools.product(*(dimension.ends for dimension in dimensions.values()))
        cut = [dict(zip(dimensions, values, strict=True)) for values in itertools.islice(combined, search.wanted)]
        space, samples = {TOGETHER: ray.tune.grid_search(cut)}, 1
    single = len(tune.metric) == 1
    return ray.tune.Tuner(
        ray.tune.with_resources(trainable, ray.tune.PlacementGroupFactory([resources])),
        param_space=space,
        tune_config=ray.tune.TuneConfig(
            metric=tune.metric[0] if single else None,
            mode=directions[0] if single else None,
            search_alg=searcher,
            scheduler=_scheduler(spec, dimensions, most_steps),
            num_samples=samples,
            max_concurrent_trials=limit,
            time_budget_s=search.seconds_allowed,
            reuse_actors=True,
            trial_name_creator=number_of,
            trial_dirname_creator=number_of,
        ),
        run_config=run_config,
    )


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
        """Told of a failed trial that it failed, and not of a result worse than any."""

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            if result is not None and result[RESULT].failed:
                result, error = None, True
            super().on_trial_complete(trial_id, result, error)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    assert isinstance(tune.searcher, TpeSpec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # multivariate, since 2021
        sampler = optuna.samplers.TPESampler(
            seed=tune.seed,
            multivariate=tune.searcher.multivariate,
            n_startup_trials=tune.searcher.startup_trials,
            constant_liar=True,  # trials at work count as bad ones: several at once do not draw the same
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
    if not isinstance(scheduler, PopulationSpec):
        return None

    class Population(PopulationBasedTraining):  # type: ignore[misc]
        """Draws the same at the same step, so that an interrupted search goes on with the copies that it made."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> Any:
            random.seed(f"{seed} {result['step']}")
            np.random.seed(random.getrandbits(32))
            return super().on_trial_result(tune_controller, trial, result)

    seed = spec.tune.seed

    def inside(config: dict[str, Any]) -> dict[str, Any]:
        """A perturbed value may be outside of its range."""
        return config | {field: dimension.nearest(config[field]) for field, dimension in dimensions.items()}

    changes = {
        field: list(dimension.values) if isinstance(dimension, Choice) else _domain(dimension)
        for field, dimension in dimensions.items()
    }
    return Population(
        time_attr="step",
        perturbation_interval=scheduler.every_steps or every,
        hyperparam_mutations=changes,
        quantile_fraction=scheduler.quantile,
        resample_probability=scheduler.resample_probability,
        custom_explore_fn=inside,
        log_config=False,
        synch=True,
    )


def _most_steps(spec: PipelineSpec, store: Store, corpus: str) -> int:
    """Steps of the longest training in the space."""
    per_epoch: dict[tuple[int, int, int], int] = {}
    most = 1
    for values in combinations(spec):
        train = with_values(spec, values).train
        packed_by = (train.pass_tokens, train.passes, train.seed)
        if packed_by not in per_epoch:
            per_epoch[packed_by] = steps_per_epoch(train, store, corpus)
        most = max(most, num_steps(train, per_epoch[packed_by]) + train.pair_steps)
    return most


def _earlier(store: Store, search: Search) -> list[Values]:
    """The settings, in their order, that the longest search of this family has chosen before."""
    keys = [info.base_name for info in store.folders("tune")]
    found = [other for key in keys if (other := read_search(store, key)) and other.family == search.family]
    longest = max(found, key=lambda other: len(other.trials), default=None)
    return [trial.values for trial in sorted(longest.trials, key=lambda trial: trial.number)] if longest else []


def _winner(spec: PipelineSpec, store: Store, search: Search, shared: Shared) -> Winner:
    """The best report, measured once more by workers that know nothing of its trial; raises StageFailed."""
    found = search.leader()
    if found is None:
        reasons = {trial.error for trial in search.trials if trial.error}
        raise StageFailed(f"tune: no trial has reported anything: {'; '.join(sorted(reasons)) or 'the time was up'}")
    trial, report = found
    figure = search.metrics[0] if search.metrics[0].startswith("held_out_") else "held_out_loss"
    reported = report.figures[figure]
    again = _measured_again(spec, store, trial, report, shared)
    remeasured = again.figures[figure]
    if abs(remeasured - reported) > _AGREEMENT * abs(reported):
        raise StageFailed(
            f"tune: trial {trial.number} reported a {figure} of {reported:.6g} at step {report.step}, and its "
            f"checkpoint gives {remeasured:.6g}; nothing is declared the winner"
        )
    assert report.checkpoint is not None
    return Winner(trial.number, trial.key, report.step, report.checkpoint, reported, remeasured)


def _measured_again(spec: PipelineSpec, store: Store, trial: Trial, report: Report, shared: Shared) -> News:
    """The figures of a report's checkpoint, measured once more.

    Where it is no longer there, since it could not win in the search that made it, it is trained again.
    """
    folder, trial_spec = trial_folder(store, trial.key), with_values(spec, trial.values)
    gang = Gang(spec, store, shared.keys, shared.folder, shared.max_failures)
    try:
        if report.checkpoint is None:
            gang.begin(order_of(trial_spec, folder=folder))
            news = gang.next_news()
            while news.step < report.step and not news.failed:
                news = gang.next_news()
            report.checkpoint = news.checkpoint
        else:
            gang.begin(
                order_of(trial_spec, folder=folder, checkpoint=f"{folder}/{report.checkpoint}", only_measure=True)
            )
            news = gang.next_news()
    except GangBroken as error:
        raise StageFailed(f"tune: the winner could not be measured: {error}") from error
    finally:
        gang.close()
    if news.failed:
        raise StageFailed(f"tune: the winner could not be measured: {news.failed}")
    return news


def _figures(search: Search) -> dict[str, Any]:
    winner, found = search.winner, search.leader()
    assert winner is not None
    assert found is not None
    trial, report = found
    states = Counter(trial.state for trial in search.trials)
    figures: dict[str, Any] = {
        "trials": len({trial.number for trial in search.trials}),
        **{state: states[state] for state in (FINISHED, STOPPED, FAILED)},
        "winner": trial.number,
        "step": report.step,
        **trial.values,
        search.metrics[0]: report.figures[search.metrics[0]],
        "remeasured": winner.remeasured,
    }
    if len(search.metrics) > 1:
        figures["front"] = [trial.number for trial, _ in search.front()]
    return figures


def tidy(context: Context) -> None:
    """Once the artifact is whole: let go of what Tune and the gangs kept, and of checkpoints that nobody knows of."""
    store = context.store
    for name in ("run", "gangs"):
        store.remove(store.path("tune", context.key, name))
    search = read_search(store, context.key)
    assert search is not None
    known = {(trial.key, report.checkpoint) for trial in search.trials for report in trial.reports}
    for key in {trial.key for trial in search.trials}:
        for info in store.folders(TRIALS, key):
            if (key, info.base_name) not in known:
                store.remove(info.path)
