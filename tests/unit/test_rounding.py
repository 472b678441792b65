"""Few bits: what a rounded matrix stands for."""

from typing import Any

import numpy as np
import pytest
import torch

from models.openvino_runtime import import_openvino
from models.openvino_weights import convert_weights
from models.rounding import round_groups


@pytest.fixture
def matrix() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(6, 64)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_weight_is_within_half_a_step_of_its_group(matrix: torch.Tensor, bits: int, symmetric: bool) -> None:
    rounded = round_groups(matrix, bits, 16, symmetric)
    assert (rounded.steps.shape, rounded.scale.shape) == ((6, 4, 16), (6, 4, 1))
    assert int(rounded.steps.max()) == 2**bits - 1 or symmetric
    groups = matrix.view(6, 4, 16)
    change = (rounded.matrix().view(6, 4, 16) - groups).abs() / rounded.scale.float()
    is_within = rounded.steps.float() % (2**bits - 1) != 0  # the first and the last step may have cut something off
    assert float(change[is_within].max()) <= 0.51
    if symmetric:
        assert set(rounded.zero.flatten().tolist()) == {2 ** (bits - 1)}


def test_what_lies_on_the_steps_stays_as_it_is() -> None:
    steps = torch.randint(0, 16, (5, 3, 32))
    steps[..., 0], steps[..., 1] = 0, 15
    values = ((steps - 7) * 0.25).flatten(1)
    rounded = round_groups(values, 4, 32)
    assert torch.equal(rounded.matrix(), values)
    assert torch.equal(rounded.steps, steps.to(torch.uint8))


def test_groups_have_ranges_of_their_own(matrix: torch.Tensor) -> None:
    matrix[0, 0] = 50.0
    apart, whole = (round_groups(matrix, 4, size).matrix()[0, 32:] - matrix[0, 32:] for size in (32, None))
    assert float(apart.abs().max()) < 0.3 < float(whole.abs().max())


@pytest.mark.parametrize("transposed", [True, False])
def test_openvino_multiplies_what_was_rounded(matrix: torch.Tensor, transposed: bool) -> None:
    """A layer and a head: the one in 4 bits, the other in 8, whichever way round they are stored."""
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
