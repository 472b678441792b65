"""Causal attention a block of queries at a time, over the parts of the row that each block sees.

    out = blocked_attention(query, key, value, blocks_of(lengths, prefixes, window), scale)

The backward pass recomputes the probabilities, so that no scores are stored (Dao et al. 2022, arXiv:2205.14135,
section 3.1). On a CPU forward and backward take half the time of torch's own kernel.

Shape suffixes: T tokens in the row, D size of a head; H query heads, K key-value heads, G = H / K; N queries of a
block and M keys that they see.
"""

import functools
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch

from models.trees import ancestors

_QUERIES_AT_ONCE = 256

Span = tuple[int, int]
"""start and end positions in the row"""


class Block(NamedTuple):
    """Queries, and the keys that they see in the order of their conversation; the last keys are the queries' own."""

    queries: Span
    keys: tuple[Span, ...]


class Scores(NamedTuple):
    """How products of queries and keys become scores."""

    scale: float
    window: int | None = None
    """the number of keys that a query sees, including its own"""
    softcap: float | None = None
    """c: a score s becomes c tanh(s / c) (Gemma 2, arXiv:2408.00118, section 2)"""


@functools.lru_cache(maxsize=16)
def blocks_of(lengths: tuple[int, ...], prefixes: tuple[int, ...], window: int | None = None) -> tuple[Block, ...]:
    """All blocks of a row of pieces (models/packing.py), without keys outside the windows of all their queries."""
    blocks = []
    for own, before in runs(lengths, prefixes):
        for begin in range(*own, _QUERIES_AT_ONCE):
            end = min(begin + _QUERIES_AT_ONCE, own[1])
            keys = _merged([*before, (own[0], end)])
            blocks.append(Block((begin, end), keys if window is None else _last(keys, end - begin + window - 1)))
    return tuple(blocks)


def runs(lengths: Sequence[int], prefixes: Sequence[int]) -> list[tuple[Span, tuple[Span, ...]]]:
    """Spans of adjacent pieces that continue each other, each with the spans of its conversation before it."""
    starts = [0, *accumulate(lengths)]
    found: list[tuple[Span, tuple[Span, ...]]] = []
    for piece, (start, end) in enumerate(pairwise(starts)):
        if piece and prefixes and prefixes[piece] == piece - 1:
            (begin, _), before = found[-1]
            found[-1] = (begin, end), before
            continue
        path = ancestors(prefixes, piece) if prefixes else []
        found.append(((start, end), _merged([(starts[each], starts[each + 1]) for each in path])))
    return found


def _merged(spans: Sequence[Span]) -> tuple[Span, ...]:
    merged: list[Span] = []
    for start, end in spans:
        if merged and merged[-1][1] == start:
            merged[-1] = merged[-1][0], end
        elif end > start:
            merged.append((start, end))
    return tuple(merged)


def _last(spans: tuple[Span, ...], count: int) -> tuple[Span, ...]:
    """The spans of the last `count` tokens."""
    found: list[Span] = []
    for start, end in reversed(spans):
        if count > 0:
            found.append((max(start, end - count), end))
            count -= end - start
    return tuple(reversed(found))


