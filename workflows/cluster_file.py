"""A cluster that is not there yet, from the file that would start it: one of `ray up`, or a RayCluster of KubeRay's.

    kinds = read_cluster_file("cluster.yaml")

What these formats have no place for stands in a note of ours for each group of nodes, if the plan is to know it:
in `metadata.rayconteur` for `ray up`, in an annotation `rayconteur/<group>` (as JSON) for KubeRay. Its fields are
`memory_gb`, `gpu_memory_gb` (of one GPU), `tflops` (of one GPU, dense, in bf16) and `price_per_hour` (of a node).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from workflows.spec_section import Section

_Positive = Annotated[float, Field(gt=0.0)] | None
_UNITS = {
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "m": 1e-3,
    "": 1.0,
}


class ClusterFileError(ValueError):
    """A cluster file that cannot be read."""


class Note(Section):
    """What the formats of cluster files have no field for."""

    memory_gb: _Positive = None
    gpu_memory_gb: _Positive = None
    tflops: _Positive = None
    price_per_hour: _Positive = None

    def over(self, memory_gb: float | None) -> dict[str, float | None]:
        """Its fields, with what the file itself says of a node's memory where the note does not."""
        return {**self.model_dump(), "memory_gb": self.memory_gb or memory_gb}


@dataclass(frozen=True)
class NodeKind:
    """A group of nodes that are alike."""

    name: str
    cpus: float
    gpus: float
    fewest: int
    """nodes that are there when nobody asks for any"""
    most: int
    is_spot: bool
    memory_gb: float | None
    gpu_memory_gb: float | None
    tflops: float | None
    """of one GPU, in 10^12 operations a second"""
    price_per_hour: float | None


def read_cluster_file(file: str | Path) -> list[NodeKind]:
    """The groups of worker nodes, and the head where it has CPUs or GPUs; raises ClusterFileError."""
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ClusterFileError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
    if isinstance(content, dict) and isinstance(content.get("available_node_types"), dict):
        kinds = _of_ray_up(str(file), content)
    elif isinstance(content, dict) and content.get("kind") in ("RayCluster", "RayJob", "RayService"):
        kinds = _of_kuberay(str(file), content)
    else:
        raise ClusterFileError(
            f"{file}: is neither a file for `ray up` with available_node_types, nor a RayCluster, RayJob or "
            "RayService of KubeRay's"
        )
    return [kind for kind in kinds if kind.most and (kind.cpus or kind.gpus)]


def _of_ray_up(file: str, content: dict[str, Any]) -> list[NodeKind]:
    notes = (content.get("metadata") or {}).get("rayconteur") or {}
    most, kinds = int(content.get("max_workers", 2)), []
    for name, kind in content["available_node_types"].items():
        # One's own machines are all of one type, the head as well.
        is_head = name == content.get("head_node_type") and (content.get("provider") or {}).get("type") != "local"
        resources = kind.get("resources") or {}
        note = _note(f"{file}: metadata.rayconteur.{name}", notes.get(name) or {})
        memory = resources.get("memory")
        kinds.append(
            NodeKind(
                name=name,
                cpus=float(resources.get("CPU", 0)),
                gpus=float(resources.get("GPU", 0)),
                fewest=1 if is_head else int(kind.get("min_workers", 0)),
                most=1 if is_head else min(most, int(kind.get("max_workers", most))),
                is_spot=(kind.get("labels") or {}).get("ray.io/market-type") == "spot",
                **note.over(memory and memory / 1e9),
            )
        )
    return kinds


def _of_kuberay(file: str, content: dict[str, Any]) -> list[NodeKind]:
    inside = {"RayCluster": "spec", "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}[content["kind"]]
    spec = content["spec"] if inside == "spec" else content["spec"].get(inside, {})
    annotations = (content.get("metadata") or {}).get("annotations") or {}
    kinds = []
    for group in [{"groupName": "head", **spec.get("headGroupSpec", {})}, *spec.get("workerGroupSpecs", [])]:
        name = group["groupName"]
        try:
            written = json.loads(annotations.get(f"rayconteur/{name}", "{}"))
        except ValueError as error:
            raise ClusterFileError(f"{file}: metadata.annotations.rayconteur/{name}: not JSON: {error}") from None
        note = _note(f"{file}: metadata.annotations.rayconteur/{name}", written)
        containers = group.get("template", {}).get("spec", {}).get("containers") or [{}]
        asked = containers[0].get("resources") or {}
        limits = {**(asked.get("requests") or {}), **(asked.get("limits") or {})}
        started = group.get("rayStartParams") or {}
        cpus = started.get("num-cpus", limits.get("cpu", 0))
        is_head = name == "head"
        kinds.append(
            NodeKind(
                name=name,
                cpus=_quantity(cpus),
                gpus=_quantity(started.get("num-gpus", limits.get("nvidia.com/gpu", 0))),
                fewest=1 if is_head else int(group.get("minReplicas", 0)),
                most=1 if is_head else int(group.get("maxReplicas", group.get("replicas", 0))),
                is_spot=(group.get("labels") or {}).get("ray.io/market-type") == "spot",
                **note.over(_quantity(limits["memory"]) / 1e9 if "memory" in limits else None),
            )
        )
    return kinds


def _note(where: str, values: Any) -> Note:
    try:
        return Note.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ClusterFileError(
            f"{where}{'.' if field else ''}{field}: got {first['input']!r}; {first['msg']}; "
            f"known here: {', '.join(Note.model_fields)}"
        ) from None


def _quantity(value: Any) -> float:
    """A quantity as Kubernetes writes it, such as 500m or 64Gi."""
    text = str(value).strip()
    unit = next(unit for unit in _UNITS if text.endswith(unit))
    return float(text.removesuffix(unit)) * _UNITS[unit]
