"""Causal attention over packed rows, each conversation attending to itself alone.

A model loaded with `attn_implementation=PACKED_ATTENTION` is called with `sequence_lengths`, the tokens of each piece
of the row, and `prefixes`, which other piece each goes on from (models/packing.py).

Shape suffixes: T tokens in the row, D size of a head; H query heads, K key-value heads, G = H / K.
"""

import functools
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

PACKED_ATTENTION = "rayconteur_packed"

_QUERIES_AT_ONCE = 256


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sequence_lengths: list[int] | None = None,
    prefixes: Sequence[int] = (),
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, H, T, D], key and value [1, K, T, D]; returns [1, T, H, D]. Each piece sees its prefix as
    if that stood before it.

    A GPU gets torch's variable-length flash attention, a CPU matrix products over blocks of queries, which take half
    the time of torch's own CPU kernel with its backward pass.
    """
    assert sequence_lengths is not None, "the model must be called with sequence_lengths"
    if kwargs.get("softcap") is not None:
        raise ValueError("base_model: attention with soft-capped scores (Gemma 2) is not supported in training")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    lengths, num_keys, own = sequence_lengths, sequence_lengths, None
    if prefixes:
        places, num_keys, own = _whole(tuple(sequence_lengths), tuple(prefixes))
        key, value = (tensor.index_select(2, places.to(tensor.device)) for tensor in (key, value))
    if dropout:
        return _one_by_one(query, key, value, lengths, num_keys, dropout, scale, sliding_window), None
    if query.is_cuda and query.dtype != torch.float32:
        if own is None:
            return _variable_length(query, key, value, lengths, scale, sliding_window), None
        # The kernel wants as many queries as keys.
        query = query.index_select(2, places.to(query.device))
        whole = _variable_length(query, key, value, num_keys, scale, sliding_window)
        return whole.index_select(1, own.to(query.device)), None
    blocked: Any = _BlockedAttention.apply
    out: torch.Tensor = blocked(query[0], key[0], value[0], tuple(lengths), tuple(num_keys), scale, sliding_window)
    return out[None], None


@functools.lru_cache(maxsize=4)
def _whole(lengths: tuple[int, ...], prefixes: tuple[int, ...]) -> tuple[torch.Tensor, list[int], torch.Tensor]:
    """Where in the row each token of whole conversations is, every piece with its prefix before it; their lengths;
    and which of those tokens are the pieces' own.
    """
    starts = [0, *accumulate(lengths)]
    places: list[int] = []
    whole: list[int] = []
    own: list[int] = []
    for piece, prefix in enumerate(prefixes):
        begin = len(places)
        if prefix >= 0:
            places += range(starts[prefix], starts[prefix + 1])
        own += range(len(places), len(places) + lengths[piece])
        places += range(starts[piece], starts[piece + 1])
        whole.append(len(places) - begin)
    with torch.inference_mode(False):  # kept for later calls, which may have a gradient
        return torch.tensor(places), whole, torch.tensor(own)


def _one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], num_keys: list[int],
    dropout: float, scale: float, window: int | None,
) -> torch.Tensor:  # fmt: skip
    """Torch's own attention, conversation by conversation."""
    outputs = []
    queries, keys, values = (
        torch.split(tensor, sizes, dim=2) for tensor, sizes in ((query, lengths), (key, num_keys), (value, num_keys))
    )
    for q, k, v in zip(queries, keys, values, strict=True):
        mask = torch.isfinite(_mask(q.shape[2], k.shape[2], window, torch.float32, q.device))
        outputs.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale, enable_gqa=k.shape[1] != q.shape[1]
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _variable_length(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], scale: float, window: int | None
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=query.device)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    back = -1 if window is None else window - 1
    out = varlen_attn(
        q, k, v, starts, starts, max(lengths), max(lengths), scale=scale, window_size=(back, 0),
        enable_gqa=k.shape[1] != q.shape[1],
    )  # fmt: skip
    assert isinstance(out, torch.Tensor)
    return out[None]


