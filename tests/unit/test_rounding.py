"""Quantisation to few bits: the values of a rounded matrix."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.export.gptq import round_layers, rounded_by_inputs
from models.export.openvino_runtime import import_openvino
from models.export.openvino_weights import convert_weights
from models.export.rounding import round_groups
from models.kernels.attention import PACKED_ATTENTION
from models.kernels.loss import supervised_logits
from models.packing import pack


@pytest.fixture
def matrix() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(6, 64)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_weight_is_within_half_a_step_of_its_group(matrix: torch.Tensor, bits: int, symmetric: bool) -> None:
    rounded = round_groups(matrix, bits, 16, symmetric)
    assert (rounded.steps.shape, rounded.scale.shape) == ((6, 4, 16), (6, 4, 1))
    groups = matrix.view(6, 4, 16)
    change = (rounded.matrix().view(6, 4, 16) - groups).abs() / rounded.scale.float()
    assert float(change.max()) <= (1.01 if symmetric else 0.51)  # symmetric steps have one step less at the upper end
    if symmetric:
        assert set(rounded.zero.flatten().tolist()) == {2 ** (bits - 1)}


@pytest.mark.parametrize(("lowest", "highest"), [(0, 15), (0, 12), (3, 9), (7, 15), (9, 12), (0, 3), (7, 7)])
def test_values_on_steps_stay_unchanged(lowest: int, highest: int) -> None:
    steps = torch.randint(lowest, highest + 1, (50, 3, 32))
    values = ((steps - 7) * 0.0371).half().float().flatten(1)
    assert torch.allclose(round_groups(values, 4, 32).matrix(), values, rtol=2e-3, atol=1e-5)


def test_gptq_changes_what_a_layer_puts_out_less_than_plain_rounding() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(400, 16) @ torch.randn(16, 64) + 0.1 * torch.randn(400, 64)  # correlated
    weights = torch.randn(24, 64)
    plain = round_groups(weights, 4, 32).matrix()
    rounded = rounded_by_inputs(weights, inputs, 4, 32)
    kept = round_groups(rounded, 4, 32)
    assert torch.allclose(kept.matrix(), rounded, atol=1e-2 * float(kept.scale.max())), "it lies on steps"

    def error(found: torch.Tensor) -> float:
        return float((inputs @ (found - weights).T).square().mean())

    assert error(rounded) < 0.5 * error(plain)


def test_gptq_rounds_the_blocks_of_a_model_and_nothing_else(
    make_loud: Callable[[Path], Any], tiny_llama: Path, token_rows: list[Any]
) -> None:
    model = make_loud(tiny_llama)
    model.set_attn_implementation(PACKED_ATTENTION)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    batch = pack(token_rows)
    with torch.inference_mode():
        reference = supervised_logits(model, batch)
        round_layers(model, batch)
        by_gptq = supervised_logits(model, batch)
        for name, parameter in model.named_parameters():
            if "_proj" not in name:
                assert torch.equal(parameter, before[name]), name
                continue
            assert not torch.equal(parameter, before[name]), name
            assert torch.allclose(round_groups(parameter, 4, 32).matrix(), parameter, atol=1e-3), name
            parameter.copy_(round_groups(before[name], 4, 32).matrix())
        plain = supervised_logits(model, batch)
    assert (by_gptq - reference).square().mean() < 0.8 * (plain - reference).square().mean()


def test_groups_have_ranges_of_their_own(matrix: torch.Tensor) -> None:
    matrix[0, 0] = 50.0
    apart, whole = (round_groups(matrix, 4, size).matrix()[0, 32:] - matrix[0, 32:] for size in (32, None))
    assert float(apart.abs().max()) < 0.3 < float(whole.abs().max())


@pytest.mark.parametrize("transposed", [True, False])
def test_openvino_multiplies_what_was_rounded(matrix: torch.Tensor, transposed: bool) -> None:
    """A layer in 4 bits and a head in 8, in either orientation."""
    openvino = import_openvino()
    from openvino import opset13

    def product(given: Any, weights: torch.Tensor) -> Any:
        stored = (weights if transposed else weights.T).contiguous().numpy()
        return opset13.matmul(given, opset13.constant(stored), False, transposed)

    given, head = opset13.parameter([-1, 64], openvino.Type.f32), torch.randn(40, 6)
    model = openvino.Model([product(product(given, matrix), head)], [given], "two")
    convert_weights(model, "int4")
    kinds = [n.get_element_type().get_type_name() for n in model.get_ops() if n.get_type_name() == "Constant"]
    assert (kinds.count("u4"), kinds.count("u8")) == (2, 1)
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    seen = compiled(np.eye(64, dtype=np.float32))[0]
    expected = round_groups(matrix, 4, 32).matrix().T @ round_groups(head, 8).matrix().T
    assert np.allclose(seen, expected, atol=1e-3)


def test_a_row_that_no_group_divides_stays_in_eight_bits() -> None:
    openvino = import_openvino()
    from openvino import opset13

    given = opset13.parameter([-1, 10], openvino.Type.f32)
    layer = opset13.matmul(given, opset13.constant(np.ones((4, 10), np.float32)), False, True)
    head = opset13.matmul(layer, opset13.constant(np.ones((9, 4), np.float32)), False, True)
    model = openvino.Model([head], [given], "odd")
    convert_weights(model, "int4")
    kinds = [n.get_element_type().get_type_name() for n in model.get_ops() if n.get_type_name() == "Constant"]
    assert (kinds.count("u4"), kinds.count("u8")) == (0, 2)
