"""The matrices of an OpenVINO model as bfloat16 or 8-bit integers, turned back into float32 where they are used."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.openvino_runtime import import_openvino

_LEVELS = 255


def convert_weights(model: Any, weights: str) -> None:
    """Replace the float32 matrices of an `openvino.Model`, `weights` being `bf16` or `int8`.

    `bf16` rounds to the nearest. `int8` keeps for every output one scale and one zero point, both float16, and its
    row in 256 steps between smallest and largest weight.
    """
    import_openvino()
    make = {"bf16": _rounded, "int8": _quantised}[weights]
    for node in model.get_ops():
        axis = _output_axis(node) if node.get_type_name() == "Constant" else None
        if axis is not None:
            readers = node.output(0).get_target_inputs()
            replacement = make(np.array(node.data), axis)
            for reader in readers:
                reader.replace_source_output(replacement.output(0))
    model.validate_nodes_and_infer_types()


def _output_axis(node: Any) -> int | None:
    """Along which axis of this constant the outputs lie, if it is a float32 matrix of a product or an embedding."""
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


def _rounded(matrix: npt.NDArray[np.float32], axis: int) -> Any:
    openvino = import_openvino()
    from openvino import opset13

    tensor = openvino.Tensor(openvino.Type.bf16, list(matrix.shape))  # one made from an array would not own it
    tensor.data.view(np.int16)[...] = torch.from_numpy(matrix).to(torch.bfloat16).view(torch.int16).numpy()
    return opset13.convert(openvino.op.Constant(tensor), "f32")


def _quantised(matrix: npt.NDArray[np.float32], axis: int) -> Any:
    from openvino import opset13

    along = 1 - axis
    low = np.minimum(matrix.min(axis=along, keepdims=True), 0)
    high = np.maximum(matrix.max(axis=along, keepdims=True), 0)
    scale = np.maximum((high - low) / _LEVELS, np.finfo(np.float16).tiny).astype(np.float16)
    zero = np.round(-low / scale.astype(np.float32)).clip(0, _LEVELS)
    steps = np.round(matrix / scale.astype(np.float32) + zero).clip(0, _LEVELS).astype(np.uint8)
    shifted = opset13.subtract(
        opset13.convert(opset13.constant(steps), "f16"), opset13.constant(zero.astype(np.float16))
    )
    return opset13.convert(opset13.multiply(shifted, opset13.constant(scale)), "f32")
