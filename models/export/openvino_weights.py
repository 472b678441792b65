"""The matrices of an OpenVINO model in bfloat16, 8 or 4 bits, converted to float32 where they are used."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.export.openvino_runtime import import_openvino
from models.export.rounding import Rounded, group_size_for, round_groups


def convert_weights(model: Any, weights: str) -> None:
    """Replace the float32 matrices of an `openvino.Model`, `weights` being `bf16`, `int8` or `int4`.

    `bf16` rounds to nearest. `int8` has one scale and one zero point for every output, and 256 steps between the
    smallest and largest weight of its row; `int4` has 16 steps for every 32 weights of a row. With `int4`, embeddings
    and head are in `int8`, like rows that no group size divides.
    """
    import_openvino()
    head = _head_of(model)
    for node in model.get_ops():
        axis = _output_axis(node) if node.get_type_name() == "Constant" else None
        if axis is not None:
            readers = node.output(0).get_target_inputs()
            bits = 4 if weights == "int4" and not _is_of_tokens(readers, head) else 8
            matrix = np.array(node.data)
            replacement = _rounded(matrix) if weights == "bf16" else _quantised(matrix, axis, bits)
            for reader in readers:
                reader.replace_source_output(replacement.output(0))
    model.validate_nodes_and_infer_types()


def _output_axis(node: Any) -> int | None:
    """The output axis of this constant, if it is a float32 matrix of a product or an embedding."""
    if len(node.get_output_shape(0)) != 2 or node.get_element_type().get_type_name() != "f32":
        return None
    axes = [_axis_in(reader) for reader in node.output(0).get_target_inputs()]
    return axes[0] if axes and all(axis is not None for axis in axes) else None


def _axis_in(reader: Any) -> int | None:
    operation, is_second = reader.get_node(), reader.get_index() == 1
    kind = operation.get_type_name()
    if kind == "MatMul" and is_second:
        return 0 if operation.get_attributes()["transpose_b"] else 1
    return 0 if kind == "Gather" and not is_second else None


def _head_of(model: Any) -> str:
    """The name of the matrix product that gives the logits: the last one before them."""
    node = model.outputs[0].get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    return str(node.get_friendly_name())


def _is_of_tokens(readers: Any, head: str) -> bool:
    """Whether a matrix has a row for every token of the vocabulary: an embedding or the head."""
    nodes = [reader.get_node() for reader in readers]
    return any(node.get_type_name() == "Gather" or node.get_friendly_name() == head for node in nodes)


def _rounded(matrix: npt.NDArray[np.float32]) -> Any:
    openvino = import_openvino()
    from openvino import opset13

    tensor = openvino.Tensor(openvino.Type.bf16, list(matrix.shape))  # made from an array it would not own the memory
    tensor.data.view(np.int16)[...] = torch.from_numpy(matrix).to(torch.bfloat16).view(torch.int16).numpy()
    return opset13.convert(openvino.op.Constant(tensor), "f32")


def _quantised(matrix: npt.NDArray[np.float32], axis: int, bits: int) -> Any:
    """Quantize in groups along the inputs; OpenVINO multiplies these directly only if the outputs come first."""
    by_output = torch.from_numpy(matrix if axis == 0 else matrix.T)
    size = group_size_for(by_output.shape[1]) if bits == 4 else None
    if size is None:
        return _in_rows(round_groups(by_output, 8), axis)
    return _in_groups(round_groups(by_output, 4, size), axis)


def _in_rows(rounded: Rounded, axis: int) -> Any:
    from openvino import opset13

    steps, scale, zero = (
        part.flatten(1).numpy() if axis == 0 else part.flatten(1).T.contiguous().numpy()
        for part in (rounded.steps, rounded.scale, rounded.zero)
    )
    shifted = opset13.subtract(
        opset13.convert(opset13.constant(steps), "f16"), opset13.constant(zero.astype(np.float16))
    )
    return opset13.convert(opset13.multiply(shifted, opset13.constant(scale)), "f32")


def _in_groups(rounded: Rounded, axis: int) -> Any:
    from openvino import opset13

    num_outputs, num_groups, size = rounded.steps.shape
    shifted = opset13.subtract(*(opset13.convert(_four_bits(part), "f16") for part in (rounded.steps, rounded.zero)))
    values = opset13.multiply(shifted, opset13.constant(rounded.scale.numpy()))
    matrix = opset13.reshape(values, opset13.constant([num_outputs, num_groups * size]), False)
    if axis == 1:
        matrix = opset13.transpose(matrix, opset13.constant([1, 0]))
    return opset13.convert(matrix, "f32")


def _four_bits(numbers: torch.Tensor) -> Any:
    """A constant of these numbers from 0 to 15, two per byte, the first in the lower half."""
    openvino = import_openvino()
    pairs = torch.nn.functional.pad(numbers.flatten(), (0, numbers.numel() % 2)).view(-1, 2).numpy()
    tensor = openvino.Tensor(openvino.Type.u4, list(numbers.shape))
    tensor.data[...] = pairs[:, 0] | pairs[:, 1] << 4
    return openvino.op.Constant(tensor)
