"""The workers that each stage starts, and how many of them the nodes of a cluster hold: a worker runs on one node.

Functions import Ray, as `plan` must start without it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from workflows.cluster.cluster_file import NodeKind, read_cluster_file
from workflows.spec import ClusterSpec, PipelineSpec, ScaleSpec, TrainSpec, TuneSpec
from workflows.spec.space import trials_wanted

# Concurrent members of a population share the head node's own resource, of which Ray Train takes a thousandth for
# each. With more members than this, rounding would let one more start than the cluster has capacity for.
_MAX_SEATS = 30

# Where `ray up` stores its cluster file on the head node.
BOOTSTRAP = "~/ray_bootstrap_config.yaml"

# Memory in bytes of a node whose memory is not known.
_UNKNOWN = 1e18

# Sizes of nodes that an error lists.
_MAX_LISTED = 6

Resources = dict[str, float]
"""resources of a node or a worker, by Ray's names: CPU, GPU, memory (bytes)"""


@dataclass(frozen=True)
class RayNode:
    """A node of a cluster, as Ray knows it."""

    id: str
    address: str
    resources: Resources


@dataclass(frozen=True)
class Workers:
    """A number of identical workers."""

    field: str
    """the field that requests their number"""
    count: int
    each: Resources
    fields: Mapping[str, str]
    """the field that requests each resource of a worker"""

    def text(self) -> str:
        """Their number, and what each requests."""
        each = _text(self.each)
        return f"{self.count} workers of {each} each" if self.count > 1 else f"1 worker of {each}"


def worker_resources(train: TrainSpec) -> Resources:
    """What one worker of a training requests."""
    return _training(train).each


def workers_of(spec: PipelineSpec) -> dict[str, Workers]:
    """The workers of each stage that has its own, by the stage's name."""
    evaluate, serve = spec.evaluate, spec.serve
    training = _training(spec.train)
    judging = {"CPU": evaluate.cpus_per_worker, "GPU": evaluate.gpus_per_worker}
    # The engine vllm has a worker for each GPU of a replica, and these may be on several nodes.
    parts = max(1, int(serve.gpus_per_replica))
    serving = {"CPU": serve.cpus_per_replica if parts == 1 else 0.0, "GPU": serve.gpus_per_replica / parts}
    evaluating = _workers("evaluate.num_workers", evaluate.num_workers, judging)
    return {
        "reference": replace(training, each={name: each for name, each in training.each.items() if name != "memory"}),
        "tune": evaluating if spec.searches_sampling else training,
        "train": training,
        "evaluate": evaluating,
        "optimize": _workers("optimize.cpus_per_worker", 1, {"CPU": spec.optimize_cpus}),
        "deploy": _workers("serve.min_replicas", max(1, serve.min_replicas) * parts, serving, "replica"),
    }


def _training(train: TrainSpec) -> Workers:
    memory = (train.memory_gb_per_worker or 0.0) * 1e9
    each = {"CPU": train.cpus_per_worker, "GPU": float(train.gpus_per_worker), "memory": memory}
    return _workers("train.num_workers", train.min_workers, each)


def _workers(field: str, count: int, each: Resources, noun: str = "worker") -> Workers:
    section = field.partition(".")[0]
    names = {"CPU": f"cpus_per_{noun}", "GPU": f"gpus_per_{noun}", "memory": f"memory_gb_per_{noun}"}
    fields = {name: f"{section}.{last}" for name, last in names.items()}
    return Workers(field, count, {name: amount for name, amount in each.items() if amount}, fields)


def how_many_fit(nodes: Sequence[Resources], each: Resources) -> int:
    """How many workers that request this the nodes hold."""
    # 1e-9, because ratios of fractions come out slightly below whole numbers.
    return sum(
        min(math.floor(node.get(name, 0.0) / amount + 1e-9) for name, amount in each.items()) for node in nodes
    )


def why_too_few(nodes: Sequence[Resources], workers: Workers) -> str:
    """Why the nodes do not hold all these workers, with what is needed and what the nodes have; empty if they do."""
    fit = how_many_fit(nodes, workers.each)
    if fit >= workers.count:
        return ""
    there = sizes_text(nodes, workers.each)
    if fit:
        return f"{workers.field}: needs {workers.text()}, the nodes hold {fit}: {there}; request less or add nodes"
    most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in workers.each}
    beyond = [name for name, amount in workers.each.items() if amount > most[name]] or [*workers.each]
    fields = ", ".join(workers.fields[name] for name in beyond)
    return (
        f"{fields}: needs {workers.text()}, and no node is large enough for one: {there}; request less per worker or "
        "add a larger node"
    )


