"""LoRA's forward and backward pass, with little overhead over the frozen layer's.

PEFT adds the adapter to the layer's output in three passes over it, forward and backward; here the adapter's small
matrix products accumulate into the output directly.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F


def fuse_lora(model: Any) -> int:
    """Give the plain LoRA layers of a PEFT model the forward pass of this module; returns their number.

    DoRA, layers with dropout, quantized weights and layers that are not linear stay unchanged. Not for ZeRO stage 3,
    which gathers a layer's weights only when that layer itself is called.
    """
    from peft.tuners.lora.layer import Linear

    layers = [module for module in model.modules() if type(module) is Linear and _is_plain(module)]
    for layer in layers:
        layer.forward = functools.partial(_forward, layer)
    return len(layers)


def _is_plain(layer: Any) -> bool:
    return (
        type(layer.base_layer) is torch.nn.Linear
        and not layer.lora_variant
        and all(isinstance(dropout, torch.nn.Identity) for dropout in layer.lora_dropout.values())
        and not any(factor.bias is not None for factor in layer.lora_B.values())
    )


def _forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1 or args or kwargs:
        plain: torch.Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return plain
    name = layer.active_adapters[0]
    base, down, up = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
    fused: Any = _LoraLinear.apply
    dtype = base.weight.dtype
    out: torch.Tensor = fused(x, base.weight, base.bias, down.to(dtype), up.to(dtype), layer.scaling[name])
    return out


class _LoraLinear(torch.autograd.Function):
    """x W^T + b + s (x A^T) B^T with W and b frozen (Hu et al. 2021, arXiv:2106.09685, eq. 3).

    x [..., in], W [out, in], A [rank, in], B [out, rank].
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        x, weight, bias, down, up, scale = args
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ down.T
        out = F.linear(x, weight, bias)  # what is returned must not be a view: some models change it in place
        out.view(-1, out.shape[-1]).addmm_(inner, up.T, alpha=scale)
        ctx.save_for_backward(rows, weight, down, up, inner)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        rows, weight, down, up, inner = ctx.saved_tensors
        above = upstream[0].reshape(-1, upstream[0].shape[-1])
        inner_gradient = (above @ up).mul_(ctx.scale)
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = (above @ weight).addmm_(inner_gradient, down)
            x_gradient = x_gradient.view(*upstream[0].shape[:-1], -1)
        down_gradient = inner_gradient.T @ rows
        up_gradient = (above.T @ inner).mul_(ctx.scale)
        return x_gradient, None, None, down_gradient, up_gradient, None
