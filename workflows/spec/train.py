"""The section `train` of the pipeline file: objective, adapter, optimizer, batches, workers.

Like all of the spec, it imports no library except pydantic.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from models.training.deepspeed_config import check_passed_through
from workflows.spec.objectives import AdversarialSpec, AnyObjective, SftSpec
from workflows.spec.section import HOW, PositiveInt, Precision, Section, Share, named

AUTO_TOKENS = 2048
"""tokens per forward and backward pass if `train.batch_tokens` is `auto` and memory is not a limit"""

_MAX_WORKERS = 65_536


def _min_and_max(count: int | list[int]) -> int | list[int]:
    fewest, most = (count, count) if isinstance(count, int) else count if len(count) == 2 else (0, 0)
    if not 1 <= fewest <= most <= _MAX_WORKERS:
        raise ValueError(f"got {count}; must be from 1 to {_MAX_WORKERS}, or [min, max], such as [1, 4]")
    return count


_ALPHA = 32.0


class AdapterSpec(Section):
    """LoRA (Hu et al. 2021, arXiv:2106.09685): W + (alpha / rank) B A, with W frozen."""

    method: Literal["lora", "rslora", "dora", "mua"] = "lora"
    """`lora`, `rslora` (Kalajdzievski 2023, arXiv:2312.03732), which scales by alpha / sqrt(rank), `dora` (Liu et
    al. 2024, arXiv:2402.09353), which also learns the magnitude of every row of W, or `mua` (Chen et al. 2026,
    arXiv:2602.06204): W + B A, which starts with A = 0 and B random with variance 1 / rank, so that the first step is
    about as large at any rank. We found one best learning rate for all ranks with `lora` and the same alpha, not with
    `rslora` or `mua` (docs/search_figures.md)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the update: the inner size of its two factors."""

    alpha: Annotated[float, Field(gt=0.0, le=4096.0)] | None = None
    """Scale of the adapter's output, divided by the rank; left out, 32. `mua` takes none: its scale is 1."""

    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout probability on the adapter's input."""

    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the linear layers to adapt, or `all-linear` for all of them except the head."""

    quantize: Literal["nf4"] | None = None
    """`nf4` keeps W in 4-bit NormalFloat during training (QLoRA, Dettmers et al. 2023, arXiv:2305.14314), with
    bitsandbytes (`pip install rayconteur[qlora]`); the adapter is merged into the unquantised weights."""

    @property
    def lora_alpha(self) -> float:
        """The alpha of the method: the scale is alpha / rank, or with `rslora` alpha / sqrt(rank)."""
        if self.method == "mua":
            return self.rank
        return _ALPHA if self.alpha is None else self.alpha

    def arguments(self) -> dict[str, Any]:
        """The arguments of `models.base.adapters.attach`."""
        return {**self.model_dump(exclude={"quantize"}), "alpha": self.lora_alpha}

    def result_fields(self) -> dict[str, object]:
        """With the alpha that is used: in older stores, its default was a number."""
        return {**super().result_fields(), "alpha": self.lora_alpha}

    @model_validator(mode="after")
    def _scale_of_mua_is_constant(self) -> "AdapterSpec":
        if self.method == "mua" and self.alpha is not None:
            raise ValueError(
                f"alpha (now {self.alpha:g}) is for the other methods; mua has the constant scale 1, which its "
                "learning rate relies on; leave alpha out and change learning_rate instead"
            )
        return self


class ZeroSpec(Section):
    """DeepSpeed ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054): which training state is partitioned across the
    workers."""

    stage: Annotated[int, Field(ge=0, le=3)] = 0
    """What to partition: 0 nothing, 1 optimizer states, 2 also gradients, 3 also parameters."""

    offload: Literal["cpu", "nvme"] | None = None
    """Where to keep the partitioned state while it is not in use: `cpu` in the machine's memory (from stage 1),
    `nvme` in files (stage 3)."""

    offload_folder: str | None = None
    """For `offload: nvme`: a folder on a fast local disk of every node."""

    @model_validator(mode="after")
    def _offload_is_possible(self) -> "ZeroSpec":
        least = {None: 0, "cpu": 1, "nvme": 3}[self.offload]
        if self.stage < least:
            raise ValueError(f"offload {self.offload} needs stage {least} or more, and stage is {self.stage}")
        if (self.offload == "nvme") != (self.offload_folder is not None):
            raise ValueError("offload_folder is for offload: nvme, which needs it; give both or neither")
        return self


class TrainSpec(Section):
    """train: trains a checkpoint on the prepared corpus."""

    objective: Annotated[AnyObjective, BeforeValidator(named)] = SftSpec()
    """The training objective: a name, or a mapping with `name` and the fields of that objective."""

    adapter: AdapterSpec | None = AdapterSpec()
    """The LoRA adapter; `null` trains all weights."""

    frozen: list[str] = Field(default=[])
    """Without an adapter: parameters to freeze, by name as in the model's state dict; `*` matches anything
    (`model.embed_tokens.*`, `model.layers.[0-9].*`)."""

    epochs: Annotated[float, Field(gt=0.0, le=1000.0)] = 3.0
    """Number of passes over the training conversations; may be a fraction."""

    max_steps: PositiveInt | None = None
    """Maximum number of optimizer steps, if `epochs` does not end training earlier."""

    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 2e-4
    """Peak learning rate of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    warmup_share: Annotated[float, Field(ge=0.0, le=0.9)] = 0.05
    """Share of the steps over which the learning rate rises from 0 to its peak."""

    final_learning_rate_share: Share = 0.1
    """Final learning rate of the cosine schedule, as a share of the peak."""

    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Decoupled weight decay of AdamW."""

    gradient_clip: Annotated[float, Field(ge=0.0, le=1000.0)] = 1.0
    """Maximum norm of the gradient over all parameters; 0 disables clipping."""

    batch_tokens: Annotated[int, Field(ge=16, le=16_777_216)] | Literal["auto"] = 2048
    """Tokens per forward and backward pass on one worker. Whole conversations are packed into a pass, and each
    attends only to itself. `auto`: each worker processes 2,048 tokens x `gradient_accumulation` per step, in as few
    passes as fit into its memory."""

    gradient_accumulation: Annotated[int, Field(ge=1, le=65_536)] = 1
    """Forward and backward passes per optimizer step on every worker."""

    memory_gb_per_worker: Annotated[float, Field(gt=0.0, le=100_000.0)] | None = Field(
        default=None, json_schema_extra=HOW
    )
    """Main memory per worker in 10^9 bytes. Ray starts a worker only where this much is free, and `batch_tokens:
    auto` stays below it. Left out, a worker may use its CPUs' share of the machine's memory."""

    precision: Precision = "auto"
    """`bf16` computes forward and backward passes in bfloat16 and keeps the optimizer's copy of the weights in
    float32. `auto` is `bf16`, or `fp32` where that is faster, as on CPUs without bfloat16 units; a resumed training
    keeps its precision."""

    zero: ZeroSpec = ZeroSpec()
    """DeepSpeed ZeRO: how the training state is partitioned across the workers."""

    deepspeed: Annotated[dict[str, Any], AfterValidator(check_passed_through)] = Field(default={})
    """Further DeepSpeed options, under DeepSpeed's own names; options that have a field here are refused."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Random seed of the adapter's initial weights, the order of the conversations, and dropout."""

    evaluate_every_steps: PositiveInt | None = Field(default=None, json_schema_extra=HOW)
    """Score the replies to the items of `evaluate.suites` at the first checkpoint after each of this number of steps,
    and at the last: the curves show them as `suite_NAME`."""

    checkpoint_every_steps: PositiveInt = 50
    """Optimizer steps between checkpoints. Each checkpoint measures the held-out loss, and the best one becomes the
    result."""

    held_out_tokens: Annotated[int, Field(ge=16, le=1_000_000_000)] = 16_384
    """Tokens of held-out conversations to measure at each checkpoint (evaluate measures all of them)."""

    num_workers: Annotated[int | list[int], AfterValidator(_min_and_max)] = 1
    """Number of training processes, each with its own share of the data. `[1, 4]` uses as many as the cluster has
    the capacity for, at least 1 and at most 4; a step processes the data of 4 workers, however many run."""

    cpus_per_worker: Annotated[float, Field(gt=0.0, le=4096.0)] = Field(default=1.0, json_schema_extra=HOW)
    """CPU cores and threads per worker."""

    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = Field(default=0, json_schema_extra=HOW)
    """GPUs per worker."""

    max_failures: Annotated[int, Field(ge=0, le=1000)] = Field(default=3, json_schema_extra=HOW)
    """How often lost workers are restarted from the last checkpoint before training fails."""

    hang_minutes: Annotated[float, Field(gt=0.0, le=10_000.0)] = Field(default=30.0, json_schema_extra=HOW)
    """Minutes without a finished step after which a worker counts as lost."""

    spike_factor: Annotated[float, Field(gt=1.0, le=1e9)] | None = 5.0
    """Skip a step whose loss is more than this many times the median of the 32 steps before it; `null` applies it. A
    step whose loss or gradient is not finite is skipped in any case."""

    max_skipped_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] = 20
    """Maximum number of skipped steps; with more, training fails and names the conversations."""

    @property
    def max_workers(self) -> int:
        """Number of workers that a step is sized for."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def min_workers(self) -> int:
        """Minimum number of workers; below it, training waits."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def pair_steps(self) -> int:
        """Maximum steps of adversarial training after its likelihood phase."""
        objective = self.objective
        return objective.warmup_steps + objective.turns if isinstance(objective, AdversarialSpec) else 0

    @property
    def pass_tokens(self) -> int:
        """Tokens per forward and backward pass if memory is not a limit."""
        return AUTO_TOKENS * self.gradient_accumulation if self.batch_tokens == "auto" else self.batch_tokens

    @property
    def passes(self) -> int:
        """Passes per step on each of `max_workers` if memory is not a limit."""
        return 1 if self.batch_tokens == "auto" else self.gradient_accumulation

    @model_validator(mode="after")
    def _frozen_without_adapter(self) -> "TrainSpec":
        if self.frozen and self.adapter is not None:
            raise ValueError("frozen is for training all weights (adapter: null); an adapter freezes the whole base")
        return self

    @model_validator(mode="after")
    def _quantised_is_possible(self) -> "TrainSpec":
        if self.adapter is not None and self.adapter.quantize and self.zero.stage == 3:
            raise ValueError("adapter.quantize keeps weights that zero.stage 3 cannot split; use stage 0, 1 or 2")
        return self

    @model_validator(mode="after")
    def _soft_replies_are_for_whole_models(self) -> "TrainSpec":
        if isinstance(self.objective, AdversarialSpec) and self.objective.gradient == "gumbel" and self.adapter:
            raise ValueError(
                "objective.gradient: gumbel needs models that are trained whole; set train.adapter: null, or use "
                "policy"
            )
        return self

    @model_validator(mode="after")
    def _pair_is_possible(self) -> "TrainSpec":
        if self.objective.name == "adversarial" and (self.zero.stage == 3 or self.zero.offload):
            raise ValueError(
                "objective adversarial generates replies during training, so each worker needs the whole model; use "
                "zero.stage 0, 1 or 2 without offload"
            )
        return self

    @model_validator(mode="after")
    def _steps_exist(self) -> "TrainSpec":
        if self.max_steps is not None and self.checkpoint_every_steps > 10 * self.max_steps:
            raise ValueError(
                f"checkpoint_every_steps ({self.checkpoint_every_steps}) is over ten times max_steps "
                f"({self.max_steps}); lower it, or leave it out"
            )
        return self
