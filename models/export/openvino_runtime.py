"""OpenVINO without its telemetry, and a plain runner of exported models for parity checks and perplexity.

This file does not import torch: the serving child process is smaller and starts faster without it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]

MODEL_FILE = "openvino_model.xml"
# What an engine needs to know before it loads the model: max_positions, vocab_size, cache_numbers_per_token.
FACTS_FILE = "facts.json"

# Exact, also in a batch; `auto` leaves both settings to OpenVINO, which uses bfloat16 where the CPU has it.
_HINTS: dict[str, dict[str, Any]] = {
    "auto": {},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    "fp32": {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # no quantization of activations
    },
}


def import_openvino() -> Any:
    """The module `openvino`, without its telemetry package, which reports usage without asking."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def compile_options(precision: str, num_threads: int | None = None) -> dict[str, Any]:
    """OpenVINO's settings for `auto`, `bf16` or `fp32`; `num_threads` None means all."""
    threads = {} if num_threads is None else {"INFERENCE_NUM_THREADS": num_threads}
    # Pinned threads of several processes would share the same cores.
    return {"ENABLE_CPU_PINNING": False, **_HINTS[precision], **threads}


class ExportedModel:
    """An exported model on the CPU, one sequence at a time."""

    def __init__(self, model: Path | Any, precision: str = "fp32") -> None:
        """`model` is an export's folder or an `openvino.Model`."""
        openvino = import_openvino()
        source = openvino.Core().read_model(model / MODEL_FILE) if isinstance(model, Path) else model
        # A second stream would only halve the threads of each.
        options = {"NUM_STREAMS": 1, **compile_options(precision)}
        self._request = openvino.compile_model(source, "CPU", options).create_infer_request()
        self._num_read = 0

    def restart(self) -> None:
        """Clear the cache, for another sequence."""
        self._request.reset_state()
        self._num_read = 0

    def read(self, token_ids: Sequence[int]) -> Logits:
        """float32 [T, V]: the logits after each of the next T tokens of the sequence."""
        logits = infer(self._request, token_ids, self._num_read)
        self._num_read += len(token_ids)
        return logits


def infer(request: Any, token_ids: Sequence[int], num_read: int, num_kept: int = 0) -> Logits:
    """Logits, float32 [T, V], from an inference request of a compiled export whose state holds `num_read` tokens;
    only for the last `num_kept` tokens, if that is not 0.
    """
    total = num_read + len(token_ids)
    request.infer(
        {
            "input_ids": np.asarray([token_ids], dtype=np.int64),
            "attention_mask": np.ones((1, total), dtype=np.int64),
            "position_ids": np.arange(num_read, total, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
    )
    logits: Logits = request.get_tensor("logits").data[0, -num_kept:].copy()
    return logits
