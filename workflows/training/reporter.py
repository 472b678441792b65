"""Report a worker's training: steps to the history and the display, and checkpoints."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.base.load import save_tokenizer
from models.training.batch_size import peak_gb
from models.training.deepspeed_engine import DeepSpeedEngine
from models.training.engine import MODEL_FOLDER
from models.training.pack import PackedEngine
from models.training.report import Progress, Report
from models.training.snapshot import Write
from workflows.training.history import HISTORY, History, shown
from workflows.training.recovery import Slowest, Watchdog


@dataclass(frozen=True)
class Callbacks:
    """Callbacks of a training, called on all workers."""

    on_checkpoint: Callable[[Report, Write], None]
    """`write(folder)` writes this worker's part of the checkpoint there; an exception ends the training"""
    go_on: Callable[[], None] = lambda: None
    """called after a checkpoint; may wait for long, and an exception ends the training"""
    post: Callable[..., object] = lambda **values: None
    """shows values on the display; `note` is a line that stays"""
    leaving: Callable[[], bool] = lambda: False
    """whether this machine is about to be preempted"""


class Reporter:
    """Implements `fit`'s `on_step` and `on_checkpoint`; all workers call them together."""

    def __init__(
        self,
        engine: DeepSpeedEngine | PackedEngine,
        record: History,
        tokenizer: Any,
        watchdog: Watchdog,
        callbacks: Callbacks,
        figures: Mapping[str, float],
        rate: float,
    ) -> None:
        """`figures` are added to every checkpoint's; `rate` is the floating-point operations per second of all
        workers.
        """
        self.record = record
        self.snapshots: Sequence[Callable[[], Write]] = [engine.snapshot]
        """writes a checkpoint"""
        self._engine, self._tokenizer, self._watchdog = engine, tokenizer, watchdog
        self._callbacks, self._figures, self._rate = callbacks, figures, rate
        self._seconds = (record.lines[-1].figures.get("seconds") or 0.0) if record.lines else 0.0
        self._started_at = len(record.lines)
        self._ended, self._slowest = time.monotonic(), Slowest()

    def step(self, progress: Progress, operations: float | None = None) -> None:
        """A step has ended; `operations` are its floating-point operations, None if not counted."""
        self._watchdog.alive()
        began, self._ended = self._ended, time.monotonic()
        took = self._ended - began
        self._seconds += took
        used = {} if operations is None else {"utilisation": operations / took / self._rate}
        self.record.add(progress, **used, memory_gb=peak_gb(), seconds=self._seconds)
        if self._engine.rank == 0:
            resumed = {"resumed_from_step": self._started_at} if self._started_at else {}
            self._callbacks.post(**shown(progress), **resumed, num_workers=self._engine.num_workers)

    def checkpoint(self, report: Report, seconds_each: Sequence[float]) -> None:
        """Save a checkpoint; `seconds_each` is the time that each worker took for the same work."""
        self.record.add_held_out(report.figures)
        writes, steps_so_far = [take() for take in self.snapshots], self.record.text()

        def write(folder: Path) -> None:
            for each in writes:
                each(folder)
            if self._engine.rank == 0:
                save_tokenizer(self._tokenizer, folder / MODEL_FOLDER)
                (folder / HISTORY).write_text(steps_so_far)

        self._watchdog.alive()
        if slow := self._slowest.of(seconds_each, self._engine.gather):
            self.note(slow)
        if self._engine.rank == 0:
            self._callbacks.post(
                **{name: round(report.figures[name], 4) for name in _SHOWN if name in report.figures}
            )
        held = {"peak_memory_gb": round(peak_gb(), 2), "seconds": self._seconds}
        self._callbacks.on_checkpoint(replace(report, figures={**report.figures, **self._figures, **held}), write)
        with self._watchdog.paused():
            self._callbacks.go_on()
        self._ended = time.monotonic()

    def continued(self, share: float) -> None:
        """A step of the control has ended; `share` of its time has passed."""
        self._watchdog.alive()
        if self._engine.rank == 0:
            self._callbacks.post(likelihood_continued=f"{share:.0%}")

    def note(self, text: str) -> None:
        """Print a note, once."""
        if self._engine.rank == 0:
            self._callbacks.post(note=f"train: {text}")


_SHOWN = ("held_out_loss", "held_out_accuracy")
