"""Progress of work on the cluster: an actor that workers report to, read by the driver."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from workflows.progress import Progress


@ray.remote(num_cpus=0)
class Board:
    """An actor that collects the workers' progress for the driver."""

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        self._latest: dict[str, object] = {}
        self._notes: list[str] = []

    def add(self, **counters: float) -> None:
        """Add to counters, such as the number of items done."""
        for name, value in counters.items():
            self._counters[name] = self._counters.get(name, 0) + value

    def post(self, note: str = "", **values: object) -> None:
        """Replace current values; `note` is a line that stays on the display."""
        self._latest.update(values)
        self._notes += [note] if note else []

    def read(self) -> tuple[dict[str, object], list[str]]:
        """Counters and current values together, and the notes since the last call."""
        notes, self._notes = self._notes, []
        return {**self._counters, **self._latest}, notes


@contextlib.contextmanager
def watching(progress: Progress, unit: str, total: float | None = None) -> Iterator[Any]:
    """A `Board`, shown on `progress` until the block ends. Workers add to `done`; other values are shown unchanged.

    Give `total` here, or let a worker post it.
    """
    # On this node: if the board ran on another machine and that was lost, the display would be lost too.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    ended = threading.Event()
    began = time.monotonic()

    def show() -> None:
        values, notes = ray.get(board.read.remote())
        for note in notes:
            progress.note(note)
        if values:
            if "tokens" in values:
                values["tokens_per_second"] = values["tokens"] / (time.monotonic() - began)
            done, whole = values.pop("done", 0), values.pop("total", total)
            progress.update(done, whole, unit, values)

    def watch() -> None:
        while not ended.wait(1.0):
            with contextlib.suppress(ray.exceptions.RayError):
                show()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield board
    finally:
        ended.set()
        thread.join(timeout=5.0)
        ray.kill(board)
