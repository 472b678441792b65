"""plan with a cluster file: each stage's nodes, those that would start, the price; or alternatives that would fit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from models.base.sizes import known_sizes
from models.errors import RayconteurError
from models.training.memory import estimate_training_memory
from workflows.cluster.cluster_file import NodeKind
from workflows.cluster.fit import UTILISATION, Fit, Need, fit_stage, hours, size_text
from workflows.cluster.price import why_no_price
from workflows.record import Record, optional
from workflows.runs.search_cost import SearchCost, cost_lines, search_cost, training_operations
from workflows.search.pack import pack_of
from workflows.spec import AdapterSpec, PipelineSpec, TrainSpec, ZeroSpec

# Do not propose a larger ZeRO group, nor fewer tokens per pass.
_MAX_PROPOSED = 1024
_FEW_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class FitRow(Record):
    """How a stage fits on the nodes of a cluster."""

    workers: int
    each: str
    """a worker's resources, as text"""
    fits: bool
    nodes: Mapping[str, int]
    """number of nodes by kind"""
    come_up: Mapping[str, int]
    """those of them that the cluster would have to start"""
    price_per_hour: float | None
    why_not: str
    would_fit: tuple[str, ...]
    """alternatives that would fit, as text"""
    is_unknown: bool | None = optional()
    """whether it may fit on nodes whose size is not known"""
    hours: float | None = optional()
    """for a training, if the GPUs' rate is known; for a search, see there"""
    price: float | None = None
    trials_at_once: int | None = optional()
    search: SearchCost | None = optional()

    def to_json(self) -> dict[str, object]:
        """Hours and price are there together."""
        plain = super().to_json()
        return plain if self.hours is not None else {name: plain[name] for name in plain if name != "price"}


@dataclass(frozen=True, kw_only=True)
class ClusterPlan(Record):
    """How every stage fits on a cluster."""

    nodes: tuple[NodeKind, ...]
    stages: Mapping[str, FitRow]


def training_memory_gb(base_model: str, train: TrainSpec) -> float | None:
    """An estimate of one training worker's needs; None if the base model is not on this machine."""
    sizes = known_sizes(base_model)
    if sizes is None:
        return None
    # A worker has to measure what `auto` will be; for CPUs, assume the format that needs more memory.
    either = "bf16" if train.gpus_per_worker else "fp32"
    return estimate_training_memory(
        sizes,
        micro_batch_tokens=train.pass_tokens,
        precision=train.precision if train.precision != "auto" else either,
        adapter_rank=train.adapter.rank if train.adapter else None,
        zero_stage=train.zero.stage,
        num_workers=train.min_workers,
    ).total_gb


def plan_on(spec: PipelineSpec, kinds: Sequence[NodeKind], tokens: int, per_epoch: int) -> ClusterPlan:
    """How every stage fits; `tokens` is the number of tokens of one training, `per_epoch` that of an epoch."""
    evaluate, serve = spec.evaluate, spec.serve
    searches_training = spec.tune is not None and not spec.searches_sampling
    training = _need("tune" if searches_training else "train", spec, spec.train)
    needs = [training]
    if spec.train.objective.reference != "none":
        needs.insert(0, Need("reference", training.workers, training.cpus, training.gpus))
    weights = _weights_gb(spec)
    both = weights * (1 if spec.train.adapter else 2)
    needs.append(
        _inference("evaluate", evaluate.num_workers, evaluate.cpus_per_worker, evaluate.gpus_per_worker, both)
    )
    replicas = max(1, serve.min_replicas)
    needs.append(_inference("deploy", replicas, serve.cpus_per_replica, serve.gpus_per_replica, weights))
    fits = {need.stage: fit_stage(need, kinds, _others(spec) if need is training else ()) for need in needs}
    rows, fit = {stage: _row(fit) for stage, fit in fits.items()}, fits[training.stage]
    if searches_training and not fit.why_not:
        rows["tune"] = _with_search(rows["tune"], spec, kinds, training, tokens, per_epoch)
    elif (operations := training_operations(spec, tokens)) and (took := hours(operations, fit, kinds)) is not None:
        price = fit.price_per_hour and fit.price_per_hour * took
        rows["train"] = replace(rows["train"], hours=took, price=price)
    return ClusterPlan(nodes=tuple(kinds), stages=rows)


def _with_search(
    row: FitRow, spec: PipelineSpec, kinds: Sequence[NodeKind], need: Need, tokens: int, per_epoch: int
) -> FitRow:
    """The row of a search of which one trial fits."""
    try:
        pack = pack_of(spec)
    except RayconteurError as error:
        return replace(row, fits=False, why_not=str(error))
    if why := why_no_price(spec, spec.cluster.price_per_hour or row.price_per_hour):
        return replace(row, fits=False, why_not=why)
    search = search_cost(spec, kinds, need, tokens, per_epoch, pack)
    return replace(row, search=search, trials_at_once=search.at_once)


