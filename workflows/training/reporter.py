"""What a worker's training says of itself: its steps, in the history and on the display, and its checkpoints."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from models.base.load import save_tokenizer
from models.training.batch_size import peak_gb
from models.training.deepspeed_engine import DeepSpeedEngine
from models.training.engine import MODEL_FOLDER
from models.training.fit import SECONDS_EACH
from models.training.fit import Progress as StepProgress
from models.training.snapshot import Write
from workflows.training.history import HISTORY, History, shown
from workflows.training.recovery import Slowest, Watchdog


class Reporter:
    """For `fit`'s `on_step` and `on_checkpoint`; all workers call the same together."""

    def __init__(
        self,
        engine: DeepSpeedEngine,
        record: History,
        tokenizer: Any,
        watchdog: Watchdog,
        post: Callable[..., Any],
        on_checkpoint: Callable[[dict[str, Any], Write], None],
        figures: dict[str, Any],
        rate: float,
    ) -> None:
        """`figures` go with every checkpoint; all workers compute `rate` floating-point operations in a second."""
        self.record = record
        self.snapshots: Sequence[Callable[[], Write]] = [engine.snapshot]
        """what a checkpoint is written by"""
        self._engine, self._tokenizer, self._watchdog, self._post = engine, tokenizer, watchdog, post
        self._on_checkpoint, self._figures, self._rate = on_checkpoint, figures, rate
        self._seconds = record.lines[-1].get("seconds", 0.0) if record.lines else 0.0
        self._started_at = len(record.lines)
        self._ended, self._slowest = time.monotonic(), Slowest()

    def step(self, progress: StepProgress, operations: float | None = None) -> None:
        """A step of so many floating-point operations has ended; None where they were not counted."""
        self._watchdog.alive()
        began, self._ended = self._ended, time.monotonic()
        took = self._ended - began
        self._seconds += took
        used = {} if operations is None else {"utilisation": operations / took / self._rate}
        self.record.add(progress, **used, memory_gb=peak_gb(), seconds=self._seconds)
        if self._engine.rank == 0:
            resumed = {"resumed_from_step": self._started_at} if self._started_at else {}
            self._post(**shown(progress), **resumed, num_workers=self._engine.num_workers)

    def checkpoint(self, num_steps: int, metrics: dict[str, Any]) -> None:
        """The steps so far are to be kept, of `num_steps` that there will be."""
        self.record.add_held_out(metrics)
        writes, steps_so_far = [take() for take in self.snapshots], self.record.text()

        def write(folder: Path) -> None:
            for each in writes:
                each(folder)
            if self._engine.rank == 0:
                save_tokenizer(self._tokenizer, folder / MODEL_FOLDER)
                (folder / HISTORY).write_text(steps_so_far)

        self._watchdog.alive()
        if (slow := self._slowest.of(metrics.pop(SECONDS_EACH))) and self._engine.rank == 0:
            self._post(note=f"train: {slow}")
        if self._engine.rank == 0:
            held_out = {name: round(value, 4) for name, value in metrics.items() if name in _SHOWN}
            self._post(**held_out)
        held = {"peak_memory_gb": round(peak_gb(), 2), "seconds": self._seconds}
        self._on_checkpoint({**metrics, **self._figures, **held, "num_steps": num_steps}, write)
        self._watchdog.alive()
        self._ended = time.monotonic()

    def continued(self, share: float) -> None:
        """A step of the likelihood training that a pair is compared to; a share of its time has passed."""
        self._watchdog.alive()
        if self._engine.rank == 0:
            self._post(likelihood_continued=f"{share:.0%}")

    def note(self, text: str) -> None:
        """Something that a person should know, said once."""
        if self._engine.rank == 0:
            self._post(note=f"train: {text}")


_SHOWN = ("held_out_loss", "held_out_accuracy")
