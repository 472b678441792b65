"""The training loop: `fit(engine, plan, read, settings, held_out, on_step=..., on_checkpoint=...)`.

Ray is injected: `on_step` and `on_checkpoint` are plain callables. Under Ray Train they call `ray.train.report`; a
unit test passes `list.append`.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from models.engine import Sums, TrainingEngine
from models.packing import PackedBatch, StepPlan


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
    """One optimizer step, over all workers; the loss in nats per supervised token or per example."""

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    num_tokens: int
    """tokens read since the start of training, all workers together"""
    tokens_per_second: float
    """since this process began to train"""
    figures: dict[str, float] = field(default_factory=dict)
    """what else the objective says of the step"""


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
    read: Callable[[Sequence[int]], PackedBatch],
    settings: FitSettings,
    held_out: Sequence[PackedBatch],
    *,
    on_step: Callable[[Progress], None],
    on_checkpoint: Callable[[int, dict[str, Any]], None],
    start_step: int = 0,
) -> None:
    """Train from `start_step` to `settings.num_steps`.

    `read(rows)` gives rows of the corpus as a batch. `held_out` is this worker's share of the held-out batches.
    `on_step` gets the progress of every step; `on_checkpoint(step, metrics)` is called on all workers every
    `checkpoint_every_steps` steps and at the end, with the held-out loss in the metrics.
    """
    began = time.monotonic()
    num_tokens = sum(plan.num_tokens(step) for step in range(start_step))
    tokens_before = num_tokens
    steps = range(start_step, settings.num_steps)
    for step, batches in zip(steps, _read_ahead(plan, steps, engine.rank, read), strict=True):
        weight = plan.weight(step)
        sums: Sums = {}
        for batch in batches:
            for name, value in engine.accumulate(batch.to(engine.device), weight).items():
                sums[name] = sums.get(name, 0.0) + value
        learning_rate = learning_rate_at(step, settings)
        gradient_norm = engine.update(learning_rate)
        means = _means(engine, sums, weight)
        loss = means.pop("loss")
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"train: the loss became {loss} at step {step + 1}; lower train.learning_rate "
                f"(now {settings.learning_rate:g}) or train.gradient_clip"
            )
        num_tokens += plan.num_tokens(step)
        rate = (num_tokens - tokens_before) / (time.monotonic() - began)
        on_step(Progress(step + 1, settings.num_steps, loss, learning_rate, gradient_norm, num_tokens, rate, means))
        done = step + 1
        if done % settings.checkpoint_every_steps == 0 or done == settings.num_steps:
            measured = {f"held_out_{name}": value for name, value in measure(engine, held_out).items()}
            metrics = {"step": done, "loss": loss, "tokens_per_second": rate, "num_tokens": num_tokens}
            on_checkpoint(done, {**metrics, **measured})


def measure(engine: TrainingEngine, batches: Sequence[PackedBatch]) -> Sums:
    """Mean loss and figures over all workers' batches; every worker must bring equally many (ZeRO-3 counts)."""
    sums: Sums = {}
    for batch in batches:
        for name, value in engine.measure(batch.to(engine.device)).items():
            sums[name] = sums.get(name, 0.0) + value
    return _means(engine, sums, engine.total([float(sum(batch.weight for batch in batches))])[0])


def _means(engine: TrainingEngine, sums: Sums, weight: float) -> Sums:
    return {name: total / weight for name, total in zip(sums, engine.total([*sums.values()]), strict=True)}


def _read_ahead(
    plan: StepPlan, steps: range, rank: int, read: Callable[[Sequence[int]], PackedBatch]
) -> Iterator[list[PackedBatch]]:
    """Each step's micro-batches of this worker, read while the step before it is computed."""
    with ThreadPoolExecutor(max_workers=1) as thread:

        def begin(step: int) -> list[Any]:
            return [thread.submit(read, rows) for rows in plan.micro_batches(step, rank)]

        coming = begin(steps[0]) if steps else []
        for step in steps:
            ready, coming = coming, begin(step + 1) if step + 1 in steps else []
            yield [future.result() for future in ready]


def held_out_batches(
    rows: Sequence[dict[str, Any]],
    batch_tokens: int,
    rank: int,
    num_workers: int,
    batch: Callable[[Sequence[dict[str, Any]]], PackedBatch],
) -> Iterator[PackedBatch]:
    """Worker `rank`'s share of the held-out rows, as many batches as every other worker's.

    With fewer rows than workers, the first ones are measured more than once.
    """
    rows = list(rows)
    assert rows, "prepare refuses a corpus without held-out conversations"
    while len(rows) < num_workers:
        rows += rows[: num_workers - len(rows)]
    total = sum(row["num_tokens"] for row in rows)
    num_batches = min(len(rows) // num_workers, math.ceil(total / batch_tokens / num_workers))
    num_batches = max(1, num_batches)
    for index in range(num_batches):
        yield batch(rows[rank + index * num_workers :: num_workers * num_batches])
