"""DeepSpeed's configuration: from plain values, and merged with `train.deepspeed`. Imports nothing heavy."""

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
    "gradient_allreduce_op": "a step's gradient is a mean over its tokens, for any number of workers",
    "managed_gradient_accumulation": "the training loop decides where a step ends",
    "data_types.grad_accum_dtype": "gradients are summed in float32, for any number of micro-batches",
}

# A bucket holds a float32 copy of the gradients that are reduced at a time: 0.2 GB. DeepSpeed's default is ten times
# as large.
_BUCKET_ELEMENTS = 50_000_000


def check_passed_through(extra: dict[str, Any]) -> dict[str, Any]:
    """`extra` unchanged; raises ValueError if it sets what a field of the pipeline file sets, or breaks a guarantee
    of training. `models.training.deepspeed_names` finds names that DeepSpeed does not know, which takes seconds."""
    for name, value in _paths(extra):
        if name in _HAVE_FIELDS:
            raise ValueError(f"{name} is set by {_HAVE_FIELDS[name]}; set it there and remove it here")
        if name in _OURS:
            raise ValueError(f"{name} cannot be set: {_OURS[name]}; remove it")
        if not isinstance(value, dict) and any(known.startswith(f"{name}.") for known in (*_HAVE_FIELDS, *_OURS)):
            raise ValueError(f"{name}: got {value!r}; must be a mapping of DeepSpeed's settings")
    return extra


@dataclass(frozen=True)
class DeepSpeedSettings:
    """The settings of DeepSpeed that a training chooses."""

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
        # More than 1, so that DeepSpeed accumulates gradients; the engine marks the last micro-batch of a step
        # itself.
        "gradient_accumulation_steps": 2,
        "gradient_clipping": settings.gradient_clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # `immediate_grad_update`: at stage 1 a gradient's memory is freed as soon as it is accumulated.
        "bf16": {"enabled": settings.precision == "bf16", "immediate_grad_update": True},
        # The default accumulates in bfloat16, in which 1,024 equal gradients add up to a third of their sum. At stage
        # 0 DeepSpeed has no float32 accumulation, so the engine does it.
        **({"data_types": {"grad_accum_dtype": "fp32"}} if settings.zero_stage else {}),
        "communication_data_type": "fp32",
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    return _merged(config, settings.extra)


def _paths(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Every dotted path in nested dictionaries with its value, inner nodes included."""
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
