"""DeepSpeed's configuration from plain values, and what is passed through to it. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Any

_HAVE_FIELDS = {
    "train_batch_size": "train.batch_tokens",
    "train_micro_batch_size_per_gpu": "train.batch_tokens",
    "gradient_accumulation_steps": "train.gradient_accumulation",
    "gradient_clipping": "train.gradient_clip",
    "optimizer": "train.learning_rate and train.weight_decay",
    "scheduler": "train.warmup_share and train.final_learning_rate_share",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
    "zero_optimization.stage": "train.zero.stage",
    "zero_optimization.offload_optimizer.device": "train.zero.offload",
    "zero_optimization.offload_optimizer.nvme_path": "train.zero.offload_folder",
    "zero_optimization.offload_param.device": "train.zero.offload",
    "zero_optimization.offload_param.nvme_path": "train.zero.offload_folder",
}
_OURS = {
    "gradient_allreduce_op": "a step's gradient is a mean over its tokens, however many workers there are",
    "managed_gradient_accumulation": "the training loop says where a step ends",
    "data_types.grad_accum_dtype": "gradients are summed in float32, however many passes there are",
}

# What is summed over workers at a time lies there a second time, in float32: 0.2 GB, where DeepSpeed's own number is
# ten times as many.
_BUCKET_ELEMENTS = 50_000_000


def check_passed_through(extra: dict[str, Any]) -> dict[str, Any]:
    """`extra` as it is; raises ValueError where it says what a plain field of the pipeline file says, or breaks what
    training promises. Names that DeepSpeed does not know: `models.training.deepspeed_names`, which takes seconds."""
    for name, value in _paths(extra):
        if name in _HAVE_FIELDS:
            raise ValueError(f"{name} is set by {_HAVE_FIELDS[name]}; say it there and leave it out here")
        if name in _OURS:
            raise ValueError(f"{name} cannot be set: {_OURS[name]}; leave it out")
        if not isinstance(value, dict) and any(known.startswith(f"{name}.") for known in (*_HAVE_FIELDS, *_OURS)):
            raise ValueError(f"{name}: got {value!r}; must be a mapping of DeepSpeed's names under it")
    return extra


@dataclass(frozen=True)
class DeepSpeedSettings:
    """What a training sets of DeepSpeed."""

    zero_stage: int
    precision: str
    """"bf16" or "fp32\""""
    gradient_clip: float
    offload: str | None = None
    """"cpu", "nvme" or None; at stage 3 parameters are offloaded too"""
    offload_folder: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """merged into the configuration"""


def deepspeed_config(settings: DeepSpeedSettings) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`."""
    zero: dict[str, Any] = {"stage": settings.zero_stage, "reduce_bucket_size": _BUCKET_ELEMENTS}
    if settings.offload is not None:
        folder = {"nvme_path": settings.offload_folder} if settings.offload_folder else {}
        where = {"device": settings.offload, **folder}
        zero["offload_optimizer"] = where
        if settings.zero_stage == 3:
            zero["offload_param"] = dict(where)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        # More than 1, for DeepSpeed to keep sums of gradients; how many there are is said micro-batch by micro-batch.
        "gradient_accumulation_steps": 2,
        "gradient_clipping": settings.gradient_clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # `immediate_grad_update`: at stage 1 a gradient that is in the sum makes room at once.
        "bf16": {"enabled": settings.precision == "bf16", "immediate_grad_update": True},
        # Else micro-batches and workers are summed in bfloat16, in which 1,024 equal ones come to a third of their
        # sum. At stage 0 DeepSpeed knows no other sum over micro-batches, and the engine keeps its own.
        **({"data_types": {"grad_accum_dtype": "fp32"}} if settings.zero_stage else {}),
        "communication_data_type": "fp32",
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    return _merged(config, settings.extra)


def _paths(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Every dotted path in nested dictionaries with what stands there, inner nodes too."""
    found = []
    for name, value in values.items():
        found.append((f"{prefix}{name}", value))
        if isinstance(value, dict):
            found += _paths(value, f"{prefix}{name}.")
    return found


def _merged(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    result = dict(values)
    for name, value in more.items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = _merged(result[name], value) if both else value
    return result