def sizes_text(nodes: Sequence[Resources], names: Iterable[str]) -> str:
    """What the nodes have of these resources, the largest first."""
    sizes = Counter(tuple(node.get(name, 0.0) for name in names) for node in nodes)
    listed = sorted(sizes.items(), key=lambda item: item[0][::-1], reverse=True)
    parts = [
        f"{count} node{'s' if count > 1 else ''} of {_text(dict(zip(names, size, strict=True)))}"
        for size, count in listed[:_MAX_LISTED]
    ]
    rest = sum(count for _, count in listed[_MAX_LISTED:])
    return "; ".join([*parts, *([f"{rest} smaller ones"] if rest else [])]) or "there are no nodes"


def living_nodes() -> list[RayNode]:
    """Ray's record of every live node of the connected cluster."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    return [RayNode(node["NodeID"], node["NodeManagerAddress"], node["Resources"]) for node in nodes]


def nodes_of_cluster(cluster: ClusterSpec) -> list[Resources]:
    """The resources of the live nodes; of all nodes at its maximum, if an autoscaling cluster's maximum is known."""
    if cluster.scales_to is not None:
        return _largest_nodes(cluster.scales_to)
    kinds = [kind for kind in kinds_to_come(cluster) or [] if not kind.unknown]
    if not kinds:
        return [node.resources for node in living_nodes()]
    return [
        {"CPU": kind.cpus, "GPU": kind.gpus, "memory": kind.memory_gb * 1e9 if kind.memory_gb else _UNKNOWN}
        for kind in kinds
        for _ in range(kind.most)
    ]


def _largest_nodes(scale: ScaleSpec) -> list[Resources]:
    """Nodes of the largest size, up to the cluster's maximum; a single one if the size is not known."""
    memory = scale.memory_gb_per_node * 1e9 if scale.memory_gb_per_node else _UNKNOWN
    if scale.cpus_per_node is None:
        return [{"CPU": scale.cpus, "GPU": scale.gpus, "memory": memory}]
    gpus = scale.gpus_per_node or 0.0
    with_gpus = math.ceil(scale.gpus / gpus) if gpus else 0
    return [
        {"CPU": scale.cpus_per_node, "GPU": gpus if number < with_gpus else 0.0, "memory": memory}
        for number in range(max(with_gpus, math.ceil(scale.cpus / scale.cpus_per_node)))
    ]


def kinds_to_come(cluster: ClusterSpec) -> list[NodeKind] | None:
    """The groups of nodes in the cluster file of `ray up`, read on the head node; None if this machine is not the
    head of such a cluster.
    """
    file = Path(BOOTSTRAP).expanduser()
    if cluster.address is None or not file.is_file():
        return None
    return read_cluster_file(file)


def may_grow_beyond(cluster: ClusterSpec) -> bool:
    """Whether nodes of a size that is not known may start, as its cluster file does not state it."""
    return cluster.scales_to is None and any(kind.unknown for kind in kinds_to_come(cluster) or [])


def trainings_at_once(nodes: Sequence[Resources], train: TrainSpec) -> int:
    """How many trainings can have all their workers at once; the workers of one may be on several nodes."""
    return how_many_fit(nodes, worker_resources(train)) // train.min_workers


def trials_at_once(spec: PipelineSpec, nodes: Sequence[Resources], pack: int = 1) -> int:
    """The maximum number of concurrent trials for which no trial waits for workers that others hold, if every worker
    group trains `pack` of them.
    """
    tune = spec.tune
    assert tune is not None
    capacity = pack * trainings_at_once(nodes, spec.train)
    if spec.cluster.address is not None and tune.max_concurrent is not None:  # other clusters do not grow
        capacity = tune.max_concurrent
    return trials_within(tune, capacity, trials_wanted(tune))


def trials_within(tune: TuneSpec, capacity: int, wanted: int | None) -> int:
    """The number of concurrent trials of a search that wants so many, on nodes with the capacity for `capacity`."""
    seats = _MAX_SEATS if tune.scheduler.name == "population" else None
    limits = [capacity, tune.max_concurrent, wanted, seats]
    return min(limit for limit in limits if limit is not None)


def need_of_trial(train: TrainSpec) -> str:
    """What one trial requests, as text."""
    return _training(train).text()


def why_none_fits(nodes: Sequence[Resources], train: TrainSpec) -> str:
    """Why not one training fits, with what it needs and what the nodes have; empty if one fits."""
    return why_too_few(nodes, _training(train))


def _text(resources: Resources) -> str:
    return ", ".join(_amount(name, amount) for name, amount in resources.items())


def _amount(name: str, amount: float) -> str:
    if name == "memory":
        return "unknown memory" if amount == _UNKNOWN else f"{amount / 1e9:.4g} GB"
    return f"{amount:g} {name}{'s' if amount != 1 else ''}"
