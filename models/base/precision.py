"""In which number format a model is computed: the one that was asked for, or the faster one."""

import functools

import torch

from models.kernels.flops import matrix_product_rate

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_WORTH = 1.2  # times bfloat16's rate; below it, half the memory is worth more
# A processor without bfloat16 units may take more than a second for a product of 1,024 rows.
_SIZES, _SECONDS = {"cpu": 512, "cuda": 4096}, 0.1


def dtype_of(precision: str, device: torch.device | str = "cpu") -> torch.dtype:
    """Of `bf16`, `fp32`, or `auto`: what `faster_precision` says of the device."""
    return _DTYPES[faster_precision(torch.device(device).type) if precision == "auto" else precision]


@functools.cache
def faster_precision(device: str) -> str:
    """`bf16`, or `fp32` where float32 products are faster: a processor without bfloat16 units takes them apart.

    Measured: on AVX2 cores bfloat16 came to an eighth of float32's rate, on AVX-512 ones that know it to three times.
    """
    where = torch.device(device)
    bf16, fp32 = (matrix_product_rate(where, dtype, _SIZES[device], _SECONDS) for dtype in _DTYPES.values())
    return "fp32" if fp32 > _WORTH * bf16 else "bf16"
