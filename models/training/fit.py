"""The training loop: `fit(engine, plan, read, settings, held_out, FitCallbacks(on_step, on_checkpoint))`.

Ray is injected: the callbacks are plain callables. Under Ray Train they call `ray.train.report`; a unit test passes
`list.append`.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from models.errors import RayconteurError
from models.packing import PackedBatch, StepPlan
from models.training.accumulation import accumulate, added
from models.training.engine import Sums, TrainingEngine
from models.training.report import Progress, Report

_SPIKE_WINDOW = 32
_LEAST_BEFORE_SPIKE = 8
_SECONDS_BETWEEN_NOTICES = 5.0


@dataclass(frozen=True)
class FitSettings:
    """The fields of `train` that the loop uses; lengths in optimizer steps."""

    num_steps: int
    learning_rate: float
    warmup_share: float
    final_learning_rate_share: float
    checkpoint_every_steps: int
    spike_factor: float | None = None
    """a step is skipped if its loss is more than this many times the median of recent steps"""
    max_skipped_steps: int = 0
    """more skipped steps end the training"""


@dataclass(frozen=True)
class FitCallbacks:
    """What the loop calls, on all workers."""

    on_step: Callable[[Progress], None]
    """after every step"""
    on_checkpoint: Callable[[Report, list[float]], None]
    """with a report, which has the held-out loss, and how many seconds each worker took for its share of that: every
    `checkpoint_every_steps` steps, at the end, and once when `leaving`"""
    leaving: Callable[[], bool] = lambda: False
    """whether a machine is about to be removed; called every few seconds, on all workers at the same step"""
    is_over: Callable[[], bool] = lambda: False
    """whether to end the training early; called after a checkpoint"""


@dataclass(frozen=True)
class HeldOut:
    """This worker's share of the held-out conversations; every other worker has as many batches."""

    batches: Sequence[PackedBatch]
    labels: Sequence[Sequence[str]] = ()
    """of each batch the parts of the conversations to which it belongs, such as a source; the same on all workers"""


class TrainingDiverged(RayconteurError):
    """Too many steps could not be applied."""

    def __init__(self, message: str, rows: list[int]) -> None:
        super().__init__(message)
        self.rows = rows
        """the rows of the corpus in the micro-batches with the highest loss of these steps"""


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
    held_out: HeldOut,
    callbacks: FitCallbacks,
    before: Sequence[Progress] = (),
    micro_batch_parts: int = 1,
) -> None:
    """Train up to step `settings.num_steps`, after the steps of `before`. Raises TrainingDiverged.

    `read(rows)` gives rows of the corpus as a batch. Each micro-batch is split into `micro_batch_parts`.
    """
    steps, loop = range(len(before), settings.num_steps), _Loop(engine, plan, settings, before, micro_batch_parts)
    for step, batches in zip(steps, _read_ahead(plan, steps, engine, read, micro_batch_parts), strict=True):
        progress = loop.step(step, batches)
        callbacks.on_step(progress)
        if loop.is_checkpoint_due(progress.step, callbacks.leaving):
            callbacks.on_checkpoint(*loop.report(progress, held_out))
            if callbacks.is_over():
                return


class _Loop:
    """The steps of one `fit`."""

    def __init__(
        self, engine: TrainingEngine, plan: StepPlan, settings: FitSettings, before: Sequence[Progress], parts: int
    ) -> None:
        self._engine = engine
        self._plan = plan
        self._settings = settings
        self._parts = parts
        self._began = self._noticed = time.monotonic()
        self._since_notice = 0.0
        """summed over the workers"""
        self._has_left = False
        self._num_tokens = self._tokens_before = before[-1].num_tokens if before else 0
        self._losses = deque((done.loss for done in before if not done.skipped), maxlen=_SPIKE_WINDOW)
        self._worst = [_worst(plan, done.step - 1, None) for done in before if done.skipped]

    def step(self, step: int, batches: Sequence[PackedBatch | None]) -> Progress:
        """One optimizer step; raises TrainingDiverged."""
        weight, num_parts = self._plan.weight(step), len(self._plan.rows(step))
        parts, sums = _accumulate(self._engine, batches, num_parts, weight, self._parts)
        totals = self._engine.total([*parts, *sums.values(), time.monotonic() - self._noticed])
        parts, self._since_notice = totals[:num_parts], totals[-1]
        means = {name: total / weight for name, total in zip(sums, totals[num_parts:], strict=False)}
        loss, learning_rate = sum(parts) / weight, learning_rate_at(step, self._settings)
        gradient_norm, why_not = self._update(loss, learning_rate)
        if why_not:
            self._worst.append(_worst(self._plan, step, parts))
            if len(self._worst) > self._settings.max_skipped_steps:
                raise _diverged(step, why_not, self._worst, self._settings)
        else:
            self._losses.append(loss)
        self._num_tokens += self._plan.num_tokens(step)
        rate = (self._num_tokens - self._tokens_before) / (time.monotonic() - self._began)
        return Progress(
            step + 1, self._settings.num_steps, loss, learning_rate, gradient_norm, bool(why_not), self._num_tokens,
            rate, means,
        )  # fmt: skip

    def _update(self, loss: float, learning_rate: float) -> tuple[float | None, str]:
        """Apply the step or skip it: the gradient's norm, if it was computed, and why the step was not applied."""
        if why_not := _why_not_apply(loss, self._losses, self._settings):
            self._engine.skip()
            return None, why_not
        norm = self._engine.update(learning_rate)
        return norm, "" if math.isfinite(norm) else f"the gradient's norm is {norm}"

    def is_checkpoint_due(self, done: int, leaving: Callable[[], bool]) -> bool:
        """After `done` steps; asks `leaving` every few seconds, until it was true once."""
        due = done % self._settings.checkpoint_every_steps == 0 or done == self._settings.num_steps
        if self._since_notice > _SECONDS_BETWEEN_NOTICES * self._engine.num_workers and not self._has_left:
            self._noticed, self._has_left = time.monotonic(), leaving()
            return due or self._has_left
        return due

    def report(self, progress: Progress, held_out: HeldOut) -> tuple[Report, list[float]]:
        """The step's figures and the held-out ones, and how many seconds each worker took for these."""
        means, seconds_each = measure(self._engine, held_out)
        figures = {
            "loss": progress.loss,
            "tokens_per_second": progress.tokens_per_second,
            "num_tokens": progress.num_tokens,
            "skipped_steps": len(self._worst),
            **held_out_figures(means),
        }
        return Report(progress.step, progress.num_steps, figures), seconds_each


