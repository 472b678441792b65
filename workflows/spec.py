"""The whole pipeline file as pydantic models: every knob is declared once, here or in spec_train.py, spec_tune.py.

    spec = read_spec("workflows/pipelines/demo.yaml")     # workflows/spec_file.py

Prints as a reference with `rayconteur spec`. This module imports no library but pydantic, so that `--help` and a
mistake in a pipeline file are answered at once.
"""

from datetime import date
from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import Field, model_validator

from workflows.spec_section import HOW, Precision, Section, Share
from workflows.spec_train import TrainSpec
from workflows.spec_tune import TuneSpec

NEW_MODEL = "new"
"""as a `base_model`: trained from nothing"""


FieldName = Literal[
    "messages", "role", "content", "system", "tools", "reasoning_content", "tool_calls", "tool_call_id", "name",
    "train", "prompt", "input", "completion", "history", "chosen", "rejected", "label",
]  # fmt: skip
"""what `data.fields` may map"""


class Source(Section):
    """Where conversations come from."""

    path: Annotated[str, Field(min_length=1)]
    """A file, a folder, a glob or a URI; a folder saved by `datasets`; or a dataset of the Hugging Face Hub, as
    `hf:owner/name`, `hf:owner/name@revision` or `hf:owner/name/folder`. Read are JSON lines, JSON arrays, CSV, TSV,
    Parquet and Arrow, plain or packed (gzip, zstd, bzip2, xz, lz4), recognised by their content. A relative path
    starts at the pipeline file's folder. The layout is recognised line by line: conversations (`messages`, ShareGPT,
    Alpaca), for `train.objective` dpo, orpo and simpo pairs (`prompt` or `messages`, `chosen`, `rejected`), for kto
    judged replies (`prompt` or `messages`, `completion`, `label`)."""

    split: Annotated[str, Field(min_length=1)] | None = None
    """Of a dataset that has splits: the one to read, such as `train`."""

    limit: Annotated[int, Field(ge=1, le=1_000_000_000_000)] | None = None
    """Read only so many lines (rows, elements) of each file."""


class DataSpec(Section):
    """prepare: raw conversations to token shards."""

    sources: Annotated[list[Source], Field(min_length=1)]
    """The files to read, in this order."""

    held_out_share: Annotated[float, Field(gt=0.0, le=0.5)] = 0.05
    """Share of the conversations kept for evaluation, chosen by a hash of the conversation's text (of pairs and
    judged replies: of the prompt's): the same conversation always falls on the same side."""

    max_length: Annotated[int, Field(ge=16, le=1_048_576)] = 1024
    """Tokens of a conversation; what is longer is cut at its end."""

    max_bad_share: Share = 0.01
    """Share of lines that may be set aside as unusable before prepare fails."""

    fields: dict[FieldName, str] = Field(default={})
    """What the keys of your records are called: our name to yours, as in `{messages: dialogue, content: utterance}`.
    Our names: messages, role, content, system, tools, reasoning_content, tool_calls, tool_call_id, name, train;
    prompt, input, completion, history; chosen, rejected, label."""

    same_role: Literal["merge", "refuse"] = "merge"
    """Two turns of one role in a row: `merge` joins them with an empty line, `refuse` sets the line aside."""

    reasoning: Literal["template", "text", "drop"] = "template"
    """What an assistant thought before a reply (`reasoning_content`, `thinking`, or a `<think>` block): `template`
    hands it to the chat template, and sets lines aside where the template has no place for it; `text` writes it as a
    `<think>` block into the reply; `drop` leaves it out."""

    control_tokens: Literal["text", "allow"] = "text"
    """What a control token's name inside a message means: `text`, the characters that it is written with, or
    `allow`, the control token itself. The endpoint reads messages in the same way."""

    chat_template: str | None = None
    """A file with the chat template (Jinja) to use in place of the base model's; a relative path starts at the
    pipeline file's folder."""

    chat_template_kwargs: dict[str, bool | int | float | str] = Field(default={})
    """Variables of the chat template, such as `{enable_thinking: false}`; at the endpoint they are the default."""

    template_date: date | None = None
    """The day that a chat template writes as today, in training and at the endpoint. Left out, it is the day of
    `prepare` in training and the current day at the endpoint, and `prepare` says so where a template writes one."""

    new_tokens: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    """Texts that become one token each; their embeddings are trained and saved."""

    truncate: Literal["right", "left"] = "right"
    """Where a conversation above `max_length` is cut: `right` at its end, `left` leaves out the earliest turns before
    each reply, but for system messages."""

    cut_replies: Literal["cut", "drop", "fail"] = "cut"
    """What happens to a reply that `max_length` cuts: it is learned up to the cut, left out, or fails the stage."""

    @property
    def names(self) -> dict[str, str]:
        """`fields`, for any text as a name."""
        return {str(ours): theirs for ours, theirs in self.fields.items()}


