"""Check whether a pipeline fits on a cluster that is not running yet: nodes for each stage, obstacles, alternatives.

fit = fit_stage(Need("train", 8, cpus=1, gpus=1, gpu_memory_gb=21.0), read_cluster_file("cluster.yaml"))
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from workflows.cluster.cluster_file import NodeKind

# Share of a GPU's memory: allocators leave gaps.
_USABLE = 0.95
# Share of a GPU's nominal rate: an assumption, until a training has measured its own.
UTILISATION = 0.4


@dataclass(frozen=True)
class Need:
    """The workers that a stage needs."""

    stage: str
    workers: int
    cpus: float
    """of one worker, as the fields below"""
    gpus: float
    memory_gb: float = 0.0
    gpu_memory_gb: float = 0.0

    def each(self) -> str:
        """One worker's resources, as text."""
        parts = [f"{self.cpus:g} CPU{'s' if self.cpus != 1 else ''}"]
        parts += [f"{self.gpus:g} GPU{'s' if self.gpus != 1 else ''}"] if self.gpus else []
        parts += [f"about {self.gpu_memory_gb:.1f} GB of GPU memory"] if self.gpu_memory_gb else []
        parts += [f"{self.memory_gb:g} GB"] if self.memory_gb else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Fit:
    """The nodes that a stage's workers would take."""

    need: Need
    nodes: dict[str, int]
    """number of nodes by kind"""
    come_up: dict[str, int]
    """those of them that the cluster would have to start"""
    price_per_hour: float | None
    why_not: str
    """empty if it fits"""
    is_unknown: bool = False
    """whether it may fit on nodes whose size is not known"""
    would: list[str] = field(default_factory=list)
    """alternatives that would fit"""


def fit_stage(need: Need, kinds: Sequence[NodeKind], would: Iterable[tuple[str, Need]] = ()) -> Fit:
    """Place the workers: on nodes without GPUs if they need none; on-demand before spot nodes, cheap nodes first.

    `would` lists alternatives, each with its description; if the need does not fit, the result names those that do.
    """
    left, nodes = need.workers, {}
    for kind in sorted(kinds, key=_order(need)):
        if (per_node := workers_on(kind, need)) and left > 0:
            nodes[kind.name] = min(kind.most, math.ceil(left / per_node))
            left -= nodes[kind.name] * per_node
    by_name = {kind.name: kind for kind in kinds}
    if left > 0:
        others = [words for words, other in would if not fit_stage(other, kinds).why_not]
        is_unknown = any(kind.unknown for kind in kinds)
        return Fit(need, {}, {}, None, _why_not(need, kinds), is_unknown, others)
    come_up = {name: count - by_name[name].fewest for name, count in nodes.items() if count > by_name[name].fewest}
    prices = [by_name[name].price_per_hour for name in nodes]
    price = None
    if all(known is not None for known in prices):
        price = sum((by_name[name].price_per_hour or 0.0) * count for name, count in nodes.items())
    return Fit(need, nodes, come_up, price, "")


def workers_on(kind: NodeKind, need: Need) -> int:
    """How many of these workers fit on one node; none if its size is not known."""
    limits = [0.0 if kind.unknown else kind.cpus / need.cpus]
    if need.gpus:
        limits.append(kind.gpus / need.gpus)
        if kind.gpu_memory_gb and need.gpu_memory_gb > kind.gpu_memory_gb * _USABLE:
            return 0
    if need.memory_gb and kind.memory_gb:
        limits.append(kind.memory_gb / need.memory_gb)
    return math.floor(min(limits) + 1e-9)


def in_all(kinds: Sequence[NodeKind], need: Need) -> int:
    """How many of these workers fit on the whole cluster once all its nodes run."""
    return sum(kind.most * workers_on(kind, need) for kind in kinds)


def hours(operations: float, fit: Fit, kinds: Sequence[NodeKind]) -> float | None:
    """Hours for these floating-point operations at `UTILISATION` of the GPUs' rates; None if a rate is unknown."""
    by_name = {kind.name: kind for kind in kinds}
    rates = [by_name[name].tflops for name in fit.nodes]
    if not fit.need.gpus or not rates or any(rate is None for rate in rates):
        return None
    slowest = min(rate for rate in rates if rate is not None)
    return operations / (fit.need.workers * slowest * 1e12 * UTILISATION) / 3600


def _order(need: Need) -> Callable[[NodeKind], tuple[bool, bool, float]]:
    return lambda kind: (kind.gpus > 0 and not need.gpus, kind.is_spot, kind.price_per_hour or 0.0)


def size_text(kind: NodeKind) -> str:
    """What a node has, as text."""
    parts = [f"{kind.cpus:g} CPUs"]
    if kind.gpus:
        memory = f"of {kind.gpu_memory_gb:g} GB" if kind.gpu_memory_gb else "of unknown memory"
        parts.append(f"{kind.gpus:g} x GPU {memory}")
    parts += [f"{kind.memory_gb:g} GB"] if kind.memory_gb else []
    return ", ".join(parts)


def _why_not(need: Need, kinds: Sequence[NodeKind]) -> str:
    asks = f"it needs {need.workers} x worker of {need.each()}"
    if unknown := "; ".join(f"{kind.name}: {kind.unknown}" for kind in kinds if kind.unknown):
        return f"{asks}; nodes of known size hold {in_all(kinds, need)}, and not all sizes are known ({unknown})"
    suited = [kind for kind in kinds if kind.gpus or not need.gpus]
    if not suited:
        what = "GPUs" if kinds else "CPUs or GPUs"
        return f"{asks}, and no nodes of the cluster have {what}; add a group that has them, or request none"
    if not in_all(suited, need):
        have = "; ".join(f"{kind.name}: {size_text(kind)}" for kind in suited)
        return f"{asks}, and no node has the capacity for one ({have}); request less per worker, or add larger nodes"
    have = "; ".join(f"{kind.name}: {workers_on(kind, need)} a node, at most {kind.most} nodes" for kind in suited)
    there = f"the cluster has the capacity for {in_all(kinds, need)} ({have})"
    return f"{asks}, and {there}; raise max_workers, or request less"