def _accumulate(
    engine: TrainingEngine, batches: Sequence[PackedBatch | None], num_parts: int, weight: int, split_into: int
) -> tuple[list[float], Sums]:
    """This worker's share of a step: the loss of each of its micro-batches (0 for others'), and its figures."""
    parts, found = [0.0] * num_parts, accumulate(engine, batches, weight)
    for index, sums in enumerate(found):
        if batches[index] is not None:
            parts[engine.rank + index // split_into * engine.num_workers] += sums["loss"]
    figures = added(found)
    del figures["loss"]
    return parts, figures


def _why_not_apply(loss: float, losses: Sequence[float], settings: FitSettings) -> str:
    """Why a step must be skipped, given its loss and those of recent steps; empty if it need not be."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if settings.spike_factor is not None and len(losses) >= _LEAST_BEFORE_SPIKE:
        usual = statistics.median(losses)
        if loss > settings.spike_factor * usual:
            return f"the loss is {loss:.4g}, over {settings.spike_factor:g} times the usual {usual:.4g}"
    return ""


def _worst(plan: StepPlan, step: int, losses: Sequence[float] | None) -> list[int]:
    """The rows of the step's micro-batches with a non-finite loss, else of the one with the highest; None: all."""
    parts = plan.rows(step)
    if losses is None:
        return [row for rows in parts for row in rows]
    broken = [row for rows, loss in zip(parts, losses, strict=True) if not math.isfinite(loss) for row in rows]
    return broken or parts[max(range(len(parts)), key=lambda index: losses[index])]


def _diverged(step: int, why_not: str, worst: list[list[int]], settings: FitSettings) -> TrainingDiverged:
    return TrainingDiverged(
        f"train: {len(worst)} steps could not be applied, more than train.max_skipped_steps "
        f"({settings.max_skipped_steps}); at the last one, step {step + 1}, {why_not}; lower train.learning_rate "
        f"(now {settings.learning_rate:g}) or train.gradient_clip, or look at the conversations",
        [row for rows in worst for row in rows],
    )


def measure(engine: TrainingEngine, held_out: HeldOut) -> tuple[Sums, list[float]]:
    """Mean loss and figures over all workers' batches, with `loss_<label>` for each label, and the seconds that each
    worker took for its own.

    Every worker must have the same number of batches: with ZeRO-3 they wait for each other (and take the same time).
    """
    began = time.monotonic()
    each = [engine.measure(batch.to(engine.device)) for batch in held_out.batches]
    sums, weights = added(each), [float(batch.weight) for batch in held_out.batches]
    seconds = [0.0] * engine.num_workers
    seconds[engine.rank] = time.monotonic() - began
    by_label = {label: [0.0, 0.0] for labels in held_out.labels for label in labels}
    for labels, found, weight in zip(held_out.labels, each, weights, strict=bool(held_out.labels)):
        for label in labels:
            by_label[label] = [by_label[label][0] + found["loss"], by_label[label][1] + weight]
    parts = [value for pair in by_label.values() for value in pair]
    totals = engine.total([*sums.values(), sum(weights), *seconds, *parts])
    whole, rest = totals[len(sums)], totals[len(sums) + 1 :]
    means = {name: total / whole for name, total in zip(sums, totals, strict=False)}
    seconds, parts = rest[: engine.num_workers], rest[engine.num_workers :]
    means |= {
        f"loss_{label}": loss / weight for label, loss, weight in zip(by_label, parts[::2], parts[1::2], strict=True)
    }
    return means, seconds


def held_out_figures(means: Sums) -> dict[str, float]:
    """What `measure` found, by the names that reports and histories have for it."""
    return {f"held_out_{name}": value for name, value in means.items()}


def _read_ahead(
    plan: StepPlan,
    steps: range,
    engine: TrainingEngine,
    read: Callable[[Sequence[int]], PackedBatch],
    parts: int,
) -> Iterator[list[PackedBatch | None]]:
    """Each step's micro-batches of this worker, read while the previous step runs; None for an empty one."""
    with ThreadPoolExecutor(max_workers=1) as thread:

        def begin(step: int) -> list[Any]:
            batches = plan.micro_batches(step, engine.rank, engine.num_workers, parts)
            return [thread.submit(read, rows) if rows else None for rows in batches]

        coming = begin(steps[0]) if steps else []
        for step in steps:
            ready, coming = coming, begin(step + 1) if step + 1 in steps else []
            yield [future and future.result() for future in ready]


def held_out_batches(
    rows: Sequence[Mapping[str, Any]],
    batch_tokens: int,
    rank: int,
    num_workers: int,
    batch: Callable[[Sequence[Mapping[str, Any]]], PackedBatch],
) -> Iterator[PackedBatch]:
    """Worker `rank`'s share of the held-out rows, as many batches as every other worker's.

    With fewer rows than workers, the first rows are measured more than once.
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