class NewModelSpec(Section):
    """What `base_model: new` is: a model trained from nothing, with a tokenizer learned from the conversations."""

    architecture: Literal["lstm", "transformer"] = "lstm"
    """`lstm`: an embedding, an LSTM (Hochreiter and Schmidhuber 1997) and a linear head. `transformer`: a causal one
    as Llama has, with heads of 64."""

    vocabulary: Annotated[int, Field(ge=300, le=262_144)] = 4096
    """Tokens of the byte-pair tokenizer (Sennrich et al. 2016, arXiv:1508.07909), at most."""

    hidden_size: Annotated[int, Field(ge=1, le=8192)] = 256
    """Size of embeddings and hidden states; of a transformer a multiple of 64, or less than 64 and even."""

    num_layers: Annotated[int, Field(ge=1, le=64)] = 1
    """Layers."""

    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Of an LSTM: dropout probability of embeddings and hidden states."""

    noise_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """Of an LSTM: size of the noise z ~ N(0, 1) that its first state is made of; 0 for none."""

    discriminator_hidden_size: Annotated[int, Field(ge=1, le=8192)] | None = None
    """For `train.objective: adversarial`: the discriminator's `hidden_size`; left out, the generator's."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of the first weights."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "NewModelSpec":
        if self.architecture == "transformer":
            if self.hidden_size % 64 and (self.hidden_size > 64 or self.hidden_size % 2):
                raise ValueError(
                    f"hidden_size is {self.hidden_size}; a transformer's is a multiple of 64, or even and below 64"
                )
            if self.noise_size or self.dropout:
                raise ValueError("noise_size and dropout are for architecture: lstm; leave them out")
        return self


class GateSpec(Section):
    """What a checkpoint must reach before it may be deployed."""

    min_loss_reduction: Annotated[float, Field(ge=-100.0, le=100.0)] | None = None
    """Nats per token by which the tuned held-out loss must be below the base model's. Left out, 0; for preference
    pairs, which may make the chosen reply itself less likely, it is not looked at then."""

    min_preference_accuracy: Share = 0.5
    """Of preference pairs: the share of held-out pairs in which training has favoured the chosen reply must be
    above this."""

    min_fact_share: Share = 0.0
    """Share of the facts asked for in `evaluate.questions` that the tuned model must get right."""


