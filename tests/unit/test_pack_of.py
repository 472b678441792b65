"""How many trials `tune.pack` puts into a worker group, and which searches cannot be packed."""

from typing import Any

import pytest

from models.errors import RayconteurError
from workflows.search.pack import pack_of
from workflows.spec import PipelineSpec


def spec_of(tiny: dict[str, Any], pack: int | str = "auto", train: Any = None, tune: Any = None) -> PipelineSpec:
    tiny["train"] |= {"adapter": {"rank": 4}, "batch_tokens": 256, **(train or {})}
    tiny["tune"] = {"space": {"train.learning_rate": [1e-3, 1e-2]}, "trials": 20, "pack": pack, **(tune or {})}
    return PipelineSpec.model_validate(tiny)


@pytest.mark.parametrize(("tokens", "pack"), [(64, 8), (256, 4), (400, 2), (1024, 1), (4096, 1)])
def test_short_steps_are_packed_until_they_fill_a_row(tiny: dict[str, Any], tokens: int, pack: int) -> None:
    assert pack_of(spec_of(tiny, train={"batch_tokens": tokens})) == pack


def test_the_longest_step_of_the_space_counts(tiny: dict[str, Any]) -> None:
    assert pack_of(spec_of(tiny, tune={"space": {"train.batch_tokens": [128, 512]}})) == 2


def test_a_number_is_taken_as_it_is(tiny: dict[str, Any]) -> None:
    assert pack_of(spec_of(tiny, pack=7, train={"batch_tokens": 4096})) == 7
    assert pack_of(spec_of(tiny, pack=1)) == 1


@pytest.mark.parametrize(
    ("train", "tune", "words"),
    [
        ({"adapter": None}, {}, "only LoRA adapters"),
        ({"adapter": {"method": "dora"}}, {}, "DoRA"),
        ({}, {"space": {"train.adapter.method": ["lora", "dora"]}}, "DoRA"),
        ({"zero": {"stage": 3}}, {}, "zero.stage 3"),
        ({"batch_tokens": "auto"}, {}, "batch_tokens auto"),
        ({"deepspeed": {"wall_clock_breakdown": True}}, {}, "train.deepspeed"),
        ({}, {"metric": ["held_out_loss", "seconds"]}, "seconds measures"),
        ({}, {"constraints": ["tokens_per_second >= 5"]}, "tokens_per_second measures"),
        ({}, {"scheduler": "population"}, "population"),
    ],
)
def test_other_searches_are_not_packed_and_a_number_is_refused(
    tiny: dict[str, Any], train: Any, tune: Any, words: str
) -> None:
    assert pack_of(spec_of(tiny, train=train, tune=tune)) == 1
    with pytest.raises(RayconteurError, match=r"^tune\.pack: got 4, but .*; leave tune\.pack out$") as caught:
        pack_of(spec_of(tiny, pack=4, train=train, tune=tune))
    assert words in str(caught.value)


def test_a_base_model_with_dropout_of_its_own_is_not_packed(tiny: dict[str, Any]) -> None:
    tiny["base_model"] = "random:tiny-gpt2"
    assert pack_of(spec_of(tiny)) == 1
