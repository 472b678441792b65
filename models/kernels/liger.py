"""Liger's Triton kernels (Hsu et al. 2024, arXiv:2410.10989) in a model that is trained on a GPU."""

from typing import Any

# Without Liger's cross-entropy: `models/kernels/loss.py` computes the head only at supervised positions.
_KERNELS = {
    "rope": True,
    "rms_norm": True,
    "swiglu": True,
    "cross_entropy": False,
    "fused_linear_cross_entropy": False,
}


def use_liger(model: Any) -> bool:
    """Use Liger's kernels for norms, gated layers and rotary positions; returns whether the package is installed.

    Architectures that Liger does not know, and layers without a kernel, stay unchanged.
    """
    from transformers.integrations.liger import apply_liger_kernel
    from transformers.utils import is_liger_kernel_available

    if not is_liger_kernel_available():
        return False
    apply_liger_kernel(model, _KERNELS)
    return True
