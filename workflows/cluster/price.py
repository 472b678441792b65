"""The price of the nodes that a search uses (`tune.max_cost`)."""

from workflows.cluster.capacity import kinds_to_come
from workflows.cluster.fit import Need, fit_stage
from workflows.spec import PipelineSpec


def price_of_trainings(spec: PipelineSpec, trainings: int) -> float | None:
    """Dollars for an hour of the nodes that so many trainings at once use; None if no price is known.

    It is `cluster.price_per_hour`; on the head of a cluster of `ray up`, the cluster file has the nodes' prices.
    """
    if spec.cluster.price_per_hour is not None:
        return spec.cluster.price_per_hour
    train, kinds = spec.train, kinds_to_come(spec.cluster)
    if kinds is None:
        return None
    need = Need(
        "tune", train.min_workers * trainings, train.cpus_per_worker, float(train.gpus_per_worker),
        memory_gb=train.memory_gb_per_worker or 0.0,
    )  # fmt: skip
    return fit_stage(need, kinds).price_per_hour


def why_no_price(spec: PipelineSpec, price: float | None) -> str:
    """Why a search with a maximum cost cannot begin; empty if it can."""
    max_cost = None if spec.tune is None else spec.tune.max_cost
    if max_cost is None or price is not None:
        return ""
    return (
        f"tune.max_cost: got {max_cost:g}, but no price of this cluster is known; set cluster.price_per_hour, or "
        "write price_per_hour of its nodes into the cluster file of ray up (docs/cluster.md)"
    )
