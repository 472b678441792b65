"""The section serve."""

from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import Field, model_validator

from serve.api.settings import ApiSettings
from serve.deployment.settings import Scaling
from workflows.spec.section import ADDED, Precision, Section, Share

# A request's `model` names it.
AdapterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class TlsSpec(Section):
    """The endpoint's TLS certificate; with it, the endpoint answers `https://` only."""

    certificate: Annotated[str, Field(min_length=1)]
    """PEM file on the machine that deploys: the server's certificate, then the certificates that signed it."""

    key: Annotated[str, Field(min_length=1)]
    """PEM file with the certificate's private key, without a password."""


class KnowledgeSpec(Section):
    """Documents that replies rely on: the passages that the last questions are about stand in the prompt."""

    path: Annotated[str, Field(min_length=1)]
    """A folder, or a file, of .txt and .md documents and of .jsonl files with passages as in `data.knowledge`; a
    relative path starts at the pipeline file's folder. `deploy` copies the passages to the store, and reads them
    again when the files have changed."""

    passages: Annotated[int, Field(ge=1, le=64)] = 4
    """Maximum number of passages in a prompt."""

    passage_words: Annotated[int, Field(ge=10, le=10_000)] = 120
    """Maximum number of words of a passage, or of characters in Chinese and Japanese; longer texts are cut."""

    min_share: Share = 0.25
    """Minimum BM25 score of a passage, as a share of the best one's."""


SAMPLING = "serve.sampling."
"""the beginning of the dotted fields of `SamplingSpec`"""


class SamplingSpec(Section):
    """serve.sampling: how the endpoint samples replies to requests that leave these fields out. A field that is left
    out here too has the API's default. They may be searched: `serve.sampling.temperature: {uniform: [0, 1.2]}`."""

    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    """Sampling temperature; 0 always takes the most likely token. The API's default is 1."""

    top_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Samples from the most likely tokens that together have this probability."""

    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Samples from this many of the most likely tokens; 0 for all."""

    min_p: Share | None = None
    """Minimum probability of a token, as a share of the most likely token's."""

    repetition_penalty: Annotated[float, Field(ge=0.01, le=2.0)] | None = None
    """Divides the scores of tokens in prompt and reply (Keskar et al. 2019, arXiv:1909.05858, 4.1)."""


# As browsers send it: scheme, host, and the port if it is not the default.
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[A-Za-z0-9.\[\]:_-]+)$")]


class ServeSpec(Section):
    """deploy: serves the release at an endpoint."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all."""

    port: Annotated[int, Field(ge=1, le=65_535)] = 8000
    """Port of the endpoint and its chat page."""

    keys: Literal["none", "required"] = "none"
    """`required`: requests need an API key made with `rayconteur keys create`. `none`: requests need no key, and a
    `host` that other machines can reach is refused unless `--insecure` is given."""

    cors_origins: list[Origin] = Field(default=[])
    """Origins whose pages may send requests from a browser (CORS), such as `https://shop.example`; `*` for all
    origins."""

    tls: TlsSpec | None = None
    """TLS certificate and key. Renewed files take effect within a minute."""

    model_name: str | None = None
    """The `model` that clients request; defaults to the pipeline's name."""

    min_replicas: Annotated[int, Field(ge=0, le=100_000)] = 1
    """Minimum number of replicas; 0 scales to zero."""

    max_replicas: Annotated[int, Field(ge=1, le=100_000)] = 2
    """Maximum number of replicas."""

    target_ongoing_requests: Annotated[float, Field(gt=0.0, le=100_000.0)] = Scaling.target_ongoing_requests
    """Target number of ongoing requests per replica for autoscaling."""

    upscale_delay_s: Annotated[float, Field(ge=0.0, le=86_400.0)] = Scaling.upscale_delay_seconds
    """Seconds that a higher load must last before replicas are added."""

    downscale_delay_s: Annotated[float, Field(ge=0.0, le=86_400.0)] = Scaling.downscale_delay_seconds
    """Seconds that a lower load must last before replicas are removed."""

    max_queued_requests: Annotated[int, Field(ge=1, le=1_000_000)] = ApiSettings.max_queued_requests
    """Maximum number of requests that wait for a free replica; further requests are refused with 429."""

    max_new_tokens: Annotated[int, Field(ge=1, le=1_048_576)] = ApiSettings.max_new_tokens
    """Maximum tokens of a reply if the request sets no limit."""

    sampling: SamplingSpec = Field(default=SamplingSpec(), json_schema_extra=ADDED)
    """Sampling settings of requests that set none."""

    max_reply_seconds: Annotated[float, Field(gt=0.0, le=86_400.0)] = ApiSettings.max_seconds
    """Maximum seconds for a reply, including its wait; a longer one ends with an error."""

    max_stall_ms: Annotated[float, Field(ge=10.0, le=60_000.0)] = 1000.0
    """Maximum milliseconds at a time that prefill of one long prompt may delay other replies."""

    adapters: dict[AdapterName, str] = Field(default={})
    """Additional LoRA adapters of the base model, each served as a model of its own: names mapped to PEFT folders
    (relative to the pipeline file) or their URIs. The engines `torch` and `vllm` compute all of them in one batch."""

    knowledge: KnowledgeSpec | None = Field(default=None, json_schema_extra=ADDED)
    """Documents whose passages stand in the prompts of chats, and in the answers as `sources`."""

    engine: Literal["auto", "openvino", "torch", "vllm"] = "auto"
    """The inference engine: `vllm` on GPUs (the extra `llm`), `openvino` on CPUs for architectures verified to be
    exact, `torch` for any model on any device. `auto` takes the first of these that can serve the release."""

    precision: Precision = "auto"
    """Number format of the computation; `auto` is `bf16`, or `fp32` where that is faster."""

    beside: bool = True
    """For `openvino`: decode requests that its pipeline does not support (schema rules such as `pattern`, required
    tool calls, logit biases, log-probabilities of the most likely tokens) beside it, from the same export; from the
    first such request on, a replica holds the weights twice. `false` refuses such requests."""

    cpus_per_replica: Annotated[float, Field(gt=0.0, le=4096.0)] = 1.0
    """CPU cores and threads per replica."""

    gpus_per_replica: Annotated[float, Field(ge=0.0, le=64.0)] = 0.0
    """GPUs per replica: `vllm` splits each layer among several (tensor parallelism); 0.5 takes half the memory of
    one."""

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
        """Whether other machines can use the endpoint without a key."""
        return self.keys == "none" and not _is_loopback(self.host)

    @property
    def may_use_openvino(self) -> bool:
        """Whether a release for this endpoint needs an OpenVINO export, if one is possible."""
        return self.engine in ("auto", "openvino") and not self.gpus_per_replica and not self.adapters


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
