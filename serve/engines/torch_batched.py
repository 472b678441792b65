"""Decoding many replies in one forward pass of a plain transformers model.

Each reply has a row of a shared key-value cache: rows of different lengths are computed together and do not see each
other (Yu et al. 2022, Orca, section 3.2). It needs no model-specific code. A model whose state is more than keys and
values, or whose attention is unusual, cannot be decoded this way: `in_rows` tests that, and then
`serve.engines.torch_sequential` decodes.

Shape suffixes: B rows, T new tokens, L tokens of the longest row, H heads, D size of a head, V vocabulary.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

logger = logging.getLogger(__name__)

SLOT_ATTENTION = "rayconteur_slots"

# The cache grows by at least this number of tokens per row.
_GROWTH = 256
# The maximum difference of the logits of both ways, relative to the largest.
TOLERANCE = 1e-3


@dataclass(eq=False)
class Row:
    """A reply's row in the cache, and the number of its tokens there."""

    number: int
    length: int = 0
    adapter: str | None = None


class _View:
    """The part of the cache that one forward pass reads and writes: T new tokens for each of some rows."""

    def __init__(self, rows: list[Row], num_new: int, device: Any) -> None:
        self.numbers = [row.number for row in rows]
        self.index = torch.tensor(self.numbers, device=device)
        starts = torch.tensor([row.length for row in rows], device=device)
        self.positions = starts[:, None] + torch.arange(num_new, device=device)
        self.longest = max(row.length for row in rows) + num_new
        # A single row needs no mask for one new token, and for a whole prompt is_causal suffices.
        self._needs_no_mask = len(rows) == 1 and (num_new == 1 or rows[0].length == 0)
        self._masks: dict[int | None, torch.Tensor | None] = {}

    def mask(self, window: int | None) -> torch.Tensor | None:
        """[B, 1, T, L]: the tokens of its row that each new token attends to."""
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        return self._masks[window]

    def _mask(self, window: int | None) -> torch.Tensor | None:
        if self._needs_no_mask and (window is None or self.longest <= window):
            return None
        distance = self.positions[:, :, None] - torch.arange(self.longest, device=self.positions.device)
        seen = distance >= 0
        return (seen if window is None else seen & (distance < window))[:, None]


class _SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of all rows, [rows, H, room, D] for each layer; a forward pass sees its `view`."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.view: _View
        self._stored: dict[int, list[torch.Tensor]] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by the model's attention: stores the new ones, [B, H, T, D]; returns all of these rows, [B, H, L,
        D].
        """
        stored = self._stored.setdefault(layer_idx, [states[:0] for states in (key_states, value_states)])
        for place, states in enumerate((key_states, value_states)):
            stored[place] = self._grown(stored[place], max(self.view.numbers) + 1, self.view.longest)
            self._write(stored[place], states)
        return self._seen(stored[0]), self._seen(stored[1])

    @property
    def token_bytes(self) -> int:
        """The memory of a token in all layers."""
        tensors = [tensor for stored in self._stored.values() for tensor in stored]
        return sum(tensor.element_size() * tensor.shape[1] * tensor.shape[3] for tensor in tensors)

    def _grown(self, old: torch.Tensor, rows: int, room: int) -> torch.Tensor:
        """A cache with at least this number of rows, and room for this number of tokens."""
        if rows <= old.shape[0] and room <= old.shape[2]:
            return old
        rows, room = max(rows, old.shape[0]), max(-(-room // _GROWTH) * _GROWTH, old.shape[2])
        # Zeros: masked entries are multiplied by 0, which is NaN for uninitialized infinities.
        grown = old.new_zeros((rows, old.shape[1], room, old.shape[3]))
        grown[: old.shape[0], :, : old.shape[2]] = old
        return grown

    def _write(self, stored: torch.Tensor, states: torch.Tensor) -> None:
        view = self.view
        if len(view.numbers) > 1:
            stored[view.index[:, None], :, view.positions] = states.transpose(1, 2)
        else:
            stored[view.numbers[0], :, view.longest - states.shape[2] : view.longest] = states[0]

    def _seen(self, stored: torch.Tensor) -> torch.Tensor:
        first, end = self.view.numbers[0], self.view.numbers[-1] + 1
        together = end - first == len(self.view.numbers)
        rows = stored[first:end] if together else stored[self.view.index]
        return rows[:, :, : self.view.longest]

    def copy(self, source: int, target: int) -> None:
        """Copy a row to another one, which may be new."""
        for tensors in self._stored.values():
            for place, tensor in enumerate(tensors):
                tensors[place] = self._grown(tensor, target + 1, 0)
                tensors[place][target] = tensors[place][source]

    def forget(self) -> None:
        """Free all memory."""
        self._stored.clear()


class SlotDecoder:
    """Decodes replies in rows of one cache; used by one thread."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache = _SlotCache()
        self._rows: list[Row] = []
        self.token_bytes = 0
        """memory of a token in the cache, known after the first one; every row takes as much as the longest"""
        self.reads_in_parts = True

    def open(self, adapter: str | None = None) -> Row:
        """An empty row."""
        self._rows.append(Row(len(self._rows), adapter=adapter))
        return self._rows[-1]

    def can_copy(self, row: Row | None, length: int) -> bool:
        """Whether the first `length` tokens of this row can be copied: always."""
        return row is not None

    def copy(self, row: Row, length: int) -> Row:
        """A new row with the first `length` tokens of this one."""
        new = self.open(row.adapter)
        self._cache.copy(row.number, new.number)
        new.length = length
        return new

    def close(self, row: Row) -> None:
        """Free the row; the last row moves into its place, so that used rows stay adjacent."""
        last = self._rows.pop()
        if last is not row:
            self._cache.copy(last.number, row.number)
            self._rows[row.number], last.number = last, row.number
        if not self._rows:
            self._cache.forget()

    def read(self, row: Row, token_ids: list[int]) -> torch.Tensor:
        """Append tokens to the row; the logits [V] after the last one."""
        return self._forward([row], [token_ids])[0, -1]

    def read_all(self, row: Row, token_ids: list[int]) -> torch.Tensor:
        """Append tokens to the row; the logits [T, V] after each of them."""
        return self._forward([row], [token_ids], keeps=len(token_ids))[0]

    def states(self, row: Row, token_ids: list[int]) -> torch.Tensor:
        """Append tokens to the row; the last hidden states [T, D] of each of them."""
        states: torch.Tensor = self._output([row], [token_ids], output_hidden_states=True).hidden_states[-1][0]
        return states

    def step(self, rows: list[Row], token_ids: list[int]) -> torch.Tensor:
        """Append one token to each row; the logits [B, V] after them."""
        return self._forward(rows, [[token_id] for token_id in token_ids])[:, -1]

    def _forward(self, rows: list[Row], token_ids: list[list[int]], keeps: int = 1) -> torch.Tensor:
        """Logits [B, keeps, V]."""
        order = sorted(range(len(rows)), key=lambda place: rows[place].number)
        output = self._output([rows[place] for place in order], [token_ids[place] for place in order], keeps)
        logits: torch.Tensor = output.logits[:, -keeps:]
        if order == list(range(len(order))):
            return logits
        return logits[torch.tensor(order, device=logits.device).argsort()]

    def _output(self, rows: list[Row], token_ids: list[list[int]], keeps: int = 1, **wanted: Any) -> Any:
        """The model's output for rows in the order of their numbers."""
        view = self._cache.view = _View(rows, len(token_ids[0]), self._model.device)
        output = self._model(
            input_ids=torch.tensor(token_ids, device=self._model.device),
            position_ids=view.positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keeps,
            slots=view,
            **adapters_of(self._model, rows),
            **wanted,
        )
        self.token_bytes = self.token_bytes or self._cache.token_bytes
        for row in rows:
            row.length += len(token_ids[0])
        return output


