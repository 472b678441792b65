"""Read the nodes of a cluster from the file that starts it: a cluster file of `ray up`, or a RayCluster of KubeRay.

    kinds = read_cluster_file("cluster.yaml")

These formats have no fields for a GPU's memory and speed or a node's price. For `rayconteur plan`, a note for each
group of nodes can add them: under `metadata.rayconteur` for `ray up`, in an annotation `rayconteur/<group>` (as JSON)
for KubeRay. Its fields are `memory_gb`, `gpu_memory_gb` (of one GPU), `tflops` (of one GPU, dense, in bf16) and
`price_per_hour` (of a node).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from models.errors import RayconteurError
from workflows.cluster.instance_types import InstanceSize, aws_size
from workflows.record import JsonObject, Record, optional
from workflows.spec.section import Section

_Positive = Annotated[float, Field(gt=0.0)] | None
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "m": 1e-3}
_SPOT = ("ray.io/market-type", "spot")
_INSIDE = {"RayCluster": ("spec",), "RayJob": ("spec", "rayClusterSpec"), "RayService": ("spec", "rayClusterConfig")}


class ClusterFileError(RayconteurError):
    """An unusable cluster file."""


class Note(Section):
    """Our note on a group of nodes, for what cluster files have no field for."""

    memory_gb: _Positive = None
    gpu_memory_gb: _Positive = None
    tflops: _Positive = None
    price_per_hour: _Positive = None

    def over(self, memory_gb: float | None) -> dict[str, float | None]:
        """The note's fields; `memory_gb`, from the file's own fields, applies if the note has none."""
        return {**self.model_dump(), "memory_gb": self.memory_gb or memory_gb}


@dataclass(frozen=True, kw_only=True)
class NodeKind(Record):
    """A group of identical nodes."""

    name: str
    cpus: float
    gpus: float
    fewest: int
    """nodes that run even when the cluster is idle"""
    most: int
    is_spot: bool
    memory_gb: float | None
    gpu_memory_gb: float | None
    tflops: float | None
    """of one GPU, in 10^12 operations per second"""
    price_per_hour: float | None
    unknown: str | None = optional()
    """why its CPUs and GPUs are not known, if they are not"""


def _quantity(value: Any) -> float:
    """A quantity as Kubernetes writes it, such as 500m or 64Gi."""
    text = str(value).strip()
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    try:
        return float(text.removesuffix(unit)) * _UNITS.get(unit, 1.0)
    except ValueError:
        raise ValueError("must be a quantity, such as 4, 500m or 64Gi") from None


_Quantity = Annotated[float, BeforeValidator(_quantity)]


class _Part(BaseModel):
    """The fields that we read of a part of a cluster file; Ray and KubeRay check the rest."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_left_out(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None}


class _Resources(_Part):
    CPU: float | None = None
    GPU: float | None = None
    memory: float | None = None


class _NodeConfig(_Part):
    InstanceType: str | None = None


class _NodeType(_Part):
    node_config: _NodeConfig = _NodeConfig()
    resources: _Resources = _Resources()
    min_workers: int = 0
    max_workers: int | None = None
    labels: dict[str, str] = {}


class _Provider(_Part):
    type: str | None = None


class _Notes(_Part):
    rayconteur: dict[str, Note] = {}


class _RayUp(_Part):
    max_workers: int = 2
    provider: _Provider = _Provider()
    head_node_type: str | None = None
    available_node_types: dict[str, _NodeType]
    metadata: _Notes = _Notes()


class _Asked(_Part):
    requests: dict[str, _Quantity] = {}
    limits: dict[str, _Quantity] = {}


class _Container(_Part):
    resources: _Asked = _Asked()


class _Pod(_Part):
    containers: Annotated[list[_Container], Field(min_length=1)] = [_Container()]


class _Template(_Part):
    spec: _Pod = _Pod()


class _Started(_Part):
    num_cpus: _Quantity | None = Field(default=None, alias="num-cpus")
    num_gpus: _Quantity | None = Field(default=None, alias="num-gpus")


class _Group(_Part):
    groupName: str = "head"
    # The head group has one node; groups of workers override this.
    replicas: int = 1
    minReplicas: int | None = None
    maxReplicas: int | None = None
    rayStartParams: _Started = _Started()
    template: _Template = _Template()
    labels: dict[str, str] = {}


class _WorkerGroup(_Group):
    groupName: str
    replicas: int = 0
    minReplicas: int | None = 0


class _RayCluster(_Part):
    headGroupSpec: _Group = _Group()
    workerGroupSpecs: list[_WorkerGroup] = []


class _Metadata(_Part):
    annotations: dict[str, str] = {}


_Model = TypeVar("_Model", bound=BaseModel)


