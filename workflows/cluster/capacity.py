"""How many trainings fit into a cluster at the same time. Imports no Ray at its top: `plan` asks as well."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workflows.cluster.cluster_file import NodeKind, read_cluster_file
from workflows.spec import ClusterSpec, PipelineSpec, TrainSpec
from workflows.spec.space import trials_wanted

# A population's members that run at the same time share the head's own resource, of which Ray Train takes a
# thousandth for each of them: of more than so many, one too many would find room beside them.
_MAX_SEATS = 30

# Where `ray up` puts the file that it was given, on the head.
BOOTSTRAP = "~/ray_bootstrap_config.yaml"

# Memory of a node of which nobody says how much it has, in bytes.
_UNKNOWN = 1e18

Resources = dict[str, float]
"""of a node or a worker, by Ray's names: CPU, GPU, memory (bytes)"""


def worker_resources(train: TrainSpec) -> Resources:
    """What one worker of a training asks for."""
    asked = {"CPU": train.cpus_per_worker, "GPU": float(train.gpus_per_worker)}
    if train.memory_gb_per_worker:
        asked["memory"] = train.memory_gb_per_worker * 1e9
    return {name: amount for name, amount in asked.items() if amount}


def living_nodes() -> list[dict[str, Any]]:
    """What Ray says of every living node of the cluster that this process is connected to."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def nodes_of_cluster(cluster: ClusterSpec) -> list[Resources]:
    """The living nodes; of a cluster that scales up and says how far, those that it comes to have at most."""
    if cluster.scales_to is not None:
        return [{"CPU": cluster.scales_to.cpus, "GPU": cluster.scales_to.gpus, "memory": _UNKNOWN}]
    kinds = kinds_to_come(cluster)
    if not kinds:
        return [node["Resources"] for node in living_nodes()]
    return [
        {"CPU": kind.cpus, "GPU": kind.gpus, "memory": kind.memory_gb * 1e9 if kind.memory_gb else _UNKNOWN}
        for kind in kinds
        for _ in range(kind.most)
    ]


def kinds_to_come(cluster: ClusterSpec) -> list[NodeKind] | None:
    """The groups of nodes that `ray up` gave this cluster, as its head knows them; an empty list if they do not say
    what they have, and None where this is no head of such a cluster.
    """
    file = Path(BOOTSTRAP).expanduser()
    if cluster.address is None or not file.is_file():
        return None
    return read_cluster_file(file)


def trainings_at_once(nodes: Sequence[Resources], train: TrainSpec) -> int:
    """How many trainings can have all their workers at once; those of one may be on several nodes."""
    asked = worker_resources(train)
    # A little is added, since sums of fractions come out below whole numbers.
    workers = sum(
        min(math.floor(node.get(name, 0.0) / amount + 1e-9) for name, amount in asked.items()) for node in nodes
    )
    return workers // train.min_workers


def trials_at_once(spec: PipelineSpec, nodes: Sequence[Resources]) -> int:
    """How many trials of a search run at the same time, so that none waits for workers that others hold."""
    tune = spec.tune
    assert tune is not None
    asked, room = tune.max_concurrent, trainings_at_once(nodes, spec.train)
    if spec.cluster.address is None and asked is not None:  # no node will come to a local cluster
        asked = min(asked, room)
    limits = [asked or room, trials_wanted(tune), _MAX_SEATS if tune.scheduler.name == "population" else None]
    return min(limit for limit in limits if limit is not None)


def need_of_trial(train: TrainSpec) -> str:
    """What one trial asks for, in words."""
    count = train.min_workers
    each = ", ".join(_amount(name, amount) for name, amount in worker_resources(train).items())
    return f"{count} workers of {each} each" if count > 1 else f"1 worker of {each}"


def why_none_fits(nodes: Sequence[Resources], train: TrainSpec) -> str:
    """Both numbers, in words, where not one training fits; empty if one does."""
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
