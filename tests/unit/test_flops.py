"""The operations of a step, compared with a count by hand."""

from pathlib import Path

import pytest
import torch

from models.base import adapters
from models.base.load import load_model
from models.kernels.flops import StepOperations, matrix_product_rate

# random:tiny-llama: 2 layers, hidden 64, inner 128, 4 heads and 2 of keys and values of size 16, 260 tokens.
LAYER = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128
ATTENTION = 2 * 3 * 4 * 64  # scores and values, forward and twice backward, 2 operations each; 2 layers


def test_all_weights_cost_six_operations_per_token(tiny_llama: Path) -> None:
    operations = StepOperations(load_model(tiny_llama, torch.float32))
    assert operations.of(1, 0, 0) == 6 * 2 * LAYER
    assert operations.of(0, 1, 0) == 6 * 64 * 260
    assert operations.of(0, 0, 1) == ATTENTION
    assert operations.of(100, 40, 5050) == 600 * 2 * LAYER + 240 * 64 * 260 + 5050 * ATTENTION


def test_frozen_weights_cost_four_operations_per_token(tiny_llama: Path) -> None:
    model = adapters.attach(load_model(tiny_llama, torch.float32), 4, 8.0, 0.0, ["q_proj"], base="random:tiny")
    operations = StepOperations(model)
    assert operations.of(1, 0, 0) == 4 * 2 * LAYER + 6 * 2 * 2 * 64 * 4
    assert operations.of(0, 1, 0) == 4 * 64 * 260


def test_gpt2s_layers_count_too(tiny_gpt2: Path) -> None:
    model = load_model(tiny_gpt2, torch.float32)
    weights = sum(p.numel() for name, p in model.named_parameters() if ".h." in name and p.dim() == 2)
    assert StepOperations(model).of(1, 0, 0) == 6 * weights


def test_the_rate_is_plausible_for_a_machine() -> None:
    assert 1e9 < matrix_product_rate(torch.device("cpu"), torch.float32) < 1e14


def test_quantised_weights_count_as_unquantised(tiny_llama: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra qlora: pip install 'rayconteur[qlora]'")
    model = load_model(tiny_llama, torch.bfloat16, quantize="nf4")
    assert StepOperations(model).of(1, 0, 0) == 4 * 2 * LAYER
