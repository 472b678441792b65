"""Decoding replies in turn, a token each: for models that `serve.engines.torch_batched` cannot decode."""

import copy
import inspect
import logging
from typing import Any, Protocol

import torch
from transformers import DynamicCache

from serve.engines.torch_batched import TOLERANCE, Row, adapters_of, probes

logger = logging.getLogger(__name__)


class Decoder(Protocol):
    """The interface of decoders; SlotDecoder documents the methods."""

    token_bytes: int
    reads_in_parts: bool

    def open(self, adapter: str | None = None) -> Row: ...

    def can_copy(self, row: Row | None, length: int) -> bool: ...

    def copy(self, row: Row, length: int) -> Row: ...

    def close(self, row: Row) -> None: ...

    def read(self, row: Row, token_ids: list[int]) -> torch.Tensor: ...

    def read_all(self, row: Row, token_ids: list[int]) -> torch.Tensor: ...

    def step(self, rows: list[Row], token_ids: list[int]) -> torch.Tensor: ...


class TurnDecoder:
    """Like SlotDecoder, with a separate cache of the model's own kind for each reply."""

    token_bytes = 0
    """not known, since the cache of each reply grows separately"""

    def __init__(self, model: Any) -> None:
        self._model = model
        plain = model.get_base_model() if hasattr(model, "peft_config") else model
        names = inspect.signature(plain.forward).parameters
        self._cache_name = "cache_params" if "cache_params" in names else "past_key_values"
        self._caches: dict[Row, Any] = {}
        self.reads_in_parts = self._can_read_in_parts()

    def open(self, adapter: str | None = None) -> Row:
        """An empty row."""
        row = Row(0, adapter=adapter)
        self._caches[row] = DynamicCache(config=self._model.config)
        return row

    def can_copy(self, row: Row | None, length: int) -> bool:
        """Whether the first `length` tokens of this row can be copied: only if it has no more, since a recurrent
        state cannot be rewound.
        """
        return row is not None and row.length == length

    def copy(self, row: Row, length: int) -> Row:
        """A new row with the first `length` tokens of this one."""
        new = self.open(row.adapter)
        new.length, self._caches[new] = length, copy.deepcopy(self._caches[row])
        return new

    def close(self, row: Row) -> None:
        """Free the row's memory."""
        del self._caches[row]

    def read(self, row: Row, token_ids: list[int]) -> torch.Tensor:
        """Append tokens to the row; the logits [V] after the last one."""
        return self._forward(row, token_ids, keeps=1)[-1]

    def read_all(self, row: Row, token_ids: list[int]) -> torch.Tensor:
        """Append tokens to the row; the logits [T, V] after each of them."""
        return self._forward(row, token_ids, keeps=len(token_ids))

    def states(self, row: Row, token_ids: list[int]) -> torch.Tensor:
        """Append tokens to the row; the last hidden states [T, D] of each of them."""
        states: torch.Tensor = self._output(row, token_ids, output_hidden_states=True).hidden_states[-1][0]
        return states

    def _forward(self, row: Row, token_ids: list[int], keeps: int) -> torch.Tensor:
        logits: torch.Tensor = self._output(row, token_ids, keeps).logits[0, -keeps:]
        return logits

    def _output(self, row: Row, token_ids: list[int], keeps: int = 1, **wanted: Any) -> Any:
        output = self._model(
            input_ids=torch.tensor([token_ids], device=self._model.device),
            use_cache=True,
            logits_to_keep=keeps,
            **{self._cache_name: self._caches[row]},
            **adapters_of(self._model, [row]),
            **wanted,
        )
        row.length += len(token_ids)
        return output

    def step(self, rows: list[Row], token_ids: list[int]) -> torch.Tensor:
        """Append one token to each row; the logits [B, V] after them."""
        return torch.stack([self.read(row, [token_id]) for row, token_id in zip(rows, token_ids, strict=True)])

    def _can_read_in_parts(self) -> bool:
        """Whether a prompt can be read in two parts; some recurrent models reset their state in between."""
        prompt, _ = probes(self._model)
        whole, parts = self.open(), self.open()
        try:
            expected = self.read(whole, prompt)
            self.read(parts, prompt[:4])
            distance = (self.read(parts, prompt[4:]) - expected).abs().max() / expected.abs().max()
            return bool(distance < TOLERANCE)
        except Exception as error:  # any error of an architecture that does not support it
            logger.info("prompts are not read in parts: %s", error)
            return False
        finally:
            self.close(whole)
            self.close(parts)