def _inference(stage: str, workers: int, cpus: float, gpus: float, weights_gb: float) -> Need:
    """Memory of the weights in bf16, divided among a worker's GPUs; replies use the rest."""
    return Need(stage, workers, cpus, gpus, gpu_memory_gb=weights_gb / max(1.0, gpus) if gpus else 0.0)


def _weights_gb(spec: PipelineSpec) -> float:
    sizes = known_sizes(spec.base_model)
    return sizes["num_parameters"] * 2 / 1e9 if sizes else 0.0


def _need(stage: str, spec: PipelineSpec, train: TrainSpec) -> Need:
    memory = training_memory_gb(spec.base_model, train) or 0.0
    return Need(
        stage,
        train.min_workers,
        train.cpus_per_worker,
        float(train.gpus_per_worker),
        memory_gb=train.memory_gb_per_worker or (0.0 if train.gpus_per_worker else memory),
        gpu_memory_gb=memory if train.gpus_per_worker else 0.0,
    )


def _others(spec: PipelineSpec) -> Iterator[tuple[str, Need]]:
    """Alternative settings for the same training, the smallest change first."""
    train = spec.train
    ways: list[dict[str, object]] = [{}]
    count = 2
    while count <= _MAX_PROPOSED:
        if count != train.min_workers or train.zero.stage < 3:
            ways.append({"num_workers": count, "zero": ZeroSpec(stage=3)})
        count *= 2
    if train.adapter is None:
        ways.append({"adapter": AdapterSpec(rank=16)})
    ways += [{**way, "batch_tokens": _FEW_TOKENS} for way in ways if train.pass_tokens > _FEW_TOKENS]
    for change in ways[1:]:
        need = _need("train", spec, train.model_copy(update=change))
        words = " ".join(f"--set train.{name}={_short(value)}" for name, value in change.items())
        yield f"{need.workers} workers of about {need.gpu_memory_gb or need.memory_gb:.1f} GB each: {words}", need


def _short(value: object) -> str:
    """A value in the notation of `--set`."""
    if isinstance(value, ZeroSpec):
        return f"'{{stage: {value.stage}}}'"
    return f"'{{rank: {value.rank}}}'" if isinstance(value, AdapterSpec) else str(value)


def _row(fit: Fit) -> FitRow:
    return FitRow(
        workers=fit.need.workers,
        each=fit.need.each(),
        fits=not fit.why_not,
        nodes=fit.nodes,
        come_up=fit.come_up,
        price_per_hour=fit.price_per_hour,
        why_not=fit.why_not,
        would_fit=tuple(fit.would),
        is_unknown=fit.is_unknown or None,
    )


def lines_on(plan: ClusterPlan) -> list[str]:
    """The fit as lines of text."""
    lines = ["nodes:", *map(_node_line, plan.nodes)]
    for stage, row in plan.stages.items():
        lines += _fit_lines(stage, row)
    return lines


def _node_line(kind: NodeKind) -> str:
    if kind.unknown:
        return f"  {kind.name:<16} {kind.fewest} to {kind.most}: size not known: {kind.unknown}"
    spot = ", spot" if kind.is_spot else ""
    price = f", ${kind.price_per_hour:g} an hour" if kind.price_per_hour else ""
    return f"  {kind.name:<16} {kind.fewest} to {kind.most}: {size_text(kind)}{spot}{price}"


def _fit_lines(stage: str, row: FitRow) -> list[str]:
    if not row.fits:
        others = [f"            would fit: {words}" for words in row.would_fit[:4]]
        verdict = "NOT KNOWN" if row.is_unknown else "DOES NOT FIT"
        return [f"  {stage:<9} {verdict}: {row.why_not}", *others]
    nodes = ", ".join(f"{count} x {name}" for name, count in row.nodes.items())
    new = ", ".join(f"{count} x {name}" for name, count in row.come_up.items())
    price = f"; ${row.price_per_hour:.2f} an hour" if row.price_per_hour else ""
    starts = f", of which {new} start" if new else ""
    lines = [f"  {stage:<9} {row.workers} x worker of {row.each}: fits on {nodes}{starts}{price}"]
    if row.hours is not None:
        cost = f", about ${row.price:,.2f}" if row.price else ""
        lines.append(f"            about {row.hours:.1f} hours{cost}, at {UTILISATION:.0%} of the GPUs' rate")
    if row.search is not None:
        lines += [f"            {line}" for line in cost_lines(row.search)]
    return lines