def adapters_of(model: Any, rows: list[Row]) -> dict[str, list[str]]:
    """PEFT's argument that selects an adapter for each row; empty if the model has no adapters."""
    if not hasattr(model, "peft_config"):
        return {}
    return {"adapter_names": [row.adapter or "__base__" for row in rows]}


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    slots: _View | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query [B, H, T, D], key and value [B, H, L, D]; returns [B, T, H, D]."""
    assert slots is not None, "the model must be called with slots"
    return sdpa_attention_forward(module, query, key, value, slots.mask(sliding_window), **kwargs)  # type: ignore[no-any-return]


AttentionInterface.register(SLOT_ATTENTION, slot_attention)
AttentionMaskInterface.register(SLOT_ATTENTION, lambda *args, **kwargs: None)


def in_rows(model: Any) -> SlotDecoder | None:
    """A decoder in rows for `model`, or None if that changes the model's output; it logs the reason."""
    usual = model.config._attn_implementation
    if usual != "sdpa":
        logger.info("replies are decoded in turn: this model's attention is %s", usual)
        return None
    expected = _plain_logits(model)
    model.set_attn_implementation(SLOT_ATTENTION)
    try:
        decoder = SlotDecoder(model)
        pairs = zip(_logits_in_rows(decoder, *probes(model)), expected, strict=True)
        distance = max((found - wanted).abs().max() / wanted.abs().max() for found, wanted in pairs)
        if float(distance) < TOLERANCE * (1 if expected[0].dtype == torch.float32 else 64):
            return decoder
        why = f"its logits in rows differ by {float(distance):.2g} of the largest from its own"
    except Exception as error:  # any error of an architecture that cannot use this cache
        why = f"{type(error).__name__}: {error}"
    model.set_attn_implementation(usual)
    logger.warning("replies are decoded in turn, this model cannot be decoded in rows: %s", why)
    return None


def probes(model: Any) -> tuple[list[int], list[int]]:
    """Two test prompts: one longer than the sliding window, if that is short, and a shorter one."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or 0
    most = min(config.vocab_size, 200)
    length = window + 8 if window < 300 else 24
    return [number * 7 % most for number in range(length)], [number * 5 % most for number in range(5)]


def _plain_logits(model: Any) -> list[torch.Tensor]:
    """The logits after each test prompt, and one token later, with the model's own cache."""
    found = []
    for probe in probes(model):
        cache: Any = DynamicCache(config=model.config)
        for token_ids in (probe, [1]):
            tokens = torch.tensor([token_ids], device=model.device)
            output = model(
                input_ids=tokens,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                **adapters_of(model, [Row(0)]),
            )
            found.append(output.logits[0, -1])
    return found


def _logits_in_rows(decoder: SlotDecoder, long: list[int], short: list[int]) -> list[torch.Tensor]:
    """The same logits in rows: the longer prompt in two parts, the next token of both at once, out of order."""
    first, second = decoder.open(), decoder.open()
    decoder.read(first, long[:4])
    after_long, after_short = decoder.read(first, long[4:]), decoder.read(second, short)
    later = decoder.step([second, first], [1, 1])
    decoder.close(first)
    decoder.close(second)
    return [after_long, later[1], after_short, later[0]]
