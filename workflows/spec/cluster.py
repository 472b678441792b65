"""The section cluster."""

from typing import Annotated

from pydantic import Field

from workflows.spec.section import Section


class ScaleSpec(Section):
    """The maximum size of an autoscaling cluster, over all nodes."""

    cpus: Annotated[float, Field(ge=0.0, le=1e7)] = 0.0
    """CPU cores."""

    gpus: Annotated[float, Field(ge=0.0, le=1e6)] = 0.0
    """GPUs."""


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
