"""Matrices in few bits: neighbouring weights of an output share a scale and a zero point.

    rounded = round_groups(matrix, bits=4, group_size=32)
    rounded.matrix()                                        # the dequantized matrix

Shape suffixes: O outputs, I inputs, G groups of a row, S weights of a group (G x S = I).
"""

from dataclasses import dataclass

import torch

# Of 4-bit weights: the first one that divides a row. Smaller groups are more exact, but have more scales.
GROUP_SIZES = (32, 16)

_HIT = 0.05  # tolerance, in steps, for a weight that lies on a step
_LEAST_SCALE = float(torch.finfo(torch.float16).tiny)


@dataclass(frozen=True)
class Rounded:
    """`scale * (steps - zero)` for each weight."""

    steps: torch.Tensor
    """uint8 [O, G, S]"""
    scale: torch.Tensor
    """float16 [O, G, 1]"""
    zero: torch.Tensor
    """uint8 [O, G, 1]"""

    def matrix(self) -> torch.Tensor:
        """float32 [O, I]"""
        return _values(self.steps.float(), self.scale.float(), self.zero.float()).flatten(1)


def round_groups(matrix: torch.Tensor, bits: int, group_size: int | None = None, symmetric: bool = False) -> Rounded:
    """float32 [O, I] rounded to 2^bits steps in each group of `group_size` inputs; None means whole rows.

    The steps range from the smallest to the largest weight of a group. If all weights lie on fewer steps, those are
    used, so a rounded matrix does not change again. (Ranges with a smaller squared error, which clip the largest
    weights, increase perplexity.) `symmetric` fixes the zero point in the middle, for formats without zero points.
    """
    groups = matrix.float().reshape(matrix.shape[0], -1, group_size or matrix.shape[1])
    top = 2**bits - 1
    scale, zero = scale_and_zero(groups, top, top, symmetric)
    for num_steps in range(top - 1, top // 2, -1) if bits < 8 and not symmetric else ():
        wider, its_zero = scale_and_zero(groups, top, num_steps)
        missed = (_values(_steps(groups, wider, its_zero, top), wider, its_zero) - groups).abs()
        hits = (missed < _HIT * wider).all(-1, keepdim=True)
        scale, zero = torch.where(hits, wider, scale), torch.where(hits, its_zero, zero)
    return Rounded(_steps(groups, scale, zero, top).to(torch.uint8), scale.half(), zero.to(torch.uint8))


def scale_and_zero(
    groups: torch.Tensor, top: int, num_steps: int, symmetric: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point, float32 [..., 1], of groups [..., S]: `num_steps` steps from the smallest to the largest
    weight.

    0 is always one of them.
    """
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    width = 2 * torch.maximum(-low, high) if symmetric else high - low
    scale = (width / num_steps).clamp(min=_LEAST_SCALE).half().float()  # as it will be stored
    zero = torch.full_like(scale, (top + 1) // 2) if symmetric else (-low / scale).round().clamp(0, top)
    return scale, zero


def _steps(groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, top: int) -> torch.Tensor:
    return (groups / scale + zero).round().clamp(0, top)


def _values(steps: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    return scale * (steps - zero)


def group_size_for(num_inputs: int) -> int | None:
    """The first of `GROUP_SIZES` that divides `num_inputs`; None if none does."""
    return next((size for size in GROUP_SIZES if num_inputs % size == 0), None)
