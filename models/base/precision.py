"""The floating-point format for a model: the one in the settings, or the faster one."""

import functools

import torch

from models.kernels.flops import matrix_product_rate

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_WORTH = 1.2  # times bfloat16's rate; below it, half the memory is worth more
# A CPU without bfloat16 units may take more than a second for a product of 1,024 rows.
_SIZES, _SECONDS = {"cpu": 512, "cuda": 4096}, 0.1


def dtype_of(precision: str, device: torch.device | str = "cpu") -> torch.dtype:
    """The dtype of `bf16`, `fp32` or `auto`; `auto` is `faster_precision` of the device."""
    return _DTYPES[faster_precision(torch.device(device).type) if precision == "auto" else precision]


@functools.cache
def faster_precision(device: str) -> str:
    """`bf16`, or `fp32` if float32 products are faster, as on a CPU that emulates bfloat16.

    Measured: bfloat16 has an eighth of float32's rate on AVX2 cores, and three times its rate on AVX-512 BF16 cores.
    """
    where = torch.device(device)
    bf16, fp32 = (matrix_product_rate(where, dtype, _SIZES[device], _SECONDS) for dtype in _DTYPES.values())
    return "fp32" if fp32 > _WORTH * bf16 else "bf16"