class _BlockedAttention(torch.autograd.Function):
    """softmax(scale Q K^T + mask) V a block of queries at a time; the probabilities are computed again on the way
    back, so that no scores are kept (Dao et al. 2022, arXiv:2205.14135, section 3.1)."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        query, key, value, lengths, num_keys, scale, window = args
        heads, tokens, size = query.shape
        out: torch.Tensor = query.new_empty((tokens, heads, size))
        for begin, end, first, last in _blocks(lengths, num_keys):
            probabilities = _probabilities(query, key, begin, end, first, last, scale, window)
            block = torch.bmm(probabilities, value[:, first:last])
            out[begin:end] = block.view(heads, end - begin, size).transpose(0, 1)
        ctx.save_for_backward(query, key, value)
        ctx.settings = lengths, num_keys, scale, window
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        query, key, value = ctx.saved_tensors
        lengths, num_keys, scale, window = ctx.settings
        out_gradient = upstream[0].transpose(0, 1)
        heads, _, size = query.shape
        query_gradient = torch.empty_like(query)
        # Several blocks add to the same keys.
        key_gradient, value_gradient = (torch.zeros(key.shape, device=key.device) for _ in range(2))
        for begin, end, first, last in _blocks(lengths, num_keys):
            probabilities = _probabilities(query, key, begin, end, first, last, scale, window)
            above = _queries(out_gradient, key, begin, end)
            value_gradient[:, first:last] += torch.bmm(probabilities.transpose(1, 2), above)
            gradient = torch.bmm(above, value[:, first:last].transpose(1, 2))
            gradient = torch._softmax_backward_data(gradient, probabilities, -1, gradient.dtype)
            block = torch.bmm(gradient, key[:, first:last])
            query_gradient[:, begin:end] = block.view(heads, end - begin, size)
            key_gradient[:, first:last] += torch.bmm(gradient.transpose(1, 2), _queries(query, key, begin, end))
        key_gradient, value_gradient = key_gradient.mul_(scale).to(key.dtype), value_gradient.to(value.dtype)
        return query_gradient.mul_(scale), key_gradient, value_gradient, None, None, None, None


def _blocks(lengths: Sequence[int], num_keys: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """Of every block its queries, first and end, and the keys that they may see, first and end."""
    begin = first = 0
    for length, keys in zip(lengths, num_keys, strict=True):
        for at in range(0, length, _QUERIES_AT_ONCE):
            done = min(at + _QUERIES_AT_ONCE, length)
            yield begin + at, begin + done, first, first + keys - length + done
        begin, first = begin + length, first + keys


def _queries(tensor: torch.Tensor, key: torch.Tensor, begin: int, end: int) -> torch.Tensor:
    """[H, T, D] at some tokens as [K, G * tokens, D]: the queries of a group share their keys."""
    return tensor[:, begin:end].reshape(key.shape[0], -1, key.shape[2])


def _probabilities(
    query: torch.Tensor, key: torch.Tensor, begin: int, end: int, first: int, last: int, scale: float,
    window: int | None,
) -> torch.Tensor:  # fmt: skip
    """[K, G * queries, keys] of a block."""
    scores = torch.bmm(_queries(query, key, begin, end), key[:, first:last].transpose(1, 2))
    mask = _mask(end - begin, last - first, window, scores.dtype, scores.device)
    shape = scores.shape
    scores = torch.add(mask, scores.view(shape[0], -1, *mask.shape), alpha=scale)
    return torch.softmax(scores, dim=-1).view(shape)


def _mask(
    num_queries: int, num_keys: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """[queries, keys]: 0 where the last queries of a conversation may look, else minus infinity."""
    before = num_keys - num_queries
    rows, reach = 1 << (num_queries - 1).bit_length(), 1 << max(0, before - 1).bit_length()
    # What may be seen depends on the distance alone: every mask is a piece of a wider one.
    return _wide_mask(rows, reach, window, dtype, device)[:num_queries, reach - before : reach - before + num_keys]


@functools.lru_cache(maxsize=32)
def _wide_mask(rows: int, reach: int, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[rows, reach + rows] for queries with `reach` tokens before the first of them."""
    distance = torch.arange(rows, device=device)[:, None] + reach - torch.arange(reach + rows, device=device)
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return torch.zeros(distance.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, lambda *args, **kwargs: None)
