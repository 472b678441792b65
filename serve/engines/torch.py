"""The engine on plain transformers: one thread owns the model and decodes many replies together.

engine = TorchEngine("/releases/abc", precision="fp32", num_threads=2, adapters={"shop": "/adapters/shop"})
async for event in engine.submit(GenerationRequest(prompt_ids, max_new_tokens=64, adapter="shop")): ...
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from models.base.adapters import load_several
from models.base.load import load_model
from models.base.precision import dtype_of
from models.base.sizes import max_positions
from serve.engines.base import (
    DEFAULT_MAX_ACTIVE,
    DEFAULT_MAX_STALL_SECONDS,
    Engine,
    EngineError,
    EngineHealth,
    Event,
    GenerationRequest,
    Precision,
    TokenEvent,
    tokens_of,
)
from serve.engines.sampling import LogProbabilities, Sampler, log_probabilities
from serve.engines.torch_batched import Row, SlotDecoder, in_rows
from serve.engines.torch_embedding import Embedder, TextToEmbed
from serve.engines.torch_sequential import Decoder, TurnDecoder
from serve.protocol.responses import FinishReason

logger = logging.getLogger(__name__)

Given = TypeVar("Given")

# Prompt tokens read between two tokens of other replies, at most; fewer if it takes too long.
_MAX_READ, _LEAST_READ = 512, 16
# With log-probabilities of the prompt: logits of 64 tokens and a vocabulary of 256,000 take 64 MB.
_MAX_SCORED = 64
# The cache grows as it fills; replies wait if together they may need more.
CACHE_BYTES = 2 << 30


class _Sequence:
    """A request of the owner thread: its row, and the tokens that the model has not read yet."""

    def __init__(self, request: GenerationRequest, deliver: Callable[[Event], None]) -> None:
        self.request = request
        self.deliver = deliver
        self.is_cancelled = False
        self.unread_ids = list(request.prompt_ids)
        self.num_generated = 0
        self.row: Row | None = None
        self.prompt_logits: torch.Tensor | None = None
        """logits [V] after the prompt, once it is read"""
        self.sampler = Sampler(request)
        self.prompt_logprobs: list[LogProbabilities] = []
        self.num_copied = 0
        """tokens of the prompt that were copied from another request"""

    def has_prompt_of(self, other: "_Sequence") -> bool:
        """Whether both have the same prompt and adapter."""
        mine, theirs = self.request, other.request
        return self.prompt_logits is not None and (mine.prompt_ids, mine.adapter) == (
            theirs.prompt_ids,
            theirs.adapter,
        )

    @property
    def is_reading(self) -> bool:
        """Whether its prompt is not completely read."""
        return self.num_generated == 0

    @property
    def length(self) -> int:
        """The number of its tokens so far."""
        return len(self.request.prompt_ids) + self.num_generated

    @property
    def longest(self) -> int:
        """The maximum number of its tokens."""
        return len(self.request.prompt_ids) + self.request.max_new_tokens


class TorchEngine(Engine):
    """Decodes up to `max_active` requests together; further ones wait in a queue.

    While replies are decoded, prompts are read in pieces that take at most `max_stall_seconds`, estimated from
    earlier pieces. In float32 the tokens are those of transformers' `generate`, whatever else is in the batch.
    """

    def __init__(
        self,
        release_folder: Path | str,
        precision: Precision = "auto",
        max_active: int = DEFAULT_MAX_ACTIVE["torch"],
        num_threads: int | None = None,
        device: str = "cpu",
        adapters: Mapping[str, Path | str] | None = None,
        max_stall_seconds: float = DEFAULT_MAX_STALL_SECONDS,
    ) -> None:
        """`adapters` are folders of LoRA adapters by name. Raises ValueError for one that does not fit the model."""
        if max_active < 1:
            raise ValueError(f"max_active: got {max_active}; must be at least 1")
        self._max_positions: int
        self._vocab_size: int
        # PEFT's adapter names cannot contain dots.
        self._adapters = {name: f"adapter{number}" for number, name in enumerate(adapters or {})}
        self._load(release_folder, precision, device, adapters or {})
        self._max_active = max_active
        self._num_threads = num_threads
        self._max_stall_seconds = max_stall_seconds
        self._seconds_per_token = 0.0
        self._token_bytes = 0
        self._decoder: Decoder
        self._embedder = Embedder()
        self._active: list[_Sequence] = []
        self._waiting: deque[_Sequence] = deque()
        self._sequences: dict[str, _Sequence] = {}
        self._is_closed = False
        self._changed = threading.Condition()
        is_ready = threading.Event()
        self._owner = threading.Thread(target=self._own, args=(is_ready,), name="torch-engine", daemon=True)
        self._owner.start()
        is_ready.wait()

    def _load(
        self, release_folder: Path | str, precision: Precision, device: str, adapters: Mapping[str, Path | str]
    ) -> None:
        """Load the model and its properties, before the owner thread starts."""
        model = load_model(release_folder, dtype_of(precision, device), attention=None).to(device)
        self._max_positions = max_positions(model.config)
        self._vocab_size = int(model.config.get_text_config().vocab_size)
        self._model = load_several(model, {self._adapters[name]: folder for name, folder in adapters.items()})

    def _new_decoder(self) -> Decoder:
        """Called by the owner thread."""
        decoder = in_rows(self._model) or TurnDecoder(self._model)
        self._embedder.open(self._model, decoder)
        return decoder

    @property
    def max_positions(self) -> int:
        return self._max_positions

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def max_active(self) -> int:
        return self._max_active

    @property
    def adapters(self) -> Sequence[str]:
        return tuple(self._adapters)

    @property
    def decodes_together(self) -> bool:
        """Whether this model's replies share a forward pass; otherwise they take turns, a token each."""
        return isinstance(self._decoder, SlotDecoder)

    @property
    def embedding_size(self) -> int | None:
        return self._embedder.size

    async def embed(self, token_ids: Sequence[int], adapter: str | None = None) -> list[float]:
        loop = asyncio.get_running_loop()
        found: asyncio.Queue[list[float] | Exception] = asyncio.Queue()

        def deliver(what: list[float] | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing reads the result
                loop.call_soon_threadsafe(found.put_nowait, what)

        text = TextToEmbed(token_ids, self._adapters.get(adapter or ""), deliver)
        with self._changed:
            if self._is_closed or not self._owner.is_alive():
                raise EngineError("the engine has stopped")
            self._embedder.add(text)
            self._changed.notify()
        try:
            done = await found.get()
        finally:
            text.is_cancelled = True
        if isinstance(done, Exception):
            raise done
        return done

    async def submit(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        self.check_fits(request)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def deliver(event: Event) -> None:
            try:
                loop.call_soon_threadsafe(events.put_nowait, event)
            except RuntimeError:  # the loop is closed: nothing reads the stream
                sequence.is_cancelled = True

        sequence = _Sequence(request, deliver)
        self._enqueue(sequence)
        try:
            async for event in tokens_of(events):
                yield event
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
            is_alive = self._owner.is_alive() and not self._is_closed
            longest = max((sequence.length for sequence in self._active), default=0)
            cache_used = len(self._active) * longest * self._token_bytes / CACHE_BYTES
            return EngineHealth(is_alive, len(self._active), len(self._waiting), cache_used)

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

    def _own(self, is_ready: threading.Event) -> None:
        """The owner thread: only it uses the model, the caches and `_active`."""
        try:
            if self._num_threads is not None:
                torch.set_num_threads(self._num_threads)
            with torch.inference_mode():
                self._decoder = self._new_decoder()
                self._token_bytes = self._decoder.token_bytes
                is_ready.set()
                while self._admit():
                    for sequence in [sequence for sequence in self._active if sequence.is_cancelled]:
                        self._release(sequence)
                    self._read_prompts()
                    # This many take about as long as a token of a reply, so an endless queue of texts delays replies
                    # little.
                    self._embedder.read_some(_LEAST_READ if self._active else _MAX_READ)
                    self._decode()
        finally:
            is_ready.set()
            with self._changed:
                self._is_closed = True
                for sequence in self._sequences.values():
                    sequence.deliver(EngineError("the engine has stopped"))
                self._embedder.fail_all(EngineError("the engine has stopped"))
                self._active.clear()
                self._waiting.clear()
                self._sequences.clear()

    def _admit(self) -> bool:
        """Fill free slots from the queue; sleeps while there is nothing to do; False once closed."""
        with self._changed:
            while not (self._is_closed or self._active or self._waiting or self._embedder.has_work):
                self._changed.wait()
            while self._waiting and len(self._active) < self._max_active and self._has_room_for(self._waiting[0]):
                self._active.append(self._waiting.popleft())
            return not self._is_closed

    def _has_room_for(self, newcomer: _Sequence) -> bool:
        """Whether the cache has room, where every row takes as much as the longest; a single request always fits."""
        longest = max(sequence.longest for sequence in (newcomer, *self._active))
        most = (len(self._active) + 1) * longest * self._token_bytes
        return not self._active or most <= CACHE_BYTES

    def _read_prompts(self) -> None:
        """Read some tokens of unread prompts, in order of arrival; a reply starts when its prompt is read."""
        left = self._tokens_to_read()
        for sequence in [sequence for sequence in self._active if sequence.is_reading]:
            if left < 1:
                return
            is_scored = sequence.request.num_prompt_logprobs is not None
            if sequence.row is None and not is_scored and self._has_copied(sequence):
                continue
            most = min(left, _MAX_SCORED) if is_scored else left
            piece = sequence.unread_ids[: most if self._decoder.reads_in_parts else None]
            left -= len(piece)
            self._guarded(self._read, sequence, piece)

    def _has_copied(self, sequence: _Sequence) -> bool:
        """Copy the cache of another request with the same prompt, as several replies to one request have, and start
        the reply. False if there is no such request.
        """
        for other in self._active:
            if other.has_prompt_of(sequence) and self._decoder.can_copy(other.row, len(sequence.request.prompt_ids)):
                self._guarded(self._copy, sequence, other)
                return True
        return False

    def _copy(self, sequence: _Sequence, other: _Sequence) -> None:
        assert other.row is not None
        assert other.prompt_logits is not None
        sequence.row = self._decoder.copy(other.row, len(sequence.request.prompt_ids))
        sequence.prompt_logits, sequence.unread_ids = other.prompt_logits, []
        sequence.num_copied = len(sequence.request.prompt_ids)
        self._draw(sequence, other.prompt_logits)

    def _tokens_to_read(self) -> int:
        if all(sequence.is_reading for sequence in self._active):
            return _MAX_READ
        if not self._seconds_per_token:
            return _LEAST_READ
        return max(_LEAST_READ, min(_MAX_READ, int(self._max_stall_seconds / self._seconds_per_token)))

    def _read(self, sequence: _Sequence, piece: list[int]) -> None:
        if sequence.row is None:
            sequence.row = self._decoder.open(self._adapters.get(sequence.request.adapter or ""))
        began = time.perf_counter()
        if sequence.request.num_prompt_logprobs is None:
            logits = self._decoder.read(sequence.row, piece)
        else:
            logits = self._score(sequence, self._decoder.read_all(sequence.row, piece))
        if len(piece) >= _LEAST_READ:  # for fewer tokens the fixed cost dominates
            self._seconds_per_token = (time.perf_counter() - began) / len(piece)
        del sequence.unread_ids[: len(piece)]
        if not sequence.unread_ids:
            sequence.prompt_logits = logits
            self._draw(sequence, logits)

    def _score(self, sequence: _Sequence, logits: torch.Tensor) -> torch.Tensor:
        """Store the log-probabilities of the prompt's tokens; returns the last logits."""
        request = sequence.request
        begin = len(request.prompt_ids) - len(sequence.unread_ids) + 1
        for scores, following in zip(logits, request.prompt_ids[begin:], strict=False):
            found = log_probabilities(scores, following, request.num_prompt_logprobs or 0)
            sequence.prompt_logprobs.append(found)
        return logits[-1]

    def _decode(self) -> None:
        """Decode a token for every reply whose prompt is read, together or, if the model cannot do that, in turn."""
        ready = [sequence for sequence in self._active if not sequence.is_reading]
        for some in [ready] if self.decodes_together else [[sequence] for sequence in ready]:
            if some:
                self._step(some)

    def _step(self, some: list[_Sequence]) -> None:
        rows = [sequence.row for sequence in some if sequence.row is not None]
        try:
            logits = self._decoder.step(rows, [sequence.unread_ids[0] for sequence in some])
        except Exception as error:
            if len(some) == 1:
                self._fail(some[0], error)
            else:  # find the request that fails, without failing the others
                for sequence in some:
                    self._step([sequence])
            return
        for sequence, scores in zip(some, logits, strict=True):
            self._guarded(self._draw, sequence, scores)

    def _draw(self, sequence: _Sequence, logits: torch.Tensor) -> None:
        request = sequence.request
        token_id = sequence.sampler.draw(logits)
        sequence.unread_ids = [token_id]
        sequence.num_generated += 1
        reason = self._finish_reason(sequence, token_id)
        event = TokenEvent(token_id, reason)
        if request.num_logprobs is not None:
            event = TokenEvent(token_id, reason, *log_probabilities(logits, token_id, request.num_logprobs))
        if sequence.num_generated == 1:
            told = tuple(sequence.prompt_logprobs)
            event = event._replace(prompt_logprobs=told, num_cached=sequence.num_copied)
        # Released first, so that the slot is free when the client has its whole reply.
        if reason is not None:
            self._release(sequence)
        sequence.deliver(event)

    def _guarded(self, work: Callable[[_Sequence, Given], None], sequence: _Sequence, given: Given) -> None:
        """Run `work`; any error ends only that request."""
        try:
            work(sequence, given)
        except Exception as error:
            self._fail(sequence, error)

    def _fail(self, sequence: _Sequence, error: Exception) -> None:
        logger.error("request %s failed", sequence.request.request_id, exc_info=error)
        self._release(sequence)
        failure = EngineError(f"the model could not generate the next token: {error}")
        failure.__cause__ = error
        sequence.deliver(failure)

    def _release(self, sequence: _Sequence) -> None:
        if sequence.row is not None:
            self._decoder.close(sequence.row)
            sequence.row = None
        with self._changed:
            self._active.remove(sequence)
            self._forget(sequence)

    @staticmethod
    def _finish_reason(sequence: _Sequence, token_id: int) -> FinishReason | None:
        if token_id in sequence.request.end_token_ids:
            return "stop"
        return "length" if sequence.num_generated >= sequence.request.max_new_tokens else None
