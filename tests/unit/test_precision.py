"""`precision: auto` is the number format that is faster on this machine."""

import time

import pytest
import torch

from models.base.precision import dtype_of, faster_precision


def seconds_of(dtype: torch.dtype) -> float:
    one = torch.ones(512, 512, dtype=dtype)
    one @ one
    took = []
    for _ in range(5):
        began = time.perf_counter()
        one @ one
        took.append(time.perf_counter() - began)
    return min(took)


def test_auto_is_the_faster_one() -> None:
    ratio = seconds_of(torch.bfloat16) / seconds_of(torch.float32)
    if 0.8 < ratio < 1.8:
        pytest.skip(f"needs a machine on which one of the two is clearly faster; here the ratio is {ratio:.2f}")
    assert faster_precision("cpu") == ("fp32" if ratio > 1 else "bf16")


def test_a_given_precision_is_used() -> None:
    assert dtype_of("bf16") == torch.bfloat16
    assert dtype_of("fp32") == torch.float32
    assert dtype_of("auto") == dtype_of(faster_precision("cpu"))


def test_measuring_uses_up_no_random_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    faster_precision.cache_clear()
    faster_precision("cpu")
    assert torch.equal(torch.rand(3), expected)
