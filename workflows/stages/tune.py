"""tune: searches over settings of `train`, with Ray Tune, Ray Train and DeepSpeed.

    rayconteur tune PIPELINE

Writes to the store: `search.json`, every trial with its reports, and the winner; `tensorboard/`. The winner is the
best report of all trials, measured again on its checkpoint, which becomes the checkpoint of `train`. Trials are
stored beside the search, by their settings (workflows/search/records.py): an interrupted or extended search trains
only what is missing.
"""

import bisect
import logging
import math
import os
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from models.base import load as base
from models.base.sizes import describe
from models.errors import RayconteurError
from models.training.deepspeed_operator import check_build_tools
from workflows.cluster.capacity import (
    need_of_trial,
    nodes_of_cluster,
    trainings_at_once,
    trials_at_once,
    why_none_fits,
)
from workflows.cluster.price import price_of_trainings, why_no_price
from workflows.cluster.workers import check_fits
from workflows.figures import TuneFigures
from workflows.search.budget import Budget
from workflows.search.checkpoints import Needs, needs_of
from workflows.search.mixture import PROXIES, forecast_mixtures, proxies_of
from workflows.search.pack import own_figures, pack_of
from workflows.search.records import (
    FAILED,
    FINISHED,
    STOPPED,
    OnProxy,
    Search,
    read_search,
    searches_of,
    write_search,
)
from workflows.search.region import for_width, region_of
from workflows.search.run import run_trials
from workflows.search.sampling import search_sampling
from workflows.search.steering import Steering
from workflows.search.steering_requests import Listener, read_requests, take_over
from workflows.search.table import region_text
from workflows.search.tensorboard import write_events
from workflows.search.trial import Shared, key_of
from workflows.search.tuner import ENVIRONMENT
from workflows.search.warm_start import Prior, best_settings, read_priors, tune_fields
from workflows.search.winner import check_front, find_winner
from workflows.spec import MixtureSearchSpec, PipelineSpec, PopulationSpec
from workflows.spec.space import Values, dimensions_of, space_of, trials_wanted, with_values
from workflows.stage import Context, StageFailed
from workflows.store import Artifact, Store, content_key
from workflows.suites.read import metric_suites
from workflows.suites.settings import suite_settings
from workflows.training.inputs import TrainingInputs, inputs_of
from workflows.training.steps import num_steps, steps_per_epoch


