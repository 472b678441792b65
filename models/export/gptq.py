"""Linear layers in few bits, rounded so that their outputs change least: GPTQ (Frantar et al. 2022,
arXiv:2210.17323).

    round_layers(model, batch)

The weights are rounded one input after the other, and the weights of later inputs compensate the error as far as the
inputs correlate in the conversations. The results lie on quantization steps that `round_groups` finds again.

Shape suffixes: T tokens, O outputs, I inputs.
"""

from collections.abc import Callable
from typing import Any

import torch

from models.errors import RayconteurError
from models.export.rounding import group_size_for, scale_and_zero
from models.kernels.attention import PACKED_ATTENTION
from models.packing import PackedBatch

# Damping: this share of the inputs' mean square is added to each, since statistics of rare inputs are unreliable.
_DAMPING = 0.05


def round_layers(model: Any, batch: PackedBatch, bits: int = 4) -> None:
    """Round the linear layers of a float32 model's blocks in place; embeddings, head and others stay as they are.

    The batch runs once, block by block: the layers of a block are rounded for the outputs of the rounded blocks
    before it. Layers whose number of inputs no group size divides stay too. The model must use
    `models.kernels.attention.PACKED_ATTENTION`.
    """
    if model.config._attn_implementation != PACKED_ATTENTION:
        raise RayconteurError(
            "optimize.weights: int4 needs an architecture that supports packed conversations; choose int8 or bf16"
        )
    seen: dict[int, tuple[torch.Tensor, list[torch.nn.Linear]]] = {}

    def remember(layer: torch.nn.Linear, arguments: tuple[torch.Tensor, ...]) -> None:
        seen.setdefault(id(arguments[0]), (arguments[0], []))[1].append(layer)

    def round_block(block: Any, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
        for inputs, layers in seen.values():
            size = group_size_for(inputs.shape[-1])
            if size is not None:
                _round_together(layers, inputs.flatten(0, -2), bits, size)
        seen.clear()
        output = block.forward(*arguments, **options)
        seen.clear()
        return output

    handles = []
    for block in _blocks(model):
        handles.append(block.register_forward_hook(round_block, with_kwargs=True))
        layers = [module for module in block.modules() if isinstance(module, torch.nn.Linear)]
        handles += [layer.register_forward_pre_hook(remember) for layer in layers]
    try:
        with torch.inference_mode():
            model.base_model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                sequence_lengths=batch.sequence_lengths,
                use_cache=False,
            )
    finally:
        for handle in handles:
            handle.remove()


def _blocks(model: Any) -> Any:
    """The model's transformer blocks, in order."""
    count = model.config.num_hidden_layers
    lists = (module for module in model.base_model.modules() if isinstance(module, torch.nn.ModuleList))
    return next(module for module in lists if len(module) == count)


def _round_together(layers: list[torch.nn.Linear], inputs_TI: torch.Tensor, bits: int, group_size: int) -> None:
    """Round layers with the same inputs as one layer with all their outputs."""
    weights = torch.cat([layer.weight for layer in layers])
    rounded = rounded_by_inputs(weights, inputs_TI, bits, group_size)
    for layer, part in zip(layers, torch.split(rounded, [layer.out_features for layer in layers]), strict=True):
        layer.weight.copy_(part)


def rounded_by_inputs(weights_OI: torch.Tensor, inputs_TI: torch.Tensor, bits: int, group_size: int) -> torch.Tensor:
    """float32 [O, I], rounded to 2^bits steps in each group of inputs."""
    left, rounded, factor = weights_OI.clone(), torch.empty_like(weights_OI), _factor(inputs_TI)
    for start in range(0, left.shape[1], group_size):
        end = start + group_size
        group = left[:, start:end].clone()
        errors = torch.empty_like(group)
        to_steps = _steps_of(group, bits)
        for at in range(group_size):
            column = start + at
            rounded[:, column] = to_steps(group[:, at])
            errors[:, at] = (group[:, at] - rounded[:, column]) / factor[column, column]
            group[:, at + 1 :] -= errors[:, at, None] * factor[column, column + 1 : end]
        left[:, end:] -= errors @ factor[start:end, end:]
    return rounded


def _factor(inputs_TI: torch.Tensor) -> torch.Tensor:
    """float32 [I, I]: the upper Cholesky factor of the inverse of the inputs' second moments."""
    moments = inputs_TI.T @ inputs_TI
    moments.diagonal().add_(_DAMPING * moments.diagonal().mean() + 1e-8)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _steps_of(group: torch.Tensor, bits: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that rounds a column to the steps of the whole group with its current weights."""
    top = 2**bits - 1
    scale, zero = (part.flatten() for part in scale_and_zero(group, top, top))
    return lambda column: ((column / scale + zero).round().clamp(0, top) - zero) * scale
