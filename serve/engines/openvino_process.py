"""The child process that owns an OpenVINO pipeline: it reads requests from a connection, and sends tokens back.

A step of the pipeline holds Python's lock until it is done. In its own process it delays nothing else, and a crash
only fails its requests. Started by serve/engines/openvino.py; needs neither torch nor transformers.

    in:  ("add", number, token ids, settings) or ("cancel", number)
    out: ("ready",) or ("failed", why), then after every step a list of Progress, and the share of the cache taken
"""

import contextlib
import gc
import logging
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from models.export.openvino_runtime import compile_options, import_openvino
from serve.child_process import start_child
from serve.engines.base import EngineError

logger = logging.getLogger(__name__)

# Tokens per block of the key-value cache on CPUs.
BLOCK_TOKENS = 32
# Prompt tokens read in one step, together with a token for every other reply: a long prompt delays the others by one
# such step at a time.
STEP_TOKENS = 256
# Requests often arrive together. One that is a few milliseconds late would wait for the whole step that reads the
# first one's prompt, so the process waits this long for more after a first request.
COMPANY_SECONDS = 0.015

# Why a request ended: "stop", "length", "cancelled", or the text of a failure.
STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"


@dataclass(frozen=True)
class PipelineSettings:
    """Settings of the pipeline."""

    folder: str
    precision: str
    num_threads: int | None
    max_active: int
    num_blocks: int
    max_stall_seconds: float | None = None
    """maximum duration of a step that reads prompts; None: as long as reading STEP_TOKENS takes"""


@dataclass(frozen=True)
class SamplingSettings:
    """Sampling settings of one request; temperature None is greedy, top_k 0 keeps all tokens."""

    max_new_tokens: int
    temperature: float | None = None
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    end_token_ids: list[int] = field(default_factory=list)
    min_new_tokens: int = 0
    wants_logprobs: bool = False
    grammar: str | None = None
    """in EBNF"""


@dataclass(frozen=True)
class Progress:
    """New tokens of a request, and why it ended, if it did."""

    number: int
    token_ids: list[int]
    end: str | None = None
    logprobs: list[float] = field(default_factory=list)
    """one for each token, if requested"""


