"""Liger's Triton kernels (Hsu et al. 2024, arXiv:2410.10989) in a model that is trained on a GPU."""

from typing import Any

# Not its cross-entropy: `models/kernels/loss.py` computes the head at supervised positions alone.
_KERNELS = {
    "rope": True,
    "rms_norm": True,
    "swiglu": True,
    "cross_entropy": False,
    "fused_linear_cross_entropy": False,
}


def use_liger(model: Any) -> bool:
    """Norms, gated layers and rotary positions by Liger's kernels; returns whether the package is installed.

    Left as they are: architectures that Liger does not know, and of each what it has no kernel for.
    """
    from transformers.integrations.liger import apply_liger_kernel
    from transformers.utils import is_liger_kernel_available

    if not is_liger_kernel_available():
        return False
    apply_liger_kernel(model, _KERNELS)
    return True
