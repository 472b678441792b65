"""The notes of `plan` and `train` about base models that cannot pack conversations, or cannot be trained."""

from pathlib import Path
from typing import Any

import pytest
from transformers import MambaConfig, T5Config

from workflows.spec import PipelineSpec
from workflows.stage import StageFailed
from workflows.training.readings import known_reading, note_of, reading_text


def spec_of(base: Path | str, **train: Any) -> PipelineSpec:
    source = {"path": "conversations.jsonl"}
    return PipelineSpec.model_validate(
        {"name": "x", "base_model": str(base), "data": {"sources": [source]}, "train": train}
    )


def test_a_note_says_what_a_recurrent_model_costs(tmp_path: Path, tiny_llama: Path) -> None:
    MambaConfig(hidden_size=32, num_hidden_layers=2).save_pretrained(tmp_path)
    reading = known_reading(spec_of(tmp_path))
    assert reading is not None
    assert "each in its own row, about 1.2 times the time of packed ones; packed, its" in reading_text(reading)
    assert note_of(tmp_path) == f"train: {reading_text(reading)}"
    assert note_of(tiny_llama) is None


def test_a_model_that_cannot_learn_is_refused_by_its_field(tmp_path: Path, tiny_llama: Path) -> None:
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(
        StageFailed, match=r"^base_model: transformers has no causal language model of model_type 't5'"
    ):
        known_reading(spec_of(tmp_path))
    with pytest.raises(
        StageFailed, match=r"^train.objective.teacher: transformers has no causal language model of model_type 't5'"
    ):
        known_reading(spec_of(tiny_llama, objective={"name": "distill", "teacher": str(tmp_path)}))


def test_what_is_not_here_yet_is_not_known() -> None:
    assert known_reading(spec_of("nobody/nothing")) is None
    assert known_reading(spec_of("new", adapter=None)) is None
