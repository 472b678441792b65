"""The training loop: `fit(engine, plan, read, settings, report, ...)`.

Ray is injected: `report` and `checkpoint` are plain callables. Under Ray Train they are `ray.train.report`; a unit
test passes `list.append`.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from models.engine import TrainingEngine
from models.packing import PackedBatch, StepPlan, pack

Conversation = tuple[Sequence[int], Sequence[bool]]


@dataclass(frozen=True)
class FitSettings:
    """What the loop needs of `train` in the pipeline file; lengths in optimizer steps."""

    num_steps: int
    learning_rate: float
    warmup_share: float
    final_learning_rate_share: float
    checkpoint_every_steps: int


@dataclass(frozen=True)
class Progress:
    """One optimizer step, seen by worker 0; losses in nats per supervised token, over all workers."""

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    num_tokens: int
    """tokens read since the start of training, all workers together"""
    tokens_per_second: float
    """since this process began to train"""


class TrainingDiverged(ValueError):
    """The loss is no longer a number."""


def learning_rate_at(step: int, settings: FitSettings) -> float:
    """Linear warm-up, then a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5) to its final share."""
    warmup = round(settings.warmup_share * settings.num_steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, settings.num_steps - warmup)
    low = settings.final_learning_rate_share
    return settings.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))


def fit(
    engine: TrainingEngine,
    plan: StepPlan,
    read: Callable[[int], Conversation],
    settings: FitSettings,
    held_out: Sequence[PackedBatch],
    *,
    on_step: Callable[[Progress], None],
    on_checkpoint: Callable[[int, dict[str, Any]], None],
    start_step: int = 0,
) -> None:
    """Train from `start_step` to `settings.num_steps`.

    `read(row)` gives a conversation as (input_ids, supervised). `held_out` is this worker's share of the held-out
    batches. `on_step` gets the progress of every step; `on_checkpoint(step, metrics)` is called on all workers every
    `checkpoint_every_steps` steps and at the end, with the held-out loss in the metrics.
    """
    began = time.monotonic()
    num_tokens = sum(plan.num_tokens(step) for step in range(start_step))
    tokens_before = num_tokens
    for step in range(start_step, settings.num_steps):
        step_targets = plan.num_targets(step)
        loss_sum = 0.0
        for rows in plan.micro_batches(step, engine.rank):
            batch = pack([read(row) for row in rows]).to(engine.device)
            loss_sum += engine.accumulate(batch, step_targets)
        learning_rate = learning_rate_at(step, settings)
        gradient_norm = engine.update(learning_rate)
        loss = engine.total([loss_sum])[0] / step_targets
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"train: the loss became {loss} at step {step + 1}; lower train.learning_rate "
                f"(now {settings.learning_rate:g}) or train.gradient_clip"
            )
        num_tokens += plan.num_tokens(step)
        rate = (num_tokens - tokens_before) / (time.monotonic() - began)
        on_step(Progress(step + 1, settings.num_steps, loss, learning_rate, gradient_norm, num_tokens, rate))
        done = step + 1
        if done % settings.checkpoint_every_steps == 0 or done == settings.num_steps:
            metrics = {"step": done, "loss": loss, "tokens_per_second": rate, "num_tokens": num_tokens}
            on_checkpoint(done, {**metrics, "held_out_loss": mean_loss(engine, held_out)})


def mean_loss(engine: TrainingEngine, batches: Sequence[PackedBatch]) -> float:
    """Loss in nats per target over all workers' batches; every worker must bring equally many (ZeRO-3 counts)."""
    loss = sum(engine.loss_sum(batch.to(engine.device)) for batch in batches)
    total, targets = engine.total([loss, float(sum(len(batch.targets) for batch in batches))])
    return total / targets


def held_out_batches(
    rows: Sequence[Conversation], batch_tokens: int, rank: int, num_workers: int
) -> Iterator[PackedBatch]:
    """Worker `rank`'s share of the held-out conversations, as many batches as every other worker's.

    With fewer conversations than workers, the first ones are measured more than once.
    """
    rows = list(rows)
    assert rows, "prepare refuses a corpus without held-out conversations"
    while len(rows) < num_workers:
        rows += rows[: num_workers - len(rows)]
    total = sum(len(ids) for ids, _ in rows)
    num_batches = min(len(rows) // num_workers, math.ceil(total / batch_tokens / num_workers))
    num_batches = max(1, num_batches)
    for index in range(num_batches):
        yield pack(rows[rank + index * num_workers :: num_workers * num_batches])
