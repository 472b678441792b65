"""What a deployment of the endpoint is made of: the release, its engine, and how many replicas there are."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from serve.engines.base import DEFAULT_MAX_STALL_SECONDS, Precision


@dataclass(frozen=True)
class ServedRelease:
    """What replicas open, each on its own machine."""

    folder: str
    """A folder or the URI of one. For the engine `openvino` it holds an OpenVINO export, for others a Hugging Face
    model, by any name that `models.base.load.resolve` knows."""
    key: str
    """what `/health` names it by"""
    model_name: str
    """what requests name it by"""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """folders or URIs of LoRA adapters, by the names that requests choose them by"""
    discriminator: str | None = None
    """folder or URI; with it requests may ask for the best of several replies"""


@dataclass(frozen=True)
class EngineSettings:
    """What generates in a replica."""

    name: str = "torch"
    """`torch`, `openvino` or `vllm`"""
    precision: Precision = "auto"
    max_stall_seconds: float = DEFAULT_MAX_STALL_SECONDS
    """of replies in progress while the prompts of others are read"""
    beside: bool = True
    """whether `openvino` decodes beside its pipeline what that cannot follow; otherwise it refuses such requests"""


@dataclass(frozen=True)
class Scaling:
    """How many replicas there are, and what each of them takes."""

    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 4
    """requests in progress in a replica, above which another replica starts"""
    upscale_delay_seconds: float = 3.0
    downscale_delay_seconds: float = 300.0
    num_cpus: float = 1
    num_gpus: float = 0
    surge: bool = False
    """whether an update starts new replicas before it stops old ones, which takes room for one more"""