def run(context: Context) -> TuneFigures:
    """Run the search, and measure the winner again; returns the figures."""
    assert context.spec.tune is not None
    if context.spec.searches_sampling:
        return _figures(search_sampling(context))
    on_proxy = None
    if context.proxy is not None:
        context, on_proxy = _in_region(context, context.proxy)
    spec, store, tune = context.spec, context.store, context.spec.tune
    assert tune is not None
    nodes = nodes_of_cluster(spec.cluster)
    if (why := why_none_fits(nodes, spec.train)) and not (spec.cluster.address and tune.max_concurrent):
        raise StageFailed(f"tune: {why}")
    try:
        pack = pack_of(spec)
    except RayconteurError as error:
        raise StageFailed(str(error)) from error
    at_once = trials_at_once(spec, nodes, pack)
    num_groups = max(trainings_at_once(nodes, spec.train), math.ceil(at_once / pack))
    price = price_of_trainings(spec, min(num_groups, at_once))
    if why := why_no_price(spec, price):
        raise StageFailed(why)
    check_fits(spec, ["tune"], context.progress)
    if not spec.train.gpus_per_worker:
        check_build_tools()
    os.environ.update(ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    inputs = inputs_of(spec, {name: artifact.key for name, artifact in context.inputs.items()})
    folder = store.path("tune", context.key)
    search = Search(
        pipeline=spec.name,
        key=context.key,
        metrics=list(tune.metric),
        space=space_of(spec),
        searcher=tune.searcher.name,
        scheduler=tune.scheduler.name,
        wanted=trials_wanted(tune),
        seconds_allowed=tune.time_minutes and tune.time_minutes * 60,
        at_once=at_once,
        family=family_of(spec, inputs.keys),
        proxy=on_proxy,
        constraints=list(tune.constraints),
        price_per_hour=price,
        max_cost=tune.max_cost,
    )
    suites = metric_suites(spec)
    suites_key = content_key({"suites": suite_settings(spec.evaluate)}) if suites else ""
    search.measure = _measure_of(spec, inputs.keys, suites_key)
    priors, notes = read_priors(tune.warm_start, store, search, dimensions_of(tune.space))
    for note in notes:
        context.progress.note(f"tune: {note}")
    family = searches_of(store, search.family)
    search.spent_before = max((other.spent or 0.0 for other in family), default=0.0)
    before = max(family, key=lambda other: len(other.trials), default=None)
    shared = Shared(
        spec=spec.model_copy(update={"tune": None}),
        store=store.uri,
        inputs=inputs,
        search=search.key,
        folder=folder,
        metrics=search.metrics,
        is_population=isinstance(tune.scheduler, PopulationSpec),
        max_failures=tune.max_failures,
        suites=suites,
        suites_key=suites_key,
        are_alone=bool(own_figures(tune)),
    )
    is_new = read_search(store, search.key) is None
    if before and is_new:  # a wider search goes on where that one ended
        take_over(store, search.key, before.key)
    steering = Steering(spec, search, read_requests(store, search.key), known=_begun(before), pack=pack)
    if is_new:  # otherwise it has what this start needs, should it end at once
        write_search(store, search)
    each = f"packed by {pack}, each pack" if pack > 1 else "each"
    context.progress.note(f"tune: concurrent trials: {search.at_once}, {each} with {need_of_trial(spec.train)}")
    with Listener(store, search.key, steering.decide), context.watch(search) as address:
        if address:
            context.progress.note(f"tune: live at {address} (on {socket.gethostname()})", address=address)
        try:
            _search(context, search, shared, steering, before, priors, pack, num_groups)
        finally:
            steering.close("the search has ended; run it again, and ask while it runs")
    write_search(store, search)
    with tempfile.TemporaryDirectory() as name:
        write_events(search, Path(name))
        store.upload(Path(name), f"{folder}/tensorboard")
    return _figures(search)


def _search(
    context: Context,
    search: Search,
    shared: Shared,
    steering: Steering,
    before: Search | None,
    priors: Sequence[Prior],
    pack: int,
    num_groups: int,
) -> None:
    """Train the trials, and find the winner."""
    spec, store = context.spec, context.store
    assert spec.tune is not None
    chosen = None
    if isinstance(spec.tune.searcher, MixtureSearchSpec):
        search.forecast, chosen = forecast_mixtures(spec, store, context.progress, search, shared)
        search.wanted = len(chosen)
        search.at_once = min(search.at_once, len(chosen))
    chosen_before = _chosen_before(before)
    run_trials(
        spec,
        search,
        shared,
        context.progress,
        steps_of=_steps_of(spec, store, shared.inputs),
        earlier={**dict(enumerate(best_settings(priors, dimensions_of(spec.tune.space)))), **chosen_before},
        chosen=chosen,
        first=search.proxy.first if search.proxy else None,
        pack=pack,
        num_groups=num_groups,
        priors=priors,
        steering=steering if chosen is None and not shared.is_population else None,
        budget=_budget(search, chosen_before),
    )
    search.winner = find_winner(spec, store, search, shared, context.progress)
    check_front(store, search, context.progress)
    Needs(store, search.key).write(needs_of(search), is_over=True)


def _in_region(context: Context, proxy: Artifact) -> tuple[Context, OnProxy]:
    """The context with the region of the proxy's best trials as the space of its pipeline, and that region."""
    spec, tune = context.spec, context.spec.tune
    assert tune is not None
    assert tune.proxy is not None
    search = read_search(context.store, proxy.key)
    assert search is not None
    large, small = (describe(base.resolve(name))["hidden_size"] for name in (spec.base_model, tune.proxy.base_model))
    region = for_width(region_of(search, tune.proxy.best_share), spec.train, large / small)
    found = OnProxy(
        base_model=tune.proxy.base_model,
        search=proxy.key,
        trials=sum(1 for trial in search.trials if trial.best(search.metrics[0]) is not None),
        best=region.num_best,
        first=region.best,
        rate_factor=region.rate_factor,
    )
    context.progress.note(f"tune: {region_text(found, region.space)}")
    narrowed = tune.model_copy(update={"space": region.space})
    return replace(context, spec=spec.model_copy(update={"tune": narrowed})), found


def family_of(spec: PipelineSpec, keys: Mapping[str, str]) -> str:
    """A key that is the same for searches that differ only in their budget."""
    assert spec.tune is not None
    settings = tune_fields(spec.tune)
    for budget in ("trials", "time_minutes", "min_gain", "max_cost"):
        settings.pop(budget, None)
    return content_key({"tune": settings, "trial": key_of(spec, keys)})


def _measure_of(spec: PipelineSpec, keys: Mapping[str, str], suites_key: str) -> str:
    """For `Search.measure`."""
    train = spec.train
    trained = [base.identity(spec.base_model), train.objective.result_fields(), train.held_out_tokens]
    return content_key({"trained": trained, "inputs": keys, "suites": suites_key})


def _steps_of(spec: PipelineSpec, store: Store, inputs: TrainingInputs) -> Callable[[Values], int]:
    """The number of steps of a training with these settings."""
    per_epoch: dict[str, int] = {}

    def steps_of(values: Values) -> int:
        trial = with_values(spec, values)
        train = trial.train
        packed_by = repr((train.pass_tokens, train.passes, train.seed, trial.data.mixture_fields()))
        if packed_by not in per_epoch:
            per_epoch[packed_by] = steps_per_epoch(trial, store, inputs)
        return num_steps(train, per_epoch[packed_by]) + train.pair_steps

    return steps_of


def _begun(before: Search | None) -> int:
    """How many trials an earlier search has begun."""
    return max((trial.number + 1 for trial in before.trials), default=0) if before else 0


def _chosen_before(before: Search | None) -> dict[int, Values]:
    """The settings that the searcher of an earlier search chose, in their order."""
    trials = sorted(before.trials, key=lambda trial: trial.number) if before else []
    added = [trial.number for trial in trials if trial.added]
    return {
        trial.number - bisect.bisect_left(added, trial.number): trial.values for trial in trials if not trial.added
    }


def _budget(search: Search, recorded: Collection[int]) -> Budget | None:
    """What the search may spend from now on; None without a maximum."""
    if search.max_cost is None or search.price_per_hour is None:
        return None
    return Budget(search.max_cost, search.price_per_hour, search.spent_before, recorded)


def _figures(search: Search) -> TuneFigures:
    winner, found = search.winner, search.leader()
    assert winner is not None
    assert found is not None
    trial, report = found
    states = Counter(trial.state for trial in search.trials)
    return TuneFigures(
        trials=len({trial.number for trial in search.trials}),
        finished=states[FINISHED],
        stopped=states[STOPPED],
        failed=states[FAILED],
        winner=trial.number,
        step=report.step,
        values=trial.values,
        metric=search.metrics[0],
        reported=report.figures[search.metrics[0]],
        remeasured=winner.remeasured,
        front=tuple(trial.number for trial, _ in search.front()) if len(search.metrics) > 1 else None,
    )


def tidy(context: Context) -> None:
    """Once the artifact is complete, delete Tune's and the worker groups' files, and checkpoints without a record."""
    store = context.store
    if context.spec.searches_sampling:
        return
    for name in ("run", "gangs", f"{PROXIES}/run", f"{PROXIES}/gangs"):
        store.remove(store.path("tune", context.key, name))
    search = read_search(store, context.key)
    assert search is not None
    proxies = proxies_of(store, search)
    trials = [*search.trials, *(proxies.trials if proxies else [])]
    Needs(store, search.key).sweep({trial.key for trial in trials})
