"""The section cluster."""

from typing import Annotated

from pydantic import Field

from workflows.spec.section import Section


class ScaleSpec(Section):
    """The most that a cluster scales up to, all nodes together."""

    cpus: Annotated[float, Field(ge=0.0, le=1e7)] = 0.0
    """CPU cores."""

    gpus: Annotated[float, Field(ge=0.0, le=1e6)] = 0.0
    """GPUs."""


class ClusterSpec(Section):
    """The Ray cluster that the stages run on."""

    address: str | None = None
    """`auto` for the cluster this machine belongs to, or its address; left out, a local one is started."""

    num_cpus: Annotated[int, Field(ge=1, le=4096)] | None = None
    """CPU cores of a local cluster; all of the machine's if left out."""

    scales_to: ScaleSpec | None = None
    """What the cluster at `address` may come to have, if it scales up and cannot be asked: on Kubernetes. A head that
    `ray up` started knows it from its file."""
