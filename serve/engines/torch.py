"""A plain transformers engine: one thread owns the model and gives each request a token in turn.

engine = TorchEngine("/releases/abc", precision="fp32", num_threads=2)
async for event in engine.submit(GenerationRequest(prompt_ids, max_new_tokens=64)): ...
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from models.base import load_model, max_positions
from models.precision import dtype_of
from serve.engines.base import (
    DEFAULT_MAX_ACTIVE,
    Engine,
    EngineError,
    EngineHealth,
    GenerationRequest,
    Precision,
    TokenEvent,
)
from serve.engines.sampling import Sampler, log_probabilities
from serve.responses import FinishReason

logger = logging.getLogger(__name__)

# Prompt tokens read in one turn: a long prompt delays the other requests by this much at most.
PREFILL_TOKENS = 512


class _Sequence:
    """A request in the owner thread's hands: its cache, and the tokens the model has not read yet."""

    def __init__(self, request: GenerationRequest, deliver: Callable[[TokenEvent | Exception | None], None]) -> None:
        self.request = request
        self.deliver = deliver
        self.is_cancelled = False
        self.unread_ids = list(request.prompt_ids)
        self.num_generated = 0
        self.cache: Any = None
        self.sampler = Sampler(request)


class TorchEngine(Engine):
    """Decodes up to `max_active` requests round-robin, one token each; the others wait in a queue."""

    def __init__(
        self,
        release_folder: Path | str,
        precision: Precision = "auto",
        max_active: int = DEFAULT_MAX_ACTIVE["torch"],
        num_threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        if max_active < 1:
            raise ValueError(f"max_active: got {max_active}; must be at least 1")
        self._model = load_model(release_folder, dtype_of(precision, device)).to(device)
        self._max_positions = max_positions(self._model.config)
        self._device = device
        self._max_active = max_active
        self._num_threads = num_threads
        self._active: list[_Sequence] = []
        self._waiting: deque[_Sequence] = deque()
        self._sequences: dict[str, _Sequence] = {}
        self._is_closed = False
        self._changed = threading.Condition()
        self._owner = threading.Thread(target=self._own, name="torch-engine", daemon=True)
        self._owner.start()

    @property
    def max_positions(self) -> int:
        return self._max_positions

    @property
    def vocab_size(self) -> int:
        return int(self._model.config.vocab_size)

    @property
    def max_active(self) -> int:
        return self._max_active

    async def submit(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        total = len(request.prompt_ids) + request.max_new_tokens
        if total > self._max_positions:
            raise ValueError(f"prompt and reply together need {total} positions; the model has {self._max_positions}")
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[TokenEvent | Exception | None] = asyncio.Queue()

        def deliver(event: TokenEvent | Exception | None) -> None:
            try:
                loop.call_soon_threadsafe(events.put_nowait, event)
            except RuntimeError:  # The loop is closed: nobody reads any more.
                sequence.is_cancelled = True

        sequence = _Sequence(request, deliver)
        self._enqueue(sequence)
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            self.cancel(request.request_id)

    def cancel(self, request_id: str) -> None:
        with self._changed:
            sequence = self._sequences.get(request_id)
            if sequence is None:
                return
            sequence.is_cancelled = True
            if sequence in self._waiting:
                self._waiting.remove(sequence)
                self._forget(sequence)
            sequence.deliver(None)

    def health(self) -> EngineHealth:
        with self._changed:
            return EngineHealth(self._owner.is_alive(), len(self._active), len(self._waiting))

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._owner.join()

    def _enqueue(self, sequence: _Sequence) -> None:
        request_id = sequence.request.request_id
        with self._changed:
            if self._is_closed or not self._owner.is_alive():
                raise EngineError("the engine has stopped")
            if request_id in self._sequences:
                raise ValueError(f"request_id: {request_id!r} is already being generated")
            self._sequences[request_id] = sequence
            self._waiting.append(sequence)
            self._changed.notify()

    def _forget(self, sequence: _Sequence) -> None:
        self._sequences.pop(sequence.request.request_id, None)

    def _own(self) -> None:
        """The owner thread: the only one that touches the model, the caches and `_active`."""
        if self._num_threads is not None:
            torch.set_num_threads(self._num_threads)
        try:
            with torch.inference_mode():
                while self._admit():
                    for sequence in list(self._active):
                        self._advance(sequence)
        finally:
            with self._changed:
                self._is_closed = True
                for sequence in self._sequences.values():
                    sequence.deliver(EngineError("the engine has stopped"))
                self._active.clear()
                self._waiting.clear()
                self._sequences.clear()

    def _admit(self) -> bool:
        """Fill free slots from the queue, sleeping while there is nothing to do; False when closed."""
        with self._changed:
            while not (self._is_closed or self._active or self._waiting):
                self._changed.wait()
            while self._waiting and len(self._active) < self._max_active:
                self._active.append(self._waiting.popleft())
            return not self._is_closed

    def _advance(self, sequence: _Sequence) -> None:
        """One turn of one request; whatever goes wrong in it ends that request alone."""
        if sequence.is_cancelled:
            self._release(sequence)
            return
        try:
            event = self._step(sequence)
        except Exception as error:
            logger.exception("request %s failed", sequence.request.request_id)
            self._release(sequence)
            failure = EngineError(f"the model could not generate the next token: {error}")
            failure.__cause__ = error
            sequence.deliver(failure)
            return
        if event is None:
            return
        # Released first, so that a client which has its whole reply finds the slot free.
        if event.finish_reason is not None:
            self._release(sequence)
        sequence.deliver(event)

    def _release(self, sequence: _Sequence) -> None:
        with self._changed:
            self._active.remove(sequence)
            self._forget(sequence)
        sequence.cache = None

    def _step(self, sequence: _Sequence) -> TokenEvent | None:
        """Read up to PREFILL_TOKENS tokens; the next token, or None while some of the prompt is unread."""
        if sequence.cache is None:
            sequence.cache = DynamicCache(config=self._model.config)
        read_ids = sequence.unread_ids[:PREFILL_TOKENS]
        sequence.unread_ids = sequence.unread_ids[PREFILL_TOKENS:]
        input_ids = torch.tensor([read_ids], device=self._device)
        output = self._model(input_ids=input_ids, past_key_values=sequence.cache, use_cache=True, logits_to_keep=1)
        if sequence.unread_ids:
            return None
        request = sequence.request
        logits = output.logits[0, -1]
        token_id = sequence.sampler.draw(logits)
        sequence.unread_ids = [token_id]
        sequence.num_generated += 1
        reason = self._finish_reason(sequence, token_id)
        if request.num_logprobs is None:
            return TokenEvent(token_id, reason)
        return TokenEvent(token_id, reason, *log_probabilities(logits, token_id, request.num_logprobs))

    @staticmethod
    def _finish_reason(sequence: _Sequence, token_id: int) -> FinishReason | None:
        if token_id in sequence.request.end_token_ids:
            return "stop"
        return "length" if sequence.num_generated >= sequence.request.max_new_tokens else None