def joined(tensor: torch.Tensor, spans: Sequence[Span], dim: int = 1) -> torch.Tensor:
    """These parts of a tensor, concatenated; without a copy if there is one."""
    parts = [tensor.narrow(dim, start, end - start) for start, end in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def blocked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocks: tuple[Block, ...],
    scores: Scores,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(scores + mask) V: query [H, T, D], key [K, T, D], value [K, T, E], `sinks` [H]; [T, H, E].

    A head's sink is the score of one additional key, whose value is zero (Xiao et al. 2024, arXiv:2309.17453, table
    3).
    """
    apply: Any = _BlockedAttention.apply
    out: torch.Tensor = apply(query, key, value, sinks, blocks, scores)
    return out


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        query, key, value, sinks, blocks, scores = args
        heads, tokens, _ = query.shape
        out: torch.Tensor = query.new_empty((tokens, heads, value.shape[2]))
        for block in blocks:
            probabilities, *_ = _probabilities(query, key, sinks, block, scores)
            read = torch.bmm(probabilities, joined(value, block.keys))
            begin, end = block.queries
            out[begin:end] = read.view(heads, end - begin, -1).transpose(0, 1)
        ctx.save_for_backward(query, key, value, sinks)
        ctx.settings = blocks, scores
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        query, key, value, sinks = ctx.saved_tensors
        blocks, scores = ctx.settings
        out_gradient = upstream[0].transpose(0, 1)
        heads, _, size = query.shape
        query_gradient = torch.empty_like(query)
        # Several blocks add to the same keys.
        key_gradient, value_gradient = (torch.zeros(each.shape, device=each.device) for each in (key, value))
        sink_gradient = None if sinks is None else torch.zeros(heads, device=sinks.device)
        for block in blocks:
            begin, end = block.queries
            probabilities, bent, of_sinks = _probabilities(query, key, sinks, block, scores)
            above = _queries(out_gradient, key, begin, end)
            _add(value_gradient, block.keys, torch.bmm(probabilities.transpose(1, 2), above))
            gradient = torch.bmm(above, joined(value, block.keys).transpose(1, 2))
            if sink_gradient is not None:
                read = (gradient * probabilities).sum(-1).float() * of_sinks.flatten(1).float()
                sink_gradient -= read.view(heads, end - begin).sum(1)
            gradient = torch._softmax_backward_data(gradient, probabilities, -1, gradient.dtype)
            if bent is not None:
                gradient *= 1 - bent * bent
            read = torch.bmm(gradient, joined(key, block.keys))
            query_gradient[:, begin:end] = read.view(heads, end - begin, size)
            _add(key_gradient, block.keys, torch.bmm(gradient.transpose(1, 2), _queries(query, key, begin, end)))
        key_gradient, value_gradient = key_gradient.mul_(scores.scale).to(key.dtype), value_gradient.to(value.dtype)
        if sink_gradient is not None:
            sink_gradient = sink_gradient.to(sinks.dtype)
        return query_gradient.mul_(scores.scale), key_gradient, value_gradient, sink_gradient, None, None


def _add(total: torch.Tensor, spans: Sequence[Span], part: torch.Tensor) -> None:
    """Add consecutive slices of `part` to these parts of the row."""
    at = 0
    for start, end in spans:
        total[:, start:end] += part[:, at : at + end - start]
        at += end - start


def _queries(tensor: torch.Tensor, key: torch.Tensor, begin: int, end: int) -> torch.Tensor:
    """[H, T, D] at some positions as [K, G * N, D]: the queries of a group share their keys."""
    return tensor[:, begin:end].reshape(key.shape[0], -1, tensor.shape[2])


def _probabilities(
    query: torch.Tensor, key: torch.Tensor, sinks: torch.Tensor | None, block: Block, scores: Scores
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """A block's probabilities [K, G * N, M]; tanh(s / c) of its scores if capped; those of the sinks [K, G, N]."""
    begin, end = block.queries
    keys = joined(key, block.keys)
    products = torch.bmm(_queries(query, key, begin, end), keys.transpose(1, 2))
    shape, alpha, bent = products.shape, scores.scale, None
    if scores.softcap is not None:
        bent = products.mul_(scores.scale / scores.softcap).tanh_()
        products, alpha = bent, scores.softcap
    mask = _mask(end - begin, shape[2], scores.window, products.dtype, products.device)
    masked = torch.add(mask, products.view(shape[0], -1, *mask.shape), alpha=alpha)
    if sinks is None:
        return torch.softmax(masked, dim=-1).view(shape), bent, masked
    column = sinks.to(masked.dtype).view(shape[0], -1, 1, 1).expand(*masked.shape[:3], 1)
    both = torch.softmax(torch.cat([masked, column], dim=-1), dim=-1)
    return both[..., :-1].reshape(shape), bent, both[..., -1]


def _mask(
    num_queries: int, num_keys: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """[N, M]: 0 where the last queries of a conversation may attend, else minus infinity."""
    before = num_keys - num_queries
    rows, reach = 1 << (num_queries - 1).bit_length(), 1 << max(0, before - 1).bit_length()
    # A mask depends only on distances, so every mask is a slice of a wider one.
    return _wide_mask(rows, reach, window, dtype, device)[:num_queries, reach - before : reach - before + num_keys]


@functools.lru_cache(maxsize=32)
def _wide_mask(rows: int, reach: int, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[rows, reach + rows] for queries with `reach` tokens before the first of them."""
    distance = torch.arange(rows, device=device)[:, None] + reach - torch.arange(reach + rows, device=device)
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return torch.zeros(distance.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
