"""How many trainings fit into a cluster at the same time. Functions import Ray, as `plan` must start without it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workflows.cluster.cluster_file import NodeKind, read_cluster_file
from workflows.spec import ClusterSpec, PipelineSpec, TrainSpec
from workflows.spec.space import trials_wanted

# Concurrent members of a population share the head node's own resource, of which Ray Train takes a thousandth for
# each. With more members than this, rounding would let one more start than the cluster has capacity for.
_MAX_SEATS = 30

# Where `ray up` stores its cluster file on the head node.
BOOTSTRAP = "~/ray_bootstrap_config.yaml"

# Memory in bytes of a node whose memory is not known.
_UNKNOWN = 1e18

Resources = dict[str, float]
"""resources of a node or a worker, by Ray's names: CPU, GPU, memory (bytes)"""


@dataclass(frozen=True)
class RayNode:
    """A node of a cluster, as Ray knows it."""

    id: str
    address: str
    resources: Resources


def worker_resources(train: TrainSpec) -> Resources:
    """What one worker of a training requests."""
    asked = {"CPU": train.cpus_per_worker, "GPU": float(train.gpus_per_worker)}
    if train.memory_gb_per_worker:
        asked["memory"] = train.memory_gb_per_worker * 1e9
    return {name: amount for name, amount in asked.items() if amount}


def living_nodes() -> list[RayNode]:
    """Ray's record of every live node of the connected cluster."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    return [RayNode(node["NodeID"], node["NodeManagerAddress"], node["Resources"]) for node in nodes]


def nodes_of_cluster(cluster: ClusterSpec) -> list[Resources]:
    """The resources of the live nodes; of all nodes at its maximum, if an autoscaling cluster's maximum is known."""
    if cluster.scales_to is not None:
        return [{"CPU": cluster.scales_to.cpus, "GPU": cluster.scales_to.gpus, "memory": _UNKNOWN}]
    kinds = kinds_to_come(cluster)
    if not kinds:
        return [node.resources for node in living_nodes()]
    return [
        {"CPU": kind.cpus, "GPU": kind.gpus, "memory": kind.memory_gb * 1e9 if kind.memory_gb else _UNKNOWN}
        for kind in kinds
        for _ in range(kind.most)
    ]


def kinds_to_come(cluster: ClusterSpec) -> list[NodeKind] | None:
    """The groups of nodes in the cluster file of `ray up`, read on the head node. An empty list if the file does not
    state their resources; None if this machine is not the head of such a cluster.
    """
    file = Path(BOOTSTRAP).expanduser()
    if cluster.address is None or not file.is_file():
        return None
    return read_cluster_file(file)


def trainings_at_once(nodes: Sequence[Resources], train: TrainSpec) -> int:
    """How many trainings can have all their workers at once; the workers of one may be on several nodes."""
    asked = worker_resources(train)
    # 1e-9, because ratios of fractions come out slightly below whole numbers.
    workers = sum(
        min(math.floor(node.get(name, 0.0) / amount + 1e-9) for name, amount in asked.items()) for node in nodes
    )
    return workers // train.min_workers


def trials_at_once(spec: PipelineSpec, nodes: Sequence[Resources], pack: int = 1) -> int:
    """The maximum number of concurrent trials for which no trial waits for workers that others hold, if every worker
    group trains `pack` of them.
    """
    tune = spec.tune
    assert tune is not None
    asked, capacity = tune.max_concurrent, pack * trainings_at_once(nodes, spec.train)
    if spec.cluster.address is None and asked is not None:  # a local cluster does not grow
        asked = min(asked, capacity)
    limits = [asked or capacity, trials_wanted(tune), _MAX_SEATS if tune.scheduler.name == "population" else None]
    return min(limit for limit in limits if limit is not None)


def need_of_trial(train: TrainSpec) -> str:
    """What one trial requests, as text."""
    count = train.min_workers
    each = ", ".join(_amount(name, amount) for name, amount in worker_resources(train).items())
    return f"{count} workers of {each} each" if count > 1 else f"1 worker of {each}"


def why_none_fits(nodes: Sequence[Resources], train: TrainSpec) -> str:
    """Why not one training fits, with what it needs and what the nodes have; empty if one fits."""
    if trainings_at_once(nodes, train):
        return ""
    asked = worker_resources(train)
    there = "; ".join(", ".join(_amount(name, node.get(name, 0.0)) for name in asked) for node in nodes)
    return (
        f"a trial needs {need_of_trial(train)} (train.num_workers, cpus_per_worker, gpus_per_worker, "
        f"memory_gb_per_worker), and the nodes have {there}; ask for less or give the cluster more"
    )


def _amount(name: str, amount: float) -> str:
    return f"{amount / 1e9:g} GB" if name == "memory" else f"{amount:g} {name}{'s' if amount != 1 else ''}"
