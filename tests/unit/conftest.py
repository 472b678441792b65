"""Shared by the unit tests: conversations of random tokens, a reference loss, the mistakes of a search."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

from workflows.spec.errors import SpecError
from workflows.spec.read import read_spec

Conversation = tuple[list[int], list[bool]]


@pytest.fixture
def token_rows() -> list[Conversation]:
    """Conversations of 5 to 60 random tokens, half of them supervised."""
    draw = random.Random(0)
    lengths = [draw.randrange(5, 60) for _ in range(7)]
    return [([draw.randrange(200) for _ in range(n)], [draw.random() < 0.5 for _ in range(n)]) for n in lengths]


@pytest.fixture
def plain_loss_sum() -> Callable[[Any, list[Conversation]], torch.Tensor]:
    """The supervised loss by transformers' own forward and attention, one conversation and token at a time."""

    def loss_sum(model: Any, rows: list[Conversation]) -> torch.Tensor:
        total = torch.zeros(())
        for ids, supervised in rows:
            logits = model(torch.tensor([ids])).logits[0]
            for position in range(1, len(ids)):
                if supervised[position]:
                    total = total - F.log_softmax(logits[position - 1].float(), -1)[ids[position]]
        return total

    return loss_sum


@pytest.fixture
def problems(tmp_path: Path, tiny: dict[str, Any]) -> Callable[..., str]:
    """The mistakes found in a pipeline with this `tune`, as text; empty if there are none."""

    def found(tune: dict[str, Any], train: dict[str, Any] | None = None) -> str:
        tiny["tune"] = tune
        tiny["train"] |= {"adapter": {"rank": 4}} | (train or {})
        file = tmp_path / "pipeline.yaml"
        file.write_text(yaml.safe_dump(tiny))
        try:
            read_spec(file)
        except SpecError as error:
            return str(error)
        return ""

    return found
