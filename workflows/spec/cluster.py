"""The section cluster."""

from typing import Annotated

from pydantic import Field, model_validator

from workflows.spec.section import Section


class ScaleSpec(Section):
    """The maximum size of an autoscaling cluster, over all nodes."""

    cpus: Annotated[float, Field(ge=0.0, le=1e7)] = 0.0
    """CPU cores."""

    gpus: Annotated[float, Field(ge=0.0, le=1e6)] = 0.0
    """GPUs."""

    cpus_per_node: Annotated[float, Field(ge=1.0, le=1e5)] | None = None
    """CPU cores of its largest node. Left out, a worker may need all `cpus`: a worker that fits on no node then waits
    instead of being refused."""

    gpus_per_node: Annotated[float, Field(gt=0.0, le=1e4)] | None = None
    """GPUs of its largest node."""

    memory_gb_per_node: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    """Main memory of its largest node in 10^9 bytes."""

    @model_validator(mode="after")
    def _sizes_are_complete(self) -> "ScaleSpec":
        if (self.cpus_per_node is None) != (self.gpus_per_node is None) and self.gpus:
            raise ValueError("cpus_per_node and gpus_per_node belong together; give both or neither")
        return self


class ClusterSpec(Section):
    """The Ray cluster that the stages run on."""

    address: str | None = None
    """`auto` for the cluster that this machine belongs to, or a cluster's address; left out, a local cluster
    starts."""

    num_cpus: Annotated[int, Field(ge=1, le=4096)] | None = None
    """CPU cores of a local cluster; defaults to all cores of the machine."""

    scales_to: ScaleSpec | None = None
    """Maximum size of the cluster at `address` if it autoscales but cannot report its size, as on Kubernetes. A head
    started with `ray up` reads it from its cluster file."""

    price_per_hour: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    """Price of an hour of the whole cluster in dollars, for `tune.max_cost`. Left out, a head started with `ray up`
    takes the prices of the nodes that a search uses from its cluster file."""