def read_cluster_file(file: str | Path) -> list[NodeKind]:
    """The groups of worker nodes, and the head if it has CPUs or GPUs; raises ClusterFileError."""
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ClusterFileError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
    if isinstance(content, dict) and "available_node_types" in content:
        kinds = _of_ray_up(_checked(_RayUp, content, str(file)))
    elif isinstance(content, dict) and content.get("kind") in _INSIDE:
        kinds = _of_kuberay(str(file), content)
    else:
        raise ClusterFileError(
            f"{file}: is not a cluster file; must be one for `ray up`, with available_node_types, or a RayCluster, "
            "RayJob or RayService for KubeRay"
        )
    return [kind for kind in kinds if kind.most and (kind.cpus or kind.gpus or kind.unknown)]


def _of_ray_up(content: _RayUp) -> list[NodeKind]:
    kinds = []
    for name, kind in content.available_node_types.items():
        # With provider `local`, all machines are of one type, including the head.
        is_head = name == content.head_node_type and content.provider.type != "local"
        most = content.max_workers if kind.max_workers is None else min(content.max_workers, kind.max_workers)
        memory = kind.resources.memory
        note = content.metadata.rayconteur.get(name, Note())
        size, unknown = _size(name, kind, content.provider.type)
        if size.gpu_memory_gb and note.gpu_memory_gb is None:
            note = note.model_copy(update={"gpu_memory_gb": size.gpu_memory_gb})
        kinds.append(
            NodeKind(
                name=name,
                cpus=size.cpus,
                gpus=size.gpus,
                fewest=1 if is_head else kind.min_workers,
                most=1 if is_head else most,
                is_spot=_SPOT in kind.labels.items(),
                unknown=unknown,
                **note.over(memory and memory / 1e9),
            )
        )
    return kinds


def _size(name: str, kind: _NodeType, provider: str | None) -> tuple[InstanceSize, str | None]:
    """A node's size, from `resources` or else, as for `ray up`, from AWS's instance type; and why it is unknown."""
    stated, instance = kind.resources, kind.node_config.InstanceType
    found = aws_size(instance) if provider == "aws" and instance else None
    derived = found or InstanceSize(0.0, 0.0, None)
    size = InstanceSize(
        derived.cpus if stated.CPU is None else stated.CPU,
        derived.gpus if stated.GPU is None else stated.GPU,
        derived.gpu_memory_gb,
    )
    if stated.CPU is not None or stated.GPU is not None or found is not None:
        return size, None
    what = f"does not know the instance type {instance}" if provider == "aws" and instance else "finds no CPUs"
    return size, f"plan {what}; set available_node_types.{name}.resources, such as {{CPU: 16, GPU: 1}}"


def _of_kuberay(file: str, content: JsonObject) -> list[NodeKind]:
    annotations = _checked(_Metadata, content.get("metadata") or {}, file, "metadata").annotations
    path = _INSIDE[str(content["kind"])]
    inside: Any = content
    for name in path:
        inside = inside.get(name) if isinstance(inside, dict) else None
    cluster = _checked(_RayCluster, inside, file, ".".join(path))
    kinds = []
    for group in (cluster.headGroupSpec, *cluster.workerGroupSpecs):
        asked = group.template.spec.containers[0].resources
        limits, started = {**asked.requests, **asked.limits}, group.rayStartParams
        note = _annotated(annotations, f"rayconteur/{group.groupName}", file)
        memory = limits.get("memory")
        cpus = limits.get("cpu") if started.num_cpus is None else started.num_cpus
        unknown = f"plan finds no CPUs; set resources.limits.cpu of {group.groupName}"
        kinds.append(
            NodeKind(
                name=group.groupName,
                cpus=cpus or 0.0,
                gpus=limits.get("nvidia.com/gpu", 0.0) if started.num_gpus is None else started.num_gpus,
                fewest=group.replicas if group.minReplicas is None else group.minReplicas,
                most=group.replicas if group.maxReplicas is None else group.maxReplicas,
                is_spot=_SPOT in group.labels.items(),
                unknown=unknown if cpus is None else None,
                **note.over(memory and memory / 1e9),
            )
        )
    return kinds


def _annotated(annotations: dict[str, str], name: str, file: str) -> Note:
    try:
        written = json.loads(annotations.get(name, "{}"))
    except ValueError as error:
        raise ClusterFileError(f"{file}: metadata.annotations.{name}: not JSON: {error}") from None
    return _checked(Note, written, file, f"metadata.annotations.{name}")


def _checked(model: type[_Model], values: Any, file: str, *at: str) -> _Model:
    """Validate `values`, found at the dotted path `at` in `file`; raises ClusterFileError."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([*at, *map(str, first["loc"])])
        rule = first["msg"].removeprefix("Value error, ").partition(" or instance of ")[0]
        if first["type"] == "extra_forbidden":
            rule += f"; known here: {', '.join(Note.model_fields)}"
        raise ClusterFileError(f"{file}: {where}: got {first['input']!r}; {rule}") from None
