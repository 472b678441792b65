"""Forward and backward of a worker's micro-batches of one step."""

import math
from collections.abc import Sequence
from typing import Any

from models.training.engine import Sums, TrainingEngine


def accumulate(engine: TrainingEngine, batches: Sequence[Any], weight: float) -> list[Sums]:
    """The sums of each micro-batch; the step's loss is their sum over all workers, divided by `weight`.

    None stands for an empty micro-batch: all workers take part in every pass, so this worker goes through its first
    one again, to no effect. Its sums are 0.
    """
    found = []
    for index, batch in enumerate(batches):
        used, share = (batches[0], math.inf) if batch is None else (batch, weight)
        assert used is not None, "a worker's first micro-batch is never empty"
        sums = engine.accumulate(used.to(engine.device), share, index == len(batches) - 1)
        found.append(dict.fromkeys(sums, 0.0) if batch is None else sums)
    return found


def accumulate_means(engine: TrainingEngine, batches: Sequence[Any], weight: float) -> Sums:
    """The same; returns the step's means over all workers."""
    sums = added(accumulate(engine, batches, weight))
    totals = engine.total(list(sums.values()))
    return {name: total / weight for name, total in zip(sums, totals, strict=True)}


def added(parts: Sequence[Sums]) -> Sums:
    """All sums together, name by name."""
    total: Sums = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total
