"""Options passed through to DeepSpeed: a name that DeepSpeed would ignore is refused, and known names are listed."""

from typing import Any

import pytest

from models.training.deepspeed_config import DeepSpeedSettings, deepspeed_config
from models.training.deepspeed_names import found_mistakes, mistakes


def config_with(extra: dict[str, Any], zero_stage: int = 2) -> dict[str, Any]:
    return deepspeed_config(DeepSpeedSettings(zero_stage, "bf16", gradient_clip=1.0, extra=extra))


def test_ours_and_well_known_names_are_fine() -> None:
    extra = {
        "prescale_gradients": True,
        "dump_state": True,
        "zero_optimization": {"overlap_comm": True, "sub_group_size": 1e9, "offload_optimizer": {"pin_memory": True}},
        "activation_checkpointing": {"cpu_checkpointing": True},
        "data_types": {"keep_in_fp32_modules": ["norm"]},
        "flops_profiler": {"enabled": True},
        "tensorboard": {"enabled": False},
        "aio": {"block_size": 4},
    }
    assert [found_mistakes(config_with(extra, stage), extra) for stage in range(4)] == [[]] * 4


@pytest.mark.parametrize(
    ("extra", "beginnings"),
    [
        ({"prescale_gradient": True}, ["prescale_gradient: DeepSpeed 0.* mean prescale_gradients?"]),
        ({"bfloat16": {"enabled": False}}, ["bfloat16: DeepSpeed 0.* no such name"]),
        (
            {"zero_optimization": {"offload_optimizer": {"pin_memry": True}, "foo": 1}, "wall_clock_breakdwn": True},
            [
                "zero_optimization.offload_optimizer.pin_memry: DeepSpeed 0.* no such name; did you mean pin_memory?",
                "zero_optimization.foo: DeepSpeed 0.* no such name; It knows: allgather_bucket_size, ",
                "wall_clock_breakdwn: DeepSpeed 0.* no such name; did you mean wall_clock_breakdown?",
            ],
        ),
        # A section that DeepSpeed reads key by key, one that is a pydantic model, one two levels down.
        ({"activation_checkpointing": {"profle": True}}, ["activation_checkpointing.profle: .* mean profile?"]),
        ({"comms_logger": {"verbos": True}}, ["comms_logger.verbos: .* mean verbose?"]),
        ({"timers": {"throughput": {"sync": True}}}, ["timers.throughput.sync: .* It knows: enabled, synchronized"]),
        # Values that DeepSpeed refuses or ignores, and options that it has removed.
        ({"zero_optimization": {"reduce_bucket_size": "5e8"}}, ["zero_optimization.reduce_bucket_size: .*integer"]),
        ({"zero_optimization": {"reduce_bucket_size": "auto"}}, ["zero_optimization.reduce_bucket_size: `auto` is"]),
        ({"communication_data_type": "fp8"}, ["communication_data_type: DeepSpeed refuses it: Invalid"]),
        ({"elasticity": {"enabled": True}}, ["elasticity: DeepSpeed refuses it: Elastic training has been removed"]),
    ],
)  # fmt: skip
def test_options_that_would_be_ignored_or_fail_are_refused(extra: dict[str, Any], beginnings: list[str]) -> None:
    found = found_mistakes(config_with(extra), extra)
    assert len(found) == len(beginnings)
    for message, beginning in zip(found, beginnings, strict=True):
        at = 0
        for part in beginning.split(".*"):
            at = message.find(part.strip(), at)
            assert at >= 0, message


def test_the_same_without_importing_deepspeed_here() -> None:
    extra = {"wall_clock_breakdwn": True}
    assert mistakes(config_with(extra), extra) == found_mistakes(config_with(extra), extra)
    assert mistakes(config_with({}), {}) == []
