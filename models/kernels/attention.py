"""Causal attention over packed rows; each conversation attends only to itself.

A model loaded with `attn_implementation=PACKED_ATTENTION` takes `sequence_lengths`, the number of tokens of each
piece of the row, and `prefixes`, the earlier piece that each one continues (models/packing.py).

Shape suffixes: T tokens in the row, D size of a head; H query heads, K key-value heads.
"""

import functools
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, TypedDict, Unpack, cast

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from models.errors import RayconteurError
from models.kernels.blocked_attention import Scores, Span, blocked_attention, blocks_of, joined, runs
from models.trees import paths

PACKED_ATTENTION = "rayconteur_packed"


class AttentionOptions(TypedDict, total=False):
    """Keyword arguments of an attention function, by transformers' names; the first two are this project's."""

    sequence_lengths: list[int] | None
    prefixes: Sequence[int]
    sliding_window: int | None
    softcap: float | None
    s_aux: torch.Tensor | None
    """attention sinks: a learned logit per head"""


# Arguments that models also pass to their attention; they do not change its result, or repeat what the row says.
_IGNORED = (
    "cache_position", "logits_to_keep", "output_attentions", "output_hidden_states", "output_router_logits",
    "past_key_values", "position_ids", "return_dict", "use_cache",
)  # fmt: skip
_KNOWN = frozenset({*AttentionOptions.__annotations__, *_IGNORED})


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Unpack[AttentionOptions],
) -> tuple[torch.Tensor, None]:
    """query [1, H, T, D], key [1, K, T, D] and value [1, K, T, E]; returns [1, T, H, E]. Each piece also attends to
    the pieces that it continues.

    On a GPU it runs torch's variable-length flash attention, unless scores are soft-capped or there are sinks.
    """
    _check(attention_mask, options)
    given = options.get("sequence_lengths")
    assert given is not None, "the model must be called with sequence_lengths"
    lengths, parents = tuple(given), tuple(options.get("prefixes", ()))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = Scores(scale, options.get("sliding_window"), options.get("softcap"))
    sinks = options.get("s_aux")
    plain = scores.softcap is None and sinks is None
    if dropout:
        if not plain:
            raise RayconteurError("attention dropout with soft-capped scores or attention sinks is not supported")
        return _one_by_one(query, key, value, runs(lengths, parents), dropout, scores), None
    if query.is_cuda and query.dtype != torch.float32 and plain:
        return _variable_length(query, key, value, lengths, parents, scores), None
    blocks = blocks_of(lengths, parents, scores.window)
    return blocked_attention(query[0], key[0], value[0], blocks, scores, sinks)[None], None


def _check(attention_mask: torch.Tensor | None, options: AttentionOptions) -> None:
    """Raise RayconteurError for an argument that this attention would ignore."""
    given: dict[str, Any] = {**cast(dict[str, Any], options), "attention_mask": attention_mask}
    unknown = [name for name, value in given.items() if name not in _KNOWN and value is not None]
    if unknown:
        raise RayconteurError(
            f"the model passes {', '.join(unknown)} to its attention, which packed rows do not support"
        )


def _one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, conversations: Sequence[tuple[Span, Sequence[Span]]],
    dropout: float, scores: Scores,
) -> torch.Tensor:  # fmt: skip
    """Torch's own attention, conversation by conversation."""
    outputs = []
    for own, before in conversations:
        q = joined(query, [own], dim=2)
        k, v = (joined(tensor, [*before, own], dim=2) for tensor in (key, value))
        distance = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2] - torch.arange(k.shape[2])
        seen = distance >= 0 if scores.window is None else (distance >= 0) & (distance < scores.window)
        outputs.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=seen.to(q.device), dropout_p=dropout, scale=scores.scale,
                enable_gqa=k.shape[1] != q.shape[1],
            )
        )  # fmt: skip
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _variable_length(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple[int, ...], prefixes: tuple[int, ...],
    scores: Scores,
) -> torch.Tensor:  # fmt: skip
    from torch.nn.attention.varlen import varlen_attn

    own, sizes = None, lengths
    if prefixes:  # the kernel needs as many queries as keys
        places, sizes, own = (_on(query.device, part) for part in _whole(lengths, prefixes))
        query, key, value = (tensor.index_select(2, places) for tensor in (query, key, value))
    size = value.shape[-1]
    if size < query.shape[-1]:  # and values of the same size as keys
        value = F.pad(value, (0, query.shape[-1] - size))
    starts = torch.tensor([0, *accumulate(sizes)], dtype=torch.int32, device=query.device)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    back = -1 if scores.window is None else scores.window - 1
    out = varlen_attn(
        q, k, v, starts, starts, max(sizes), max(sizes), scale=scores.scale, window_size=(back, 0),
        enable_gqa=k.shape[1] != q.shape[1],
    )  # fmt: skip
    assert isinstance(out, torch.Tensor)
    out = out[..., :size]
    return (out if own is None else out.index_select(0, own))[None]


def _on(device: torch.device, part: Any) -> Any:
    return part.to(device) if isinstance(part, torch.Tensor) else part


@functools.lru_cache(maxsize=4)
def _whole(lengths: tuple[int, ...], prefixes: tuple[int, ...]) -> tuple[torch.Tensor, tuple[int, ...], torch.Tensor]:
    """For the whole conversations of a row, one after the other: the position in the row of each of their tokens;
    their lengths; and for each position of the row, its index among those tokens.
    """
    starts = [0, *accumulate(lengths)]
    places: list[int] = []
    sizes: list[int] = []
    found = [-1] * starts[-1]
    for path in paths(prefixes):
        begin = len(places)
        for piece in path:
            for place in range(starts[piece], starts[piece + 1]):
                found[place] = len(places)
                places.append(place)
        sizes.append(len(places) - begin)
    with torch.inference_mode(False):  # cached for later calls, which may need gradients
        return torch.tensor(places), tuple(sizes), torch.tensor(found)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, lambda *args, **kwargs: None)
