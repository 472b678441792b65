"""The section `train` of the pipeline file: what is trained, on what, how, by how many.

Like all of the spec it imports no library but pydantic.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from models.training.deepspeed_config import check_passed_through
from workflows.spec.objectives import AdversarialSpec, AnyObjective, SftSpec
from workflows.spec.section import HOW, PositiveInt, Precision, Section, Share, named

AUTO_TOKENS = 2048
"""of a forward and backward pass where `train.batch_tokens` is `auto` and memory is no matter"""

_MOST_WORKERS = 65_536


def _fewest_and_most(count: int | list[int]) -> int | list[int]:
    fewest, most = (count, count) if isinstance(count, int) else count if len(count) == 2 else (0, 0)
    if not 1 <= fewest <= most <= _MOST_WORKERS:
        raise ValueError(f"got {count}; must be from 1 to {_MOST_WORKERS}, or [fewest, most], such as [1, 4]")
    return count


class AdapterSpec(Section):
    """LoRA (Hu et al. 2021, arXiv:2106.09685): W + (alpha / rank) B A, with W frozen."""

    method: Literal["lora", "rslora", "dora"] = "lora"
    """`rslora` (Kalajdzievski 2023, arXiv:2312.03732) scales by alpha / sqrt(rank); `dora` (Liu et al. 2024,
    arXiv:2402.09353) also learns the magnitude of every row of W."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Inner size of the two factors."""

    alpha: Annotated[float, Field(gt=0.0, le=4096.0)] = 32.0
    """Scale of the adapter's output, divided by the rank."""

    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout probability on the adapter's input."""

    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the linear layers to adapt, or `all-linear` for all but the head."""

    quantize: Literal["nf4"] | None = None
    """Keep W in 4-bit NormalFloat while training (QLoRA, Dettmers et al. 2023, arXiv:2305.14314), through
    bitsandbytes (`pip install rayconteur[qlora]`); the adapter is merged into the unquantised weights."""


class ZeroSpec(Section):
    """DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054): what the workers split among themselves."""

    stage: Annotated[int, Field(ge=0, le=3)] = 0
    """0 nothing, 1 optimizer states, 2 and gradients, 3 and parameters."""

    offload: Literal["cpu", "nvme"] | None = None
    """Where what is split lies while it is not needed: the machine's memory (from stage 1), or files (stage 3)."""

    offload_folder: str | None = None
    """For `offload: nvme`: a folder on every node's own fast disk."""

    @model_validator(mode="after")
    def _offload_is_possible(self) -> "ZeroSpec":
        least = {None: 0, "cpu": 1, "nvme": 3}[self.offload]
        if self.stage < least:
            raise ValueError(f"offload {self.offload} needs stage {least} or more, and stage is {self.stage}")
        if (self.offload == "nvme") != (self.offload_folder is not None):
            raise ValueError("offload_folder is for offload: nvme, which needs it; give both or neither")
        return self


