"""DeepSpeed's configuration: made from our fields, plus the options passed through, none of which has a field."""

from typing import Any

import pytest

from models.training.deepspeed_config import DeepSpeedSettings, check_passed_through, deepspeed_config


def config(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"zero_stage": 2, "precision": "bf16", "gradient_clip": 0.5}
    return deepspeed_config(DeepSpeedSettings(**values | changes))


def test_plain_fields_become_deepspeeds() -> None:
    found = config()
    assert found["zero_optimization"]["stage"] == 2
    assert found["bf16"]["enabled"]
    assert found["gradient_clipping"] == 0.5
    assert not config(precision="fp32")["bf16"]["enabled"]


def test_gradients_are_summed_in_float32() -> None:
    """Over micro-batches and over workers. At stage 0, DeepSpeed refuses to, and our engine does it."""
    sums = [config(zero_stage=stage).get("data_types") for stage in range(4)]
    assert sums == [None, *[{"grad_accum_dtype": "fp32"}] * 3]
    assert {config(zero_stage=stage)["communication_data_type"] for stage in range(4)} == {"fp32"}


@pytest.mark.parametrize(("stage", "moved"), [(1, {"optimizer"}), (3, {"optimizer", "param"})])
def test_offload_moves_what_the_stage_splits(stage: int, moved: set[str]) -> None:
    zero = config(zero_stage=stage, offload="cpu")["zero_optimization"]
    assert {name: value for name, value in zero.items() if name.startswith("offload")} == {
        f"offload_{name}": {"device": "cpu"} for name in moved
    }


def test_files_are_offloaded_into_the_folder() -> None:
    zero = config(zero_stage=3, offload="nvme", offload_folder="/fast")["zero_optimization"]
    assert zero["offload_param"] == zero["offload_optimizer"] == {"device": "nvme", "nvme_path": "/fast"}


def test_what_is_passed_through_is_merged() -> None:
    extra = {
        "zero_optimization": {"reduce_bucket_size": 5, "offload_optimizer": {"ratio": 0.5}},
        "prescale_gradients": True,
    }
    found = config(offload="cpu", extra=check_passed_through(extra))
    assert found["zero_optimization"] == {
        "stage": 2, "reduce_bucket_size": 5, "offload_optimizer": {"device": "cpu", "ratio": 0.5},
    }  # fmt: skip
    assert found["prescale_gradients"] is True
    assert found["gradient_clipping"] == 0.5


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"zero_optimization": {"stage": 1}}, r"zero_optimization\.stage is set by train\.zero\.stage"),
        ({"gradient_clipping": 1}, r"gradient_clipping is set by train\.gradient_clip;"),
        ({"optimizer": {"type": "Adam"}}, r"optimizer is set by train\.learning_rate and train\.weight_decay"),
        (
            {"zero_optimization": {"offload_param": {"device": "cpu"}}},
            r"offload_param\.device .* train\.zero\.offload",
        ),
        ({"fp16": {"enabled": True}}, r"fp16 is set by train\.precision"),
        ({"zero_optimization": True}, r"zero_optimization: got True; must be a mapping"),
        ({"gradient_allreduce_op": "sum"}, r"gradient_allreduce_op cannot be set: .* any number of workers"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, r"grad_accum_dtype cannot be set: .* float32"),
    ],
)
def test_what_has_a_field_is_refused(extra: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_passed_through(extra)