class PipelineOwner:
    """A pipeline and its open requests, by number. After an error in a step the pipeline is built again.

    A request waits until the cache has room for its longest reply beside those in the pipeline. The pipeline itself
    would accept more and recompute some of them later; but if such a request's prompt is still in its cache, it drops
    all requests as too large (seen in 2026.4.1).
    """

    def __init__(self, settings: PipelineSettings) -> None:
        self._settings = settings
        self._handles: dict[int, Any] = {}
        self._waiting: deque[tuple[int, list[int], SamplingSettings]] = deque()
        self._blocks: dict[int, int] = {}
        self._step_tokens = STEP_TOKENS
        self._pipeline = _build(settings, STEP_TOKENS)
        if settings.max_stall_seconds is not None:
            self._keep_steps_below(settings.max_stall_seconds)

    @property
    def is_idle(self) -> bool:
        """Whether no request is open, and no cancelled one has yet to be released."""
        return not (self._waiting or self._handles or self._pipeline.has_non_finished_requests())

    @property
    def has_room(self) -> bool:
        """Whether another request would start immediately."""
        return not self._waiting and len(self._handles) < self._settings.max_active

    @property
    def cache_used(self) -> float:
        """The share of the cache that the requests in the pipeline may need, 0 to 1."""
        return sum(self._blocks.values()) / self._settings.num_blocks

    def add(self, number: int, token_ids: list[int], settings: SamplingSettings) -> list[Progress]:
        """Start a request, or queue it; returns its end if the pipeline refuses it."""
        self._waiting.append((number, token_ids, settings))
        return self._let_in()

    def _let_in(self) -> list[Progress]:
        """Start waiting requests while there is room; returns the ends of those that the pipeline refuses."""
        ended = []
        while self._waiting:
            number, token_ids, settings = self._waiting[0]
            blocks = -(-(len(token_ids) + settings.max_new_tokens) // BLOCK_TOKENS)
            if self._blocks and sum(self._blocks.values()) + blocks >= self._settings.num_blocks:
                break
            self._waiting.popleft()
            self._blocks[number] = blocks
            ended += self._start(number, token_ids, settings)
        return ended

    def _start(self, number: int, token_ids: list[int], settings: SamplingSettings) -> list[Progress]:
        openvino = import_openvino()
        prompt = openvino.Tensor(np.array([token_ids], dtype=np.int64))
        try:
            self._handles[number] = self._pipeline.add_request(number, prompt, _generation_config(settings))
        except Exception as error:  # any error here concerns only this request
            self._blocks.pop(number)
            return [Progress(number, [], str(error))]
        return []

    def cancel(self, number: int) -> list[Progress]:
        """End a request; does nothing if it has ended already."""
        handle = self._handles.pop(number, None)
        if handle is not None:
            handle.cancel()
            self._blocks.pop(number)
            return [Progress(number, [], CANCELLED), *self._let_in()]
        waiting = [request for request in self._waiting if request[0] == number]
        for request in waiting:
            self._waiting.remove(request)
        return [Progress(number, [], CANCELLED) for _ in waiting]

    def step(self) -> list[Progress]:
        """Run one step for all open requests; returns their new tokens, and which ones ended."""
        try:
            self._pipeline.step()
            found = [self._read(number, handle) for number, handle in self._handles.items()]
        except RuntimeError as error:
            logger.exception("a step failed; the pipeline is built again")
            return self._rebuild(str(error))
        for progress in found:
            if progress.end is not None:
                del self._handles[progress.number]
                del self._blocks[progress.number]
        return [*(progress for progress in found if progress.token_ids or progress.end), *self._let_in()]

    def _read(self, number: int, handle: Any) -> Progress:
        from openvino_genai import GenerationFinishReason, GenerationStatus

        token_ids: list[int] = []
        logprobs: list[float] = []
        end = None
        while handle.can_read():
            for output in handle.read().values():  # one, or none for a request that was not in this step
                token_ids += output.generated_ids
                logprobs += output.generated_log_probs
                if output.finish_reason != GenerationFinishReason.NONE:
                    end = STOP if output.finish_reason == GenerationFinishReason.STOP else LENGTH
        if handle.get_status() == GenerationStatus.IGNORED:  # its outputs still say LENGTH
            end = "its tokens do not fit into the cache"
        return Progress(number, token_ids, end, logprobs)

    def _keep_steps_below(self, seconds: float) -> None:
        """Measure a step that reads a prompt; if it takes longer, build a pipeline that reads fewer
        tokens per step.
        """
        self._seconds_to_read(1)  # warm-up
        took = self._seconds_to_read(2)
        if took > seconds:
            blocks = int(STEP_TOKENS * seconds / took) // BLOCK_TOKENS
            self._step_tokens = max(1, blocks) * BLOCK_TOKENS
            logger.warning(
                "%d prompt tokens take %.2f s: %d are read per step, to delay other replies by %.2f s at most",
                STEP_TOKENS, took, self._step_tokens, seconds,
            )  # fmt: skip
            self._pipeline = None
            gc.collect()
            self._pipeline = _build(self._settings, self._step_tokens)

    def _seconds_to_read(self, token_id: int) -> float:
        num_tokens = min(STEP_TOKENS, (self._settings.num_blocks - 1) * BLOCK_TOKENS - 1)
        self.add(0, [token_id] * num_tokens, SamplingSettings(max_new_tokens=1))
        began = time.perf_counter()
        while not self.is_idle:
            self.step()
        return time.perf_counter() - began

    def _rebuild(self, why: str) -> list[Progress]:
        """Build a new pipeline; the old one's requests end with the error."""
        ended = [Progress(number, [], f"a step of the pipeline failed: {why}") for number in self._handles]
        self._handles.clear()
        self._blocks.clear()
        self._pipeline = None
        gc.collect()
        self._pipeline = _build(self._settings, self._step_tokens)
        return [*ended, *self._let_in()]


def _build(settings: PipelineSettings, step_tokens: int) -> Any:
    import_openvino()
    from openvino_genai import ContinuousBatchingPipeline, SchedulerConfig

    scheduler = SchedulerConfig()
    scheduler.max_num_seqs = settings.max_active
    scheduler.num_kv_blocks = settings.num_blocks
    scheduler.max_num_batched_tokens = max(step_tokens, settings.max_active)
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = True
    options = compile_options(settings.precision, settings.num_threads)
    return ContinuousBatchingPipeline(Path(settings.folder), scheduler, "CPU", options)


def _generation_config(settings: SamplingSettings) -> Any:
    from openvino_genai import GenerationConfig, StructuredOutputConfig

    config = GenerationConfig()
    config.max_new_tokens = settings.max_new_tokens
    # Otherwise the pipeline would add the end token of the model's own configuration.
    config.ignore_eos = not settings.end_token_ids
    config.eos_token_id = next(iter(settings.end_token_ids), -1)
    config.stop_token_ids = set(settings.end_token_ids)
    config.min_new_tokens = settings.min_new_tokens
    config.presence_penalty = settings.presence_penalty
    config.frequency_penalty = settings.frequency_penalty
    config.repetition_penalty = settings.repetition_penalty
    config.logprobs = int(settings.wants_logprobs)
    if settings.temperature is not None:
        config.do_sample = True
        config.temperature, config.top_p, config.rng_seed = settings.temperature, settings.top_p, settings.seed
        if settings.top_k:
            config.top_k = settings.top_k
        if settings.min_p:
            config.min_p = settings.min_p
    if settings.grammar is not None:
        config.structured_output_config = StructuredOutputConfig(grammar=settings.grammar)
    return config


def serve(connection: Connection) -> None:
    """Serve until the other side is gone."""
    settings: PipelineSettings = connection.recv()
    try:
        owner = PipelineOwner(settings)
    except Exception as error:  # any error is sent to the other side
        connection.send(("failed", str(error)))
        return
    connection.send(("ready",))
    while True:
        ended: list[Progress] = []
        until = 0.0
        while (owner.is_idle and not ended) or connection.poll(_seconds_left(until) if owner.has_room else 0):
            kind, number, *rest = connection.recv()
            if kind == "add":
                until = until or time.monotonic() + COMPANY_SECONDS
                ended += owner.add(number, *rest)
            else:
                ended += owner.cancel(number)
        if found := ended + ([] if owner.is_idle else owner.step()):
            connection.send((found, owner.cache_used))


def _seconds_left(until: float) -> float:
    return max(0.0, until - time.monotonic())


def main() -> None:
    """The main function of the child."""
    # The engine is gone, and nothing waits for an answer.
    with contextlib.suppress(EOFError, OSError):
        serve(Connection(int(sys.argv[1])))


def start(settings: PipelineSettings) -> tuple["subprocess.Popen[bytes]", Connection]:
    """A child that is ready to generate, and a connection to it; raises EngineError."""
    process, connection = start_child(__name__)
    try:
        connection.send(settings)
        answer = connection.recv()
    except (EOFError, OSError):
        answer = ("failed", f"its process ended with exit code {process.wait()}")
    if answer[0] == "failed":
        process.wait()
        raise EngineError(f"OpenVINO could not load {settings.folder}: {answer[1]}")
    return process, connection