class PairSpec(Section):
    """What is measured of an adversarial pair beside the rest."""

    histories: Annotated[int, Field(ge=16, le=1_000_000)] = 200
    """Held-out conversations whose last replies are looked at, at most."""

    temperatures: Annotated[list[Annotated[float, Field(ge=0.1, le=10.0)]], Field(min_length=1)] = Field(
        default=[0.7, 1.0]
    )
    """Replies are drawn at each."""

    best_of: Annotated[int, Field(ge=2, le=256)] = 4
    """As at the endpoint."""

    candidates: Annotated[int, Field(ge=2, le=1024)] = 16
    """Replies drawn to each history for the normaliser of the pair's likelihood."""

    fresh_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Steps, of 16 pairs each, in which a fresh discriminator learns."""


class EvaluateSpec(Section):
    """evaluate: checkpoint to scorecard."""

    gate: GateSpec = GateSpec()
    """When the scorecard says pass."""

    num_replies: Annotated[int, Field(ge=0, le=1000)] = 3
    """Held-out prompts answered by base and tuned model side by side."""

    questions: str | None = None
    """A JSON-lines file of {"question", "facts": [[spelling, ...], ...]}: questions that both models are asked,
    and the facts looked for in their replies. A relative path starts at the pipeline file's folder."""

    max_new_tokens: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Tokens of a reply."""

    pair: PairSpec = PairSpec()
    """For `train.objective: adversarial`."""

    num_workers: Annotated[int, Field(ge=1, le=65_536)] = Field(default=1, json_schema_extra=HOW)
    """Processes that score and reply, each with both models."""

    cpus_per_worker: Annotated[float, Field(gt=0.0, le=4096.0)] = Field(default=1.0, json_schema_extra=HOW)
    """CPU cores and threads of a worker."""

    gpus_per_worker: Annotated[float, Field(ge=0.0, le=8.0)] = Field(default=0.0, json_schema_extra=HOW)
    """GPUs of a worker."""


class OptimizeSpec(Section):
    """optimize: checkpoint to release."""

    weights: Literal["bf16", "fp32", "int8", "int4"] = "bf16"
    """Number format of the released weights. `int8` (a scale for every output) and `int4` (one for every 32 weights
    of it; embeddings and head stay in 8 bits or bf16) are formats of the OpenVINO export, for CPUs, and of `targets`;
    the plain Hugging Face folder beside them is `bf16` then."""

    targets: list[Literal["gguf", "vllm"]] = Field(default=[])
    """Further forms of the release, with these weights: `gguf`, a file for llama.cpp and Ollama; `vllm`, a folder in
    the format compressed-tensors for GPUs, in `int8` or `int4` (in others the plain folder is what vLLM loads)."""

    max_perplexity_increase: Annotated[float, Field(ge=0.0, le=100.0)] = 0.01
    """By what share of the checkpoint's the perplexity of each form of the release on held-out conversations may be
    higher."""

    @model_validator(mode="after")
    def _targets_are_forms(self) -> "OptimizeSpec":
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets names one twice: {', '.join(self.targets)}; name each once")
        if "vllm" in self.targets and not self.is_rounded:
            raise ValueError(
                f"targets: vllm is for weights int8 and int4, weights is {self.weights}; vLLM loads the plain "
                "Hugging Face folder, leave vllm out"
            )
        return self

    @property
    def is_rounded(self) -> bool:
        """Whether the weights have fewer bits than a plain Hugging Face folder keeps."""
        return self.weights in ("int8", "int4")


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


class PipelineSpec(Section):
    """From raw conversations to a chat endpoint."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    """Name of the pipeline: lower-case letters, digits, `.`, `_` and `-`."""

    store: Annotated[str, Field(min_length=1)] = "rayconteur-store"
    """Folder or URI (s3://, gs://) of all artifacts; a relative path starts at the current folder."""

    base_model: Annotated[str, Field(min_length=1)]
    """`new` for a model trained from nothing, `builtin:smollm2-135m-instruct`, a local Hugging Face folder (a path
    that starts with `/`, `./`, `../` or `~`; relative to the pipeline file) or its URI (s3://, gs://), a Hub id
    (`owner/name`, `owner/name@revision`), or for tests `random:tiny-llama` and `random:tiny-gpt2`."""

    new_model: NewModelSpec = NewModelSpec()
    """For `base_model: new`: what it is."""

    data: DataSpec
    """prepare: which conversations."""

    train: TrainSpec = TrainSpec()
    """train: how to fine-tune."""

    tune: TuneSpec | None = None
    """tune: a search over settings of `train`, before it; left out, there is none."""

    evaluate: EvaluateSpec = EvaluateSpec()
    """evaluate: what to measure and when it is good enough."""

    optimize: OptimizeSpec = OptimizeSpec()
    """optimize: the form of the release."""

    serve: ServeSpec = ServeSpec()
    """deploy: the endpoint."""

    cluster: ClusterSpec = ClusterSpec()
    """Where it all runs."""

    @model_validator(mode="after")
    def _new_model_is_possible(self) -> "PipelineSpec":
        if self.base_model != NEW_MODEL:
            if self.new_model != NewModelSpec():
                raise ValueError(
                    f"new_model is for base_model: {NEW_MODEL}, which is {self.base_model}; leave it out"
                )
        elif self.train.adapter is not None:
            raise ValueError(
                f"base_model: {NEW_MODEL} has random weights, which an adapter would keep; say train.adapter: null"
            )
        return self

    @model_validator(mode="after")
    def _pairs_are_searched_whole(self) -> "PipelineSpec":
        if (
            self.tune is not None
            and self.train.objective.name == "adversarial"
            and self.tune.scheduler.name != "none"
        ):
            raise ValueError(
                f"tune.scheduler: {self.tune.scheduler.name} compares trials before their end, and of an adversarial "
                "pair the last checkpoint counts; take none"
            )
        return self

    @model_validator(mode="after")
    def _rounded_weights_need_a_form(self) -> "PipelineSpec":
        optimize = self.optimize
        if optimize.is_rounded and not optimize.targets and not self.serve.may_use_openvino:
            raise ValueError(
                f"optimize.weights: {optimize.weights} is a format of the OpenVINO export, which serve.engine torch, "
                "vllm and serve.gpus_per_replica have no use for, and of optimize.targets, which is empty; take "
                "bf16, or name a target"
            )
        return self
