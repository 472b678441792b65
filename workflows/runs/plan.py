"""plan: what a run would do, what it needs and what is available; changes nothing."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from models.errors import RayconteurError
from workflows.cluster.capacity import (
    Resources,
    may_grow_beyond,
    nodes_of_cluster,
    trainings_at_once,
    trials_at_once,
    why_none_fits,
    why_too_few,
    workers_of,
)
from workflows.cluster.cluster_file import read_cluster_file
from workflows.cluster.price import price_of_trainings, why_no_price
from workflows.corpus.files.sources import is_packed, source_files
from workflows.figures import PrepareFigures
from workflows.progress import duration
from workflows.record import Record, optional
from workflows.runs.plan_cluster import ClusterPlan, lines_on, plan_on, training_memory_gb
from workflows.runs.state import StageState, examine
from workflows.search.pack import pack_of
from workflows.spec import PipelineSpec
from workflows.spec.space import proxy_pipeline, trials_wanted
from workflows.store import Store
from workflows.training.foresight import troubles
from workflows.training.inputs import inputs_of
from workflows.training.readings import known_reading, reading_text
from workflows.training.steps import num_steps, steps_per_epoch

# To estimate tokens before tokenization, for English chat text as JSON, with and without gzip.
_BYTES_PER_TOKEN = 4.6
_PACKED_FACTOR = 4.0


@dataclass(frozen=True, kw_only=True)
class StageRow(Record):
    """Whether a stage will run, and why."""

    stage: str
    up_to_date: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class There(Record):
    """The resources of the cluster or of this machine."""

    cpus: float
    gpus: float
    memory_gb: float


@dataclass(frozen=True, kw_only=True)
class SearchAsks(Record):
    """The resources that each trial of a search needs."""

    workers: int
    cpus: float
    gpus: float
    trials: int | None
    at_once: int
    pack: int = 1
    """number of trials that share each group of workers"""
    max_cost: float | None = optional()
    price_per_hour: float | None = optional()
    """dollars for an hour of the nodes that its trials use"""
    fits: bool
    why_not: str


@dataclass(frozen=True, kw_only=True)
class StageAsks(Record):
    """The resources that a stage needs."""

    workers: int
    most_workers: int | None = optional()
    """if the stage can use more workers than it needs"""
    cpus: float
    gpus: float
    fits: bool
    why_not: str | None = optional()


@dataclass(frozen=True, kw_only=True)
class ResourcesPlan(Record):
    """The available resources, and those that each stage needs."""

    there: There
    asked: Mapping[str, SearchAsks | StageAsks]


@dataclass(frozen=True, kw_only=True)
class TrainingPlan(Record):
    """The size of a training, or of a trial of a search."""

    tokens_per_epoch: int
    tokens_are_estimated: bool
    steps: int
    pair_steps: int
    tokens: int
    memory_gb_per_worker: float | None
    """None until the base model is on this machine"""
    is_of_a_trial: bool
    conversations_are: str | None
    """how the model reads conversations, if it cannot pack them"""


@dataclass(frozen=True, kw_only=True)
class Plan(Record):
    """What a run would do, and what it needs."""

    pipeline: str
    stages: tuple[StageRow, ...]
    cluster: ClusterPlan | None = optional()
    """how it fits on the cluster of the given cluster file"""
    resources: ResourcesPlan | None = optional()
    """else"""
    training: TrainingPlan
    troubles: tuple[str, ...]
    """why the run would fail"""
    proxy: "Plan | None" = optional()
    """what the search of `tune.proxy` would do before, and what it needs"""

    @property
    def will_fail(self) -> bool:
        """Whether a run would fail: a mistake, or a stage that is not up to date and does not fit."""
        asked = self.resources.asked if self.resources else {}
        to_run = [row.stage for row in self.stages if not row.up_to_date]
        fails = bool(self.troubles) or any(not asked[stage].fits for stage in to_run if stage in asked)
        return fails or (self.proxy is not None and self.proxy.will_fail)


def plan_of(spec: PipelineSpec, store: Store, states: list[StageState], cluster_file: str | None = None) -> Plan:
    """The plan of a run; with a cluster file, for that cluster."""
    training = _training(spec, store, states[0])
    will_train = any(state.stage.name in ("tune", "train") and state.artifact is None for state in states)
    return Plan(
        pipeline=spec.name,
        stages=tuple(
            StageRow(stage=state.stage.name, up_to_date=state.artifact is not None, reason=state.reason)
            for state in states
        ),
        cluster=plan_on(spec, read_cluster_file(cluster_file), training.tokens, training.tokens_per_epoch)
        if cluster_file
        else None,
        resources=None if cluster_file else _resources(spec),
        training=training,
        troubles=tuple(troubles(spec)) if will_train else (),
        proxy=_proxy(spec, store, states, cluster_file),
    )


def _proxy(spec: PipelineSpec, store: Store, states: list[StageState], cluster_file: str | None) -> Plan | None:
    """The plan of the search on the small model; None if there is none to do."""
    will_search = any(state.stage.name == "tune" and state.artifact is None for state in states)
    if not will_search or spec.tune is None or spec.tune.proxy is None:
        return None
    proxy = proxy_pipeline(spec)
    plan = plan_of(proxy, store, examine(proxy, store, "tune"), cluster_file)
    kept = ("prepare", "reference", "tune")  # it trains and serves nothing else
    if plan.resources is not None:
        asked = {stage: row for stage, row in plan.resources.asked.items() if stage in kept}
        plan = replace(plan, resources=replace(plan.resources, asked=asked))
    if plan.cluster is not None:
        stages = {stage: row for stage, row in plan.cluster.stages.items() if stage in kept}
        plan = replace(plan, cluster=replace(plan.cluster, stages=stages))
    return replace(plan, troubles=())  # which are those of the pipeline


def _resources(spec: PipelineSpec) -> ResourcesPlan:
    train, serve = spec.train, spec.serve
    there = _there(spec)
    nodes = _nodes(spec, there)
    asked: dict[str, SearchAsks | StageAsks] = {}
    if spec.tune is not None and not spec.searches_sampling:
        asked["tune"] = _search(spec, nodes)  # train uses the winner's checkpoint
    stages = [] if asked else ["train", *["tune"] * spec.searches_sampling]
    stages = ["reference"] * (train.objective.reference != "none") + stages + ["evaluate", "deploy"]
    for stage in stages:
        workers = workers_of(spec)[stage]
        count, cpus, gpus = workers.count, workers.each.get("CPU", 0.0), workers.each.get("GPU", 0.0)
        if stage == "deploy":  # a replica may be several workers
            count, cpus, gpus = max(1, serve.min_replicas), serve.cpus_per_replica, serve.gpus_per_replica
        why_not = "" if may_grow_beyond(spec.cluster) else why_too_few(nodes, workers)
        asked[stage] = StageAsks(
            workers=count,
            most_workers=train.max_workers if stage == "train" and train.max_workers != count else None,
            cpus=count * cpus,
            gpus=count * gpus,
            fits=not why_not,
            why_not=why_not or None,
        )
    return ResourcesPlan(there=there, asked=asked)


def _search(spec: PipelineSpec, nodes: list[Resources]) -> SearchAsks:
    train = spec.train
    assert spec.tune is not None
    why_not = "" if may_grow_beyond(spec.cluster) else why_none_fits(nodes, train)
    try:
        pack = pack_of(spec)
    except RayconteurError as error:
        pack, why_not = 1, why_not or str(error)
    at_once = trials_at_once(spec, nodes, pack)
    price = price_of_trainings(spec, max(1, min(at_once, trainings_at_once(nodes, train))))
    why_not = why_not or why_no_price(spec, price)
    return SearchAsks(
        workers=train.min_workers,
        cpus=train.min_workers * train.cpus_per_worker,
        gpus=float(train.min_workers * train.gpus_per_worker),
        trials=trials_wanted(spec.tune),
        at_once=at_once,
        pack=pack,
        max_cost=spec.tune.max_cost,
        price_per_hour=price,
        fits=not why_not,
        why_not=why_not,
    )


def _there(spec: PipelineSpec) -> There:
    if spec.cluster.address is not None:
        import ray

        have = ray.cluster_resources()
        return There(cpus=have.get("CPU", 0.0), gpus=have.get("GPU", 0.0), memory_gb=have.get("memory", 0) / 1e9)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    gpus = len([name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()])
    return There(cpus=spec.cluster.num_cpus or os.cpu_count() or 1, gpus=gpus, memory_gb=round(memory, 1))


def _nodes(spec: PipelineSpec, there: There) -> list[Resources]:
    if spec.cluster.address is not None:
        return nodes_of_cluster(spec.cluster)
    return [{"CPU": there.cpus, "GPU": there.gpus, "memory": there.memory_gb * 1e9}]


def _training(spec: PipelineSpec, store: Store, prepare: StageState) -> TrainingPlan:
    train, corpus = spec.train, prepare.artifact
    if corpus is not None:
        tokens = PrepareFigures.from_json(corpus.figures).tokens
        in_epoch = steps_per_epoch(spec, store, inputs_of(spec, {"prepare": prepare.key}))
    else:
        tokens = _estimated_tokens(spec)
        per_step = train.pass_tokens * train.passes * train.max_workers
        in_epoch = max(1, -(-tokens // per_step))
    steps = num_steps(train, in_epoch)
    memory = training_memory_gb(spec.base_model, train)
    reading = known_reading(spec)
    return TrainingPlan(
        tokens_per_epoch=tokens,
        # A teacher's replies differ in length from those that they replace.
        tokens_are_estimated=corpus is None or train.objective.reference == "replies",
        steps=steps,
        pair_steps=train.pair_steps,
        tokens=int(tokens * steps / in_epoch),
        memory_gb_per_worker=None if memory is None else round(memory, 1),
        is_of_a_trial=spec.tune is not None and not spec.searches_sampling,
        conversations_are=reading_text(reading) if reading and reading.how != "packed" else None,
    )


def _estimated_tokens(spec: PipelineSpec) -> int:
    """An estimate from the sizes of the files; ignores `limit`."""
    total = 0.0
    for file in source_files(spec):
        total += file.size * (_PACKED_FACTOR if is_packed(file) else 1.0) / _BYTES_PER_TOKEN
    return max(1, int(total * (1 - spec.data.held_out_share)))


def plan_text(plan: Plan) -> str:
    """The plan as text."""
    lines = [f"pipeline {plan.pipeline}"]
    if plan.proxy is not None:
        before = plan_text(plan.proxy).splitlines()
        lines += ["first, the search on the proxy (tune.proxy):", *(f"  {line}" for line in before), "then:"]
    for row in plan.stages:
        word = "up to date" if row.up_to_date else f"will run: {row.reason}"
        lines.append(f"  {row.stage:<9} {word}")
    lines += lines_on(plan.cluster) if plan.cluster else []
    lines += _resource_lines(plan.resources) if plan.resources else []
    lines += _training_lines(plan.training)
    lines += [f"WILL FAIL: {trouble}" for trouble in plan.troubles]
    return "\n".join(lines)


def _training_lines(training: TrainingPlan) -> list[str]:
    about = "about " if training.tokens_are_estimated else ""
    memory = training.memory_gb_per_worker
    what = "a trial" if training.is_of_a_trial else "training"
    pair = (
        f" of likelihood training, then up to {training.pair_steps:,} of the pair, as long again for the control"
        if training.pair_steps
        else ""
    )
    line = f"{what}: {about}{training.tokens:,} tokens in {about}{training.steps:,} steps{pair}, " + (
        f"about {memory:g} GB a worker" if memory else "memory unknown until the base model is here"
    )
    return [line, *([] if training.conversations_are is None else [f"  {training.conversations_are}"])]


def _resource_lines(resources: ResourcesPlan) -> list[str]:
    there = resources.there
    lines = [f"there: {there.cpus:g} CPUs, {there.gpus:g} GPUs, {there.memory_gb:g} GB of memory"]
    for stage, row in resources.asked.items():
        verdict = "fits" if row.fits else "DOES NOT FIT"
        gpus = f", {row.gpus:g} GPUs" if row.gpus else ""
        lines.append(f"  {stage:<9} needs {row.workers} x worker{_more(row)}: {row.cpus:g} CPUs{gpus}: {verdict}")
        if isinstance(row, SearchAsks) and row.max_cost is not None and row.price_per_hour is not None:
            time = duration(row.max_cost / row.price_per_hour * 3600)
            lines.append(f"            at most ${row.max_cost:,.2f}: {time} at ${row.price_per_hour:,.2f} an hour")
        if row.why_not:
            lines.append(f"            {row.why_not}")
    return lines


def _more(row: SearchAsks | StageAsks) -> str:
    if isinstance(row, SearchAsks):
        trials = f"{row.trials} trials, " if row.trials else ""
        shared = f" for {row.pack} packed trials" if row.pack > 1 else " a trial"
        return f"{shared}; {trials}{row.at_once} at once"
    return f" (up to {row.most_workers})" if row.most_workers else ""
