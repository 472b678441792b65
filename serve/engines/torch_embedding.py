"""Embeddings of texts by the engine `torch`: the mean of a model's last hidden states, of length 1.

Texts are read one after the other, in pieces between the tokens of replies, and with a cache of their own: in the
replies' cache a long text would make every reply's row as long as its own.
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
    """A text until its embedding, or what went wrong, is delivered."""

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
        """[D], of the states of what is read"""


class Embedder:
    """The queue of texts; all but `add` and `fail_all` are called by the thread that owns the model."""

    def __init__(self) -> None:
        self.size: int | None = None
        """of an embedding; None for a model that gives out no hidden states"""
        self._texts: deque[TextToEmbed] = deque()
        self._decoder: SlotDecoder | TurnDecoder

    @property
    def has_work(self) -> bool:
        """Whether a text waits, or is read."""
        return bool(self._texts)

    def open(self, model: Any, replies: SlotDecoder | TurnDecoder) -> None:
        """Read texts as these replies are, and find out how long an embedding is."""
        # A decoder in turns has a cache for each row as it is.
        self._decoder = SlotDecoder(model) if isinstance(replies, SlotDecoder) else replies
        row = self._decoder.open()
        try:
            states = self._decoder.states(row, probes(model)[1])
            self.size = int(states.shape[-1])
        except Exception as error:  # whatever a model of any kind makes of it
            logger.info("this model gives no embeddings: %s", error)
        finally:
            self._decoder.close(row)

    def add(self, text: TextToEmbed) -> None:
        """One more."""
        self._texts.append(text)

    def fail_all(self, error: Exception) -> None:
        """There will be no embeddings."""
        while self._texts:
            self._texts.popleft().deliver(error)

    def read_some(self, most: int) -> None:
        """Up to so many tokens of the first text; its embedding is delivered if that was all of it."""
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
