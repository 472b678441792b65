"""The control for an adversarial pair: likelihood training, continued from the start of the adversarial phases, for
the same time on the same workers.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from models.training.accumulation import accumulate_means
from models.training.deepspeed_engine import DeepSpeedEngine
from models.training.fit import measure
from workflows.training.data import TrainingData

if TYPE_CHECKING:
    import torch

_STEPS_BETWEEN = 20


def continued(
    engine: DeepSpeedEngine,
    data: TrainingData,
    learning_rate: float,
    seconds: float,
    alive: Callable[[float], None],
) -> tuple[dict[str, "torch.Tensor"], float]:
    """Train for this many seconds, with a learning rate that falls to 0; all workers call it together.

    Returns the weights (worker 0's; empty on others) with the lowest held-out loss, including the initial ones, and
    that loss. Calls `alive(share)` after every step, with the share of the time that has passed.
    """
    seconds = max(1e-9, engine.total([seconds])[0] / engine.num_workers)
    best, weights = measure(engine, data.measured)[0]["loss"], engine.weights()
    began, step, passed = time.monotonic(), 0, 0.0
    while passed < 1.0:
        rows = data.plan.micro_batches(step, engine.rank, engine.num_workers, data.micro_batch_parts)
        batches = [data.read(numbers) if numbers else None for numbers in rows]
        accumulate_means(engine, batches, data.plan.weight(step))
        engine.update(learning_rate * (1 - passed))
        step += 1
        passed = engine.total([time.monotonic() - began])[0] / engine.num_workers / seconds
        alive(min(1.0, passed))
        if step % _STEPS_BETWEEN == 0 or passed >= 1.0:
            loss = measure(engine, data.measured)[0]["loss"]
            if loss < best:
                best, weights = loss, engine.weights()
    return weights, best
