"""An OpenVINO export decoded token by token with this project's sampler, for requests that the pipeline refuses.

The pipeline takes no mask and no logits from outside, and returns no log-probability but the sampled token's.
Requests that need one of these use the same export here: the engine `torch` with OpenVINO's model. Replies take
turns, a token each. From the first such request on, the weights are in memory twice.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import torch

from models.export.openvino_runtime import FACTS_FILE, MODEL_FILE, compile_options, import_openvino, infer
from serve.engines.base import EngineError, EngineHealth, GenerationRequest, Precision, TokenEvent
from serve.engines.torch import TorchEngine
from serve.engines.torch_batched import Row

# The model returns logits for every token that it reads: 64 tokens and a vocabulary of 150,000 take 38 MB.
_MAX_READ = 64


class Beside:
    """An ExportEngine that loads at its first request."""

    def __init__(self, *settings: Any) -> None:
        self._settings = settings
        self._engine: ExportEngine | None = None
        self._is_closed = False
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="openvino-beside")

    async def submit(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """As an engine's; also raises EngineError if the export cannot be loaded."""
        if self._is_closed:
            raise EngineError("the engine has stopped")
        engine = await asyncio.get_running_loop().run_in_executor(self._loader, self._load)
        async with aclosing(engine.submit(request)) as events:
            async for event in events:
                yield event

    def cancel(self, request_id: str) -> None:
        """As an engine's."""
        if self._engine is not None:
            self._engine.cancel(request_id)

    def with_health(self, other: EngineHealth) -> EngineHealth:
        """The combined state of another engine and this one."""
        if self._engine is None:
            return other
        own = self._engine.health()
        return EngineHealth(
            own.is_alive and other.is_alive,
            own.num_active + other.num_active,
            own.num_waiting + other.num_waiting,
            max(own.cache_used, other.cache_used),
        )

    def close(self) -> None:
        """Stop; waits for a load in progress."""
        self._is_closed = True
        self._loader.shutdown(cancel_futures=True)
        if self._engine is not None:
            self._engine.close()

    def _load(self) -> "ExportEngine":
        """The engine; loading it the first time takes as long as loading the pipeline."""
        if self._engine is None:
            try:
                self._engine = ExportEngine(*self._settings)
            except RuntimeError as error:
                raise EngineError(f"the export could not be loaded a second time: {error}") from error
        return self._engine


class ExportEngine(TorchEngine):
    """TorchEngine for an export's folder; no adapters, no embeddings."""

    def __init__(
        self, export_folder: Path | str, precision: Precision, max_active: int, max_stall_seconds: float,
        num_threads: int | None = None,
    ) -> None:  # fmt: skip
        self._export_threads = num_threads
        # The threads are OpenVINO's; torch's threads, which sample, are shared with the rest of the process.
        super().__init__(export_folder, precision, max_active, max_stall_seconds=max_stall_seconds)

    def _load(
        self, release_folder: Path | str, precision: Precision, device: str, adapters: Mapping[str, Path | str]
    ) -> None:
        facts = json.loads((Path(release_folder) / FACTS_FILE).read_text())
        self._max_positions = facts["max_positions"]
        self._vocab_size = facts["vocab_size"]
        self._model = ExportDecoder(Path(release_folder), precision, self._export_threads)

    def _tokens_to_read(self) -> int:
        return min(super()._tokens_to_read(), _MAX_READ)

    def _new_decoder(self) -> "ExportDecoder":
        decoder: ExportDecoder = self._model
        return decoder


class ExportDecoder:
    """A decoder whose rows are inference requests of a compiled model, each with its own state."""

    reads_in_parts = True

    def __init__(self, folder: Path, precision: Precision, num_threads: int | None) -> None:
        facts = json.loads((folder / FACTS_FILE).read_text())
        self.token_bytes: int = facts["cache_numbers_per_token"] * (4 if precision == "fp32" else 2)
        openvino = import_openvino()
        options = {"NUM_STREAMS": 1, **compile_options(precision, num_threads)}
        self._model = openvino.compile_model(openvino.Core().read_model(folder / MODEL_FILE), "CPU", options)
        self._requests: dict[Row, Any] = {}

    def open(self, adapter: str | None = None) -> Row:
        """An empty row."""
        row = Row(0)
        self._requests[row] = self._model.create_infer_request()
        return row

    def can_copy(self, row: Row | None, length: int) -> bool:
        """Never: a state belongs to its inference request."""
        return False

    def copy(self, row: Row, length: int) -> Row:
        """Not called, since `can_copy` is false."""
        raise NotImplementedError

    def close(self, row: Row) -> None:
        """Free the row's memory."""
        del self._requests[row]

    def read(self, row: Row, token_ids: list[int]) -> torch.Tensor:
        """Append tokens to the row; the logits [V] after the last one."""
        return self._infer(row, token_ids, num_kept=1)[-1]

    def read_all(self, row: Row, token_ids: list[int]) -> torch.Tensor:
        """Append tokens to the row; the logits [T, V] after each of them."""
        return self._infer(row, token_ids)

    def _infer(self, row: Row, token_ids: list[int], num_kept: int = 0) -> torch.Tensor:
        logits = infer(self._requests[row], token_ids, row.length, num_kept)
        row.length += len(token_ids)
        return torch.from_numpy(logits)

    def step(self, rows: list[Row], token_ids: list[int]) -> torch.Tensor:
        """Append one token to each row; the logits [B, V] after them."""
        return torch.stack([self.read(row, [token_id]) for row, token_id in zip(rows, token_ids, strict=True)])
