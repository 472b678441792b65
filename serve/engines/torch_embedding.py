"""Embeddings by the engine `torch`: the mean of a model's last hidden states, normalized to length 1.

Texts are read one after the other, in pieces between the tokens of replies, with a separate cache: in the replies'
cache a long text would lengthen every reply's row.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from serve.engines.base import EngineError
from serve.engines.torch_batched import Row, SlotDecoder, probes
from serve.engines.torch_sequential import TurnDecoder

logger = logging.getLogger(__name__)


class TextToEmbed:
    """A text, until its embedding or an error is delivered."""

    def __init__(
        self, token_ids: Sequence[int], adapter: str | None, deliver: Callable[[list[float] | Exception], None]
    ) -> None:
        self.unread_ids = list(token_ids)
        self.num_tokens = len(token_ids)
        self.adapter = adapter
        self.deliver = deliver
        self.is_cancelled = False
        self.row: Row | None = None
        self.sum: torch.Tensor | None = None
        """the sum [D] of the hidden states so far"""


class Embedder:
    """The queue of texts; only `add` and `fail_all` may be called by other threads than the model's owner."""

    def __init__(self) -> None:
        self.size: int | None = None
        """the size of an embedding; None if the model returns no hidden states"""
        self._texts: deque[TextToEmbed] = deque()
        self._decoder: SlotDecoder | TurnDecoder

    @property
    def has_work(self) -> bool:
        """Whether a text is waiting or being read."""
        return bool(self._texts)

    def open(self, model: Any, replies: SlotDecoder | TurnDecoder) -> None:
        """Prepare to read texts like these replies, and find the size of an embedding."""
        # A TurnDecoder has a separate cache for each row anyway.
        self._decoder = SlotDecoder(model) if isinstance(replies, SlotDecoder) else replies
        row = self._decoder.open()
        try:
            states = self._decoder.states(row, probes(model)[1])
            self.size = int(states.shape[-1])
        except Exception as error:  # any error of an architecture that does not support it
            logger.info("this model supports no embeddings: %s", error)
        finally:
            self._decoder.close(row)

    def add(self, text: TextToEmbed) -> None:
        """One more."""
        self._texts.append(text)

    def fail_all(self, error: Exception) -> None:
        """Fail all texts."""
        while self._texts:
            self._texts.popleft().deliver(error)

    def read_some(self, most: int) -> None:
        """Read up to `most` tokens of the first text; if it is complete, deliver its embedding."""
        while self._texts and self._texts[0].is_cancelled:
            self._end(self._texts[0])
        if not self._texts:
            return
        text = self._texts[0]
        try:
            done = self._read(text, most)
        except Exception as error:
            logger.error("a text could not be embedded", exc_info=error)
            done = EngineError(f"the model could not read the text: {error}")
        if done is not None:
            self._end(text)
            text.deliver(done)

    def _read(self, text: TextToEmbed, most: int) -> "list[float] | EngineError | None":
        if text.row is None:
            text.row = self._decoder.open(text.adapter)
        piece = text.unread_ids[: most if self._decoder.reads_in_parts else None]
        total = self._decoder.states(text.row, piece).float().sum(0)
        text.sum = total if text.sum is None else text.sum + total
        del text.unread_ids[: len(piece)]
        if text.unread_ids:
            return None
        mean = text.sum / text.num_tokens
        found: list[float] = torch.nn.functional.normalize(mean, dim=0).tolist()
        return found

    def _end(self, text: TextToEmbed) -> None:
        self._texts.remove(text)
        if text.row is not None:
            self._decoder.close(text.row)
            text.row = None
