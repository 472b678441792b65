"""The section serve."""

from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import Field, model_validator

from workflows.spec.section import Precision, Section

# As it stands in a request's `model`.
AdapterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class TlsSpec(Section):
    """The certificate that the endpoint shows: it answers `https://` then, and nothing else."""

    certificate: Annotated[str, Field(min_length=1)]
    """File in PEM on the machine that deploys: the server's certificate, then those that it was signed by."""

    key: Annotated[str, Field(min_length=1)]
    """File in PEM with its key, without a password."""


# As browsers send it: a scheme, a host, a port that is not the usual one.
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[A-Za-z0-9.\[\]:_-]+)$")]


class ServeSpec(Section):
    """deploy: release to endpoint."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all."""

    port: Annotated[int, Field(ge=1, le=65_535)] = 8000
    """Port of the endpoint and its chat page."""

    keys: Literal["none", "required"] = "none"
    """`required`: requests need an API key that `rayconteur keys create` made. `none`: anybody may ask, so a `host`
    that other machines reach is refused unless `--insecure` is said."""

    cors_origins: list[Origin] = Field(default=[])
    """Origins whose pages may ask from a browser, such as `https://shop.example`; `*` for all of them."""

    tls: TlsSpec | None = None
    """Certificate and key, to be asked over TLS. Renewed files are taken up within a minute."""

    model_name: str | None = None
    """The `model` that clients ask for; the pipeline's name if left out."""

    min_replicas: Annotated[int, Field(ge=0, le=100_000)] = 1
    """Replicas kept when nobody asks anything; 0 lets go of them all."""

    max_replicas: Annotated[int, Field(ge=1, le=100_000)] = 2
    """Replicas at the highest load."""

    target_ongoing_requests: Annotated[float, Field(gt=0.0, le=100_000.0)] = 4.0
    """Requests in progress per replica that autoscaling aims at."""

    upscale_delay_s: Annotated[float, Field(ge=0.0, le=86_400.0)] = 3.0
    """Seconds that a higher load must last before replicas are added."""

    downscale_delay_s: Annotated[float, Field(ge=0.0, le=86_400.0)] = 300.0
    """Seconds that a lower load must last before replicas are let go of."""

    max_queued_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    """Requests that wait for a replica with room before further ones are refused with 429."""

    max_new_tokens: Annotated[int, Field(ge=1, le=1_048_576)] = 512
    """Tokens of a reply when the client does not say."""

    max_reply_seconds: Annotated[float, Field(gt=0.0, le=86_400.0)] = 600.0
    """A reply that takes longer, its waiting included, is ended with an error."""

    max_stall_ms: Annotated[float, Field(ge=10.0, le=60_000.0)] = 1000.0
    """How long reading somebody's long prompt may hold up the replies of others at a time, in milliseconds."""

    adapters: dict[AdapterName, str] = Field(default={})
    """Further LoRA adapters of the base model, each a model of its own at the endpoint: names to PEFT folders
    (relative to the pipeline file) or their URIs. All are computed in one batch, by the engines `torch` and
    `vllm`."""

    engine: Literal["auto", "openvino", "torch", "vllm"] = "auto"
    """What generates: `vllm` on GPUs (the extra `llm`), `openvino` on CPUs for the architectures that it is proven
    exact for, `torch` anything anywhere. `auto` takes the first of them that can serve the release."""

    precision: Precision = "auto"
    """Number format of the computation; `auto`: `bf16`, or `fp32` where that is faster."""

    beside: bool = True
    """With `openvino`: what its pipeline cannot follow (rules of schemas such as `pattern`, required calls, biases,
    likely tokens) is decoded beside it from the same export, from the first such request on; the weights are in a
    replica's memory twice then. `false`: such requests are refused."""

    cpus_per_replica: Annotated[float, Field(gt=0.0, le=4096.0)] = 1.0
    """CPU cores and threads of a replica."""

    gpus_per_replica: Annotated[float, Field(ge=0.0, le=64.0)] = 0.0
    """GPUs of a replica: `vllm` divides each layer among several, and takes half the memory of one for 0.5."""

    @model_validator(mode="after")
    def _replicas_ordered(self) -> "ServeSpec":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas})")
        return self

    @model_validator(mode="after")
    def _adapters_need_torch(self) -> "ServeSpec":
        if self.adapters and self.engine == "openvino":
            raise ValueError("engine openvino serves one model; adapters need engine torch or vllm, or auto")
        return self

    @model_validator(mode="after")
    def _openvino_is_for_cpus(self) -> "ServeSpec":
        if self.engine == "openvino" and self.gpus_per_replica:
            raise ValueError(f"engine openvino computes on CPUs, gpus_per_replica is {self.gpus_per_replica:g}")
        return self

    @model_validator(mode="after")
    def _gpus_are_whole_or_one_in_part(self) -> "ServeSpec":
        if self.gpus_per_replica > 1 and self.gpus_per_replica % 1:
            raise ValueError(
                f"gpus_per_replica is {self.gpus_per_replica:g}; a replica has a part of one GPU, or whole ones"
            )
        return self

    @property
    def is_open(self) -> bool:
        """Whether other machines may use the endpoint without a key."""
        return self.keys == "none" and not _is_loopback(self.host)

    @property
    def may_use_openvino(self) -> bool:
        """Whether a release for it needs an OpenVINO export, if there can be one."""
        return self.engine in ("auto", "openvino") and not self.gpus_per_replica and not self.adapters


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
