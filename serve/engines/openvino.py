"""OpenVINO's paged, continuous batching on CPUs, in a child process.

engine = OpenVINOEngine("/releases/abc-openvino", precision="auto", num_threads=2)
async for event in engine.submit(GenerationRequest(prompt_ids, max_new_tokens=64)): ...
"""

import asyncio
import contextlib
import itertools
import json
import logging
import secrets
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, get_args

from models.export.openvino_runtime import FACTS_FILE
from serve.child_process import send_all
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
from serve.engines.openvino_beside import Beside
from serve.engines.openvino_ebnf import ebnf_of
from serve.engines.openvino_limits import beyond_pipeline
from serve.engines.openvino_process import (
    BLOCK_TOKENS,
    CANCELLED,
    PipelineSettings,
    Progress,
    SamplingSettings,
    start,
)
from serve.engines.openvino_schema import rewritten
from serve.protocol.responses import FinishReason

logger = logging.getLogger(__name__)

# The cache grows up to this size; to less if `max_active` sequences of maximum length need less.
CACHE_BYTES = 2 << 30


@dataclass
class _Stream:
    """An open request and the queue of its events."""

    number: int
    request: GenerationRequest
    loop: asyncio.AbstractEventLoop
    events: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)


class OpenVINOEngine(Engine):
    """Decodes up to `max_active` requests together in a child process; further ones wait.

    In `fp32` the tokens are those of transformers, whatever else is in the batch; in other precisions a reply may
    depend on concurrent requests. If the child dies, every open request fails, and the engine has stopped.
    """

    def __init__(
        self,
        export_folder: Path | str,
        precision: Precision = "auto",
        max_active: int = DEFAULT_MAX_ACTIVE["openvino"],
        num_threads: int | None = None,
        max_stall_seconds: float = DEFAULT_MAX_STALL_SECONDS,
        has_beside: bool = True,
    ) -> None:
        """Raises EngineError for an export that OpenVINO cannot load.

        `has_beside`: requests that the pipeline does not support are decoded in this process; otherwise they are
        refused.
        """
        if max_active < 1:
            raise ValueError(f"max_active: got {max_active}; must be at least 1")
        facts = json.loads((Path(export_folder) / FACTS_FILE).read_text())
        num_blocks = num_blocks_of(facts, precision, max_active)
        self._vocab_size: int = facts["vocab_size"]
        # One block stays free for the token that is being written.
        self._max_positions: int = min(facts["max_positions"], (num_blocks - 1) * BLOCK_TOKENS)
        self._max_active = max_active
        self._numbers = itertools.count()
        self._streams: dict[int, _Stream] = {}
        self._by_id: dict[str, _Stream] = {}
        self._lock = threading.Lock()
        self._is_closed = False
        self._cache_used = 0.0
        self._farewell = "the engine has stopped"
        self._outbox: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
        self._has_beside = has_beside
        self._beside = Beside(export_folder, precision, max_active, max_stall_seconds, num_threads)
        folder = str(Path(export_folder).resolve())
        self._process, self._connection = start(
            PipelineSettings(folder, precision, num_threads, max_active, num_blocks, max_stall_seconds)
        )
        self._receiver = threading.Thread(target=self._receive, name="openvino-receiver", daemon=True)
        self._sender = threading.Thread(target=self._send, name="openvino-sender", daemon=True)
        self._receiver.start()
        self._sender.start()

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
    def process_id(self) -> int:
        """The child's process id."""
        return self._process.pid

    async def submit(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        # The pipeline would accept these, and give wrong tokens to them and to the rest of the batch.
        self.check_fits(request)
        self.check_tokens(request)
        if (beyond := beyond_pipeline(request)) is not None:
            if not self._has_beside:
                raise ValueError(f"{beyond[0]}: {beyond[1]}")
            async with aclosing(self._beside.submit(request)) as events:
                async for event in events:
                    yield event
            return
        stream = self._open(request)
        try:
            async for event in tokens_of(stream.events):
                yield event
        finally:
            self._cancel(stream)

    def cancel(self, request_id: str) -> None:
        self._beside.cancel(request_id)
        stream = self._by_id.get(request_id)
        if stream is not None and self._cancel(stream):
            _deliver([(stream, None)])

    def health(self) -> EngineHealth:
        num_open = len(self._streams)
        is_alive = not self._is_closed and self._process.poll() is None
        num_active = min(num_open, self._max_active)
        used = self._cache_used if num_open else 0.0
        return self._beside.with_health(EngineHealth(is_alive, num_active, num_open - num_active, used))

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
        self._process.kill()
        self._receiver.join()
        self._sender.join()
        self._beside.close()

    def refusal(self, request: GenerationRequest) -> tuple[str, str] | None:
        return None if self._has_beside else beyond_pipeline(request)

    def _open(self, request: GenerationRequest) -> _Stream:
        stream = _Stream(next(self._numbers), request, asyncio.get_running_loop())
        with self._lock:
            if self._is_closed:
                raise EngineError(self._farewell)
            if request.request_id in self._by_id:
                raise ValueError(f"request_id: {request.request_id!r} is already being generated")
            self._by_id[request.request_id] = self._streams[stream.number] = stream
            settings = _settings(request, self._vocab_size)
            self._outbox.put(("add", stream.number, request.prompt_ids, settings))
        return stream

    def _cancel(self, stream: _Stream) -> bool:
        """Close a stream; whether it was open. It counts as active until the child has released it."""
        with self._lock:
            if not self._is_open(stream):
                return False
            del self._by_id[stream.request.request_id]
            if stream.number in self._streams:
                self._outbox.put(("cancel", stream.number))
            return True

    def _send(self) -> None:
        """Write to the child. It reads only between two steps, so asyncio's loop must not wait for it."""
        send_all(self._outbox, self._connection)

    def _receive(self) -> None:
        """Read from the child until it has ended in any way."""
        try:
            with contextlib.suppress(EOFError, OSError):
                while True:
                    found, self._cache_used = self._connection.recv()
                    self._pass_on(found)
        finally:
            self._fail_all()

    def _fail_all(self) -> None:
        """End the child and every open stream."""
        self._process.kill()
        code = self._process.wait()
        with self._lock:
            if not self._is_closed:
                self._farewell += f": its process ended with exit code {code}"
                logger.error(self._farewell)
            self._is_closed = True
            left = [stream for stream in self._streams.values() if self._is_open(stream)]
            self._streams.clear()
            self._by_id.clear()
        self._outbox.put(None)
        _deliver([(stream, EngineError(self._farewell)) for stream in left])
        self._connection.close()

    def _pass_on(self, found: list[Progress]) -> None:
        events: list[tuple[_Stream, Event]] = []
        with self._lock:
            for progress in found:
                stream = self._streams[progress.number]
                if progress.end is not None:
                    del self._streams[progress.number]
                if progress.end != CANCELLED and self._is_open(stream):
                    events += [(stream, event) for event in _events(progress, stream.request)]
        _deliver(events)

    def _is_open(self, stream: _Stream) -> bool:
        """Whether a client still reads it."""
        return self._by_id.get(stream.request.request_id) is stream


def _events(progress: Progress, request: GenerationRequest) -> list[TokenEvent | Exception]:
    """The events of a step; without a failed request's last tokens, which may be wrong."""
    if progress.end is not None and progress.end not in get_args(FinishReason):
        return [EngineError(f"OpenVINO could not generate the next token: {progress.end}")]
    last = len(progress.token_ids) - 1
    # OpenVINO writes zeros if they were not requested.
    logprobs = progress.logprobs if request.num_logprobs is not None else [None] * (last + 1)
    reason: Any = progress.end
    return [
        TokenEvent(token_id, reason if place == last else None, logprob)
        for place, (token_id, logprob) in enumerate(zip(progress.token_ids, logprobs, strict=True))
    ]


def _deliver(events: list[tuple[_Stream, Event]]) -> None:
    """Hand events to their streams, with one wake-up for each asyncio loop."""
    by_loop = defaultdict(list)
    for stream, event in events:
        by_loop[stream.loop].append((stream.events, event))
    for loop, pairs in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing reads the stream
            loop.call_soon_threadsafe(_put, pairs)


def _put(pairs: "list[tuple[asyncio.Queue[Event], Event]]") -> None:
    for queue, event in pairs:
        queue.put_nowait(event)


def _settings(request: GenerationRequest, vocab_size: int) -> SamplingSettings:
    """A request's sampling settings in the pipeline's form: no temperature 0, no negative seed, no top_k above 64
    bits.
    """
    seed = secrets.randbits(63) if request.seed is None else request.seed % 2**63
    temperature = None if request.is_greedy else request.temperature
    return SamplingSettings(
        max_new_tokens=request.max_new_tokens,
        temperature=temperature,
        top_p=request.top_p,
        top_k=min(request.top_k, vocab_size),
        min_p=min(request.min_p, 1 - 1e-6),  # the pipeline refuses 1 itself
        min_new_tokens=request.min_new_tokens,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        seed=seed,
        end_token_ids=sorted(request.end_token_ids),
        wants_logprobs=request.num_logprobs is not None,
        grammar=ebnf_of(rewritten(json.loads(str(request.grammar.schema)))) if request.grammar else None,
    )


def num_blocks_of(facts: dict[str, int], precision: str, max_active: int) -> int:
    """The number of cache blocks. A number takes 4 bytes in fp32, and otherwise 2 or, by OpenVINO's
    choice, about 1.
    """
    block_bytes = facts["cache_numbers_per_token"] * (4 if precision == "fp32" else 2) * BLOCK_TOKENS
    most = max_active * (facts["max_positions"] // BLOCK_TOKENS + 2)
    return min(max(2, CACHE_BYTES // block_bytes), most)
