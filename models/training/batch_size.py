"""The largest micro-batch that fits into a worker's memory, found by experiment.

    tokens = largest_batch(engine, batch_of, max_tokens=8192, longest=900, limit_gb=3.0)

The batch size doubles each time; the last one is extrapolated from the memory per token so far.
"""

import math
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from models.errors import RayconteurError
from models.packing import PackedBatch
from models.training.engine import TrainingEngine

_MARGIN = 0.95  # of the limit: memory is fragmented
_LEAST_GROWTH = 1.1  # a smaller gain is not worth another trial


class TooLarge(RayconteurError):
    """Not even the longest conversation fits into memory."""


def largest_batch(
    engine: TrainingEngine,
    batch_of: Callable[[int], PackedBatch],
    *,
    max_tokens: int,
    longest: int,
    limit_gb: float,
) -> int:
    """Tokens of the largest micro-batch with which all workers stay below `limit_gb`; they call it together.

    `batch_of(n)` gives a batch of at most n tokens (or of the shortest conversation). `longest` is the length of the
    longest conversation: a micro-batch cannot be smaller. Sizes grow from small to large, since a process may not
    return memory that it has used. Raises TooLarge.
    """
    room = limit_gb * _MARGIN - engine.largest(engine.gb_to_come())
    before = engine.largest(peak_gb())
    max_tokens = max(max_tokens, longest)
    size, (tokens, held) = longest, _try(engine, batch_of(longest))
    if held > room:
        raise TooLarge(
            f"train.batch_tokens: a worker would hold about {held + limit_gb * _MARGIN - room:.1f} GB with the "
            f"longest conversation ({longest} tokens), and its limit is {limit_gb:.1f} GB; raise the limit "
            "(train.memory_gb_per_worker), shorten conversations (data.max_length), or train an adapter"
        )
    per_token = max(held - before, 1e-9) / tokens
    while size < max_tokens:
        promised = size + math.floor((room - held) / per_token)
        wanted = min(max_tokens, 2 * size, promised)
        if wanted < _LEAST_GROWTH * size and wanted < max_tokens:
            return size
        more_tokens, more_held = _try(engine, batch_of(wanted))
        if more_held > room:
            return size
        if more_tokens > tokens:
            per_token = max(more_held - held, 1e-9) / (more_tokens - tokens)
        size, tokens, held = wanted, more_tokens, more_held
    return size


def _try(engine: TrainingEngine, batch: PackedBatch) -> tuple[int, float]:
    """The batch's tokens, and the peak memory in GB of any worker during its forward and backward pass."""
    forget_peak()
    engine.accumulate(batch.to(engine.device), math.inf)
    engine.skip()
    return sum(batch.sequence_lengths), engine.largest(peak_gb())


def peak_gb() -> float:
    """This process's peak memory since its start or the last `forget_peak`; on a GPU, the GPU memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 1e9
    try:
        return _proc("/proc/self/status")["VmHWM"]
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def default_limit_gb(num_cpus: float, cpus_of_machine: int) -> float:
    """The default memory limit of a worker: its GPU's memory, or a share of main memory by its CPUs."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory / 1e9
    return _proc("/proc/meminfo")["MemTotal"] * min(1.0, num_cpus / cpus_of_machine)


def forget_peak() -> None:
    """Reset `peak_gb` to the memory in use now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak to the current value
    except OSError:  # a container may forbid it; then the peak includes loading the model
        return


def _proc(file: str) -> dict[str, float]:
    """The lines of a file of the proc filesystem that count memory, in GB."""
    rows = (line.split(":") for line in Path(file).read_text().splitlines() if line.endswith(" kB"))
    return {name: int(value.split()[0]) * 1024 / 1e9 for name, value in rows}
