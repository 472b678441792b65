"""Settings of a deployment: the release, its engine, and the number of replicas."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from serve.engines.base import DEFAULT_MAX_STALL_SECONDS, Precision
from serve.knowledge.retrieval import ServedKnowledge


@dataclass(frozen=True)
class ServedRelease:
    """The release that replicas load, each on its own machine."""

    folder: str
    """A folder or its URI: for the engine `openvino` with an OpenVINO export, for others with a Hugging Face model,
    by any name that `models.base.load.resolve` takes."""
    key: str
    """its name in `/health`"""
    model_name: str
    """its name in requests"""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """folders or URIs of LoRA adapters, by their names in requests"""
    discriminator: str | None = None
    """folder or URI; enables `best_of` in requests"""
    knowledge: ServedKnowledge | None = None


@dataclass(frozen=True)
class EngineSettings:
    """The engine of a replica."""

    name: str = "torch"
    """`torch`, `openvino` or `vllm`"""
    precision: Precision = "auto"
    max_stall_seconds: float = DEFAULT_MAX_STALL_SECONDS
    """how long reading other prompts may delay replies in progress"""
    beside: bool = True
    """whether `openvino` decodes requests that its pipeline does not support in a second way, or refuses them"""


@dataclass(frozen=True)
class Scaling:
    """The number of replicas, and the resources of each."""

    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 4
    """another replica starts above this number of requests in progress per replica"""
    upscale_delay_seconds: float = 3.0
    downscale_delay_seconds: float = 300.0
    num_cpus: float = 1
    num_gpus: float = 0
    surge: bool = False
    """whether an update starts new replicas before it stops old ones, which needs resources for one more"""