class TrainSpec(Section):
    """train: corpus to checkpoint."""

    objective: Annotated[AnyObjective, BeforeValidator(named)] = SftSpec()
    """What training minimises: a name, or a mapping with `name` and the fields of this one."""

    adapter: AdapterSpec | None = AdapterSpec()
    """A LoRA adapter; `null` trains all weights."""

    frozen: list[str] = Field(default=[])
    """Without an adapter: names of parameters that are not trained, as in the model's state dict, with `*` for
    anything (`model.embed_tokens.*`, `model.layers.[0-9].*`)."""

    epochs: Annotated[float, Field(gt=0.0, le=1000.0)] = 3.0
    """Passes over the training conversations; may be a fraction."""

    max_steps: PositiveInt | None = None
    """Stop after so many optimizer steps, if that comes before `epochs`."""

    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 2e-4
    """Peak learning rate of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    warmup_share: Annotated[float, Field(ge=0.0, le=0.9)] = 0.05
    """Share of the steps in which the learning rate climbs from 0 to its peak."""

    final_learning_rate_share: Share = 0.1
    """Where the cosine ends, as a share of the peak."""

    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """AdamW's decoupled weight decay."""

    gradient_clip: Annotated[float, Field(ge=0.0, le=1000.0)] = 1.0
    """Largest norm of the gradient over all parameters; 0 switches clipping off."""

    batch_tokens: Annotated[int, Field(ge=16, le=16_777_216)] | Literal["auto"] = 2048
    """Tokens of one forward and backward pass on one worker; whole conversations are packed into it, each
    attending to itself alone. `auto`: a step reads 2,048 tokens x `gradient_accumulation` on each worker, in as few
    passes as fit into its memory."""

    gradient_accumulation: Annotated[int, Field(ge=1, le=65_536)] = 1
    """Forward and backward passes on every worker for one optimizer step."""

    memory_gb_per_worker: Annotated[float, Field(gt=0.0, le=100_000.0)] | None = Field(
        default=None, json_schema_extra=HOW
    )
    """Main memory of a worker in 10^9 bytes: Ray starts it only where so much is free, and `batch_tokens: auto` stays
    below it. Left out, a worker may take its CPUs' share of its machine's memory."""

    precision: Precision = "auto"
    """`bf16`: forward and backward in bfloat16, the optimizer's own copy of the weights in float32. `auto`: `bf16`,
    or `fp32` where that is faster, as on CPUs without bfloat16 units; kept when a training is resumed."""

    zero: ZeroSpec = ZeroSpec()
    """How DeepSpeed divides the training state among the workers."""

    deepspeed: Annotated[dict[str, Any], AfterValidator(check_passed_through)] = Field(default={})
    """Anything else of DeepSpeed's configuration, by its own names; what has a field here is refused there."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of the adapter's start, the order of the conversations, and dropout."""

    checkpoint_every_steps: PositiveInt = 50
    """Steps between checkpoints; at each the held-out loss is measured, and the best one becomes the result."""

    held_out_tokens: Annotated[int, Field(ge=16, le=1_000_000_000)] = 16_384
    """Tokens of held-out conversations measured at each checkpoint (evaluate measures all of them)."""

    num_workers: Annotated[int | list[int], AfterValidator(_fewest_and_most)] = 1
    """Training processes, each with its own share of the data. `[1, 4]`: as many as the cluster has room for, at
    least 1 and at most 4; a step reads what 4 would read, however many there are."""

    cpus_per_worker: Annotated[float, Field(gt=0.0, le=4096.0)] = Field(default=1.0, json_schema_extra=HOW)
    """CPU cores and threads of a worker."""

    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = Field(default=0, json_schema_extra=HOW)
    """GPUs of a worker."""

    max_failures: Annotated[int, Field(ge=0, le=1000)] = Field(default=3, json_schema_extra=HOW)
    """How often lost workers are started again from the last checkpoint before training fails."""

    hang_minutes: Annotated[float, Field(gt=0.0, le=10_000.0)] = Field(default=30.0, json_schema_extra=HOW)
    """A worker that has finished no step for so long is taken for lost."""

    spike_factor: Annotated[float, Field(gt=1.0, le=1e9)] | None = 5.0
    """A step whose loss is more than so many times the median of the 32 before it is not applied, like one whose loss
    or gradient is no finite number; `null` applies it."""

    max_skipped_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] = 20
    """Training fails when more steps than that could not be applied, and names the conversations."""

    @property
    def most_workers(self) -> int:
        """The number of workers that a step is made for."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def fewest_workers(self) -> int:
        """The number of workers below which training waits."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def pair_steps(self) -> int:
        """Steps of an adversarial pair after likelihood, at most."""
        objective = self.objective
        return objective.warmup_steps + objective.turns if isinstance(objective, AdversarialSpec) else 0

    @property
    def pass_tokens(self) -> int:
        """Tokens of a forward and backward pass if memory is no matter."""
        return AUTO_TOKENS * self.gradient_accumulation if self.batch_tokens == "auto" else self.batch_tokens

    @property
    def passes(self) -> int:
        """Passes on each of `most_workers` for one step if memory is no matter."""
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
                "objective.gradient: gumbel is for players that are trained whole; say train.adapter: null, or take "
                "policy"
            )
        return self

    @model_validator(mode="after")
    def _pair_is_possible(self) -> "TrainSpec":
        if self.objective.name == "adversarial" and (self.zero.stage == 3 or self.zero.offload):
            raise ValueError(
                "objective adversarial draws replies while it trains, for which each worker needs the whole model at "
                "hand; use zero.stage 0, 1 or 2 without offload"
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
