"""LoRA adapters of several trainings in one pass over the frozen base that they share.

    layers = PackedLayers(base)                     # a base model without adapters
    with layers.adapted([Part(0, 256, one), Part(256, 512, other)]):
        base(...)                                   # each part of the row goes through its own adapter

A part is computed with its own rank, scale and dropout, and its rows never meet those of another part, so a loss
that is no number stays in its part (Ye et al. 2023, arXiv:2312.02515; Yan et al. 2025, arXiv:2508.02932).
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Factors:
    """A layer's adapter s B A: A is `down` [rank, in], B `up` [out, rank], both in the base's dtype, s `scale`."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    dropout: float


@dataclass(frozen=True)
class Adapter:
    """An adapter of the whole base model."""

    layers: Mapping[str, Factors]
    """by the name of the layer in the base model"""
    generator: torch.Generator
    """of its dropout"""


@dataclass(frozen=True)
class Part:
    """Positions of a row that belong to one adapter."""

    start: int
    end: int
    adapter: Adapter


class PackedLayers:
    """The linear layers of a base model, with a forward pass that adds each part's adapter."""

    def __init__(self, base: torch.nn.Module) -> None:
        self._parts: Sequence[Part] = ()
        self._draws = False
        head = base.get_output_embeddings()  # type: ignore[operator]
        for name, layer in base.named_modules():
            if type(layer) is torch.nn.Linear and layer is not head:
                layer.forward = functools.partial(self._forward, name, layer)  # type: ignore[method-assign]

    @contextlib.contextmanager
    def adapted(self, parts: Sequence[Part], draws_dropout: bool = True) -> Iterator[None]:
        """Within this context the base computes these parts of its row, with or without dropout."""
        self._parts, self._draws = parts, draws_dropout
        try:
            yield
        finally:
            self._parts = ()

    def _forward(self, name: str, layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        spans: list[_Span] = []
        factors: list[torch.Tensor] = []
        for part in self._parts:
            if (mine := part.adapter.layers.get(name)) is None:
                continue
            kept = None
            if self._draws and mine.dropout:
                kept = _kept(part.end - part.start, x, mine.dropout, part.adapter.generator)
            assert x[..., 0].numel() == self._parts[-1].end, f"{name} does not compute all tokens of the row"
            spans.append(_Span(part.start, part.end, mine.scale, kept))
            factors += mine.down, mine.up
        if not spans:
            return F.linear(x, layer.weight, layer.bias)
        apply: Any = _PackedLinear.apply
        out: torch.Tensor = apply(x, layer.weight, layer.bias, spans, *factors)
        return out


@dataclass(frozen=True)
class _Span:
    start: int
    end: int
    scale: float
    kept: torch.Tensor | None
    """[rows, in]: 1 / (1 - p) where dropout keeps an input, else 0"""


def _kept(rows: int, x: torch.Tensor, dropout: float, generator: torch.Generator) -> torch.Tensor:
    """Drawn as torch's own dropout draws it."""
    drawn = torch.empty((rows, x.shape[-1]), dtype=x.dtype, device=x.device)
    return drawn.bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)


class _PackedLinear(torch.autograd.Function):
    """x W^T + b + s (x A^T) B^T, with W and b frozen, and with other s, A and B in every span of rows.

    x [..., in], W [out, in]; then A [rank, in] and B [out, rank] of each span.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        x, weight, bias, spans, *factors = args
        rows = x.reshape(-1, x.shape[-1])
        whole = F.linear(x, weight, bias)  # what is returned must not be a view: some models change it in place
        out = whole.view(-1, whole.shape[-1])
        inners = []
        for span, down, up in zip(spans, factors[::2], factors[1::2], strict=True):
            inner = _inputs(rows, span) @ down.T
            out[span.start : span.end].addmm_(inner, up.T, alpha=span.scale)
            inners.append(inner)
        ctx.save_for_backward(rows, weight, *factors, *inners)
        ctx.spans = spans
        return whole

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        spans, (rows, weight, *saved) = ctx.spans, ctx.saved_tensors
        factors, inners = saved[: 2 * len(spans)], saved[2 * len(spans) :]
        above = upstream[0].reshape(-1, upstream[0].shape[-1])
        x_gradient = above @ weight if ctx.needs_input_grad[0] else None
        gradients = []
        for span, down, up, inner in zip(spans, factors[::2], factors[1::2], inners, strict=True):
            mine = above[span.start : span.end]
            inner_gradient = (mine @ up).mul_(span.scale)
            if x_gradient is not None:
                own = x_gradient[span.start : span.end]
                if span.kept is None:
                    own.addmm_(inner_gradient, down)
                else:
                    own.add_((inner_gradient @ down).mul_(span.kept))
            gradients += [inner_gradient.T @ _inputs(rows, span), (mine.T @ inner).mul_(span.scale)]
        if x_gradient is not None:
            x_gradient = x_gradient.view(*upstream[0].shape[:-1], -1)
        return x_gradient, None, None, None, *gradients


def _inputs(rows: torch.Tensor, span: _Span) -> torch.Tensor:
    own = rows[span.start : span.end]
    return own if span.kept is None else own * span.kept
