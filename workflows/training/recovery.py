"""Recovery of a training: ends hanging workers, and halves micro-batches after running out of memory."""

import contextlib
import json
import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray.exceptions
import ray.util
import torch
from ray.train import UserCallback

from workflows.cluster.errors import describe_error, full_traceback, is_users_mistake, root_cause
from workflows.record import JsonObject
from workflows.store import Store

_SETTLED = "settled.json"
_NOTE = "checkpoint_manager_snapshot.json"  # Ray Train's record of complete checkpoints
_KEPT_NOTE = "checkpoints.json"  # our copy of that record
# A worker is reported if it takes this many times as long as the others, and at least this many seconds.
_SLOW_FACTOR = 2.0
_SLOW_SECONDS = 1.0
# Error messages of torch's CPU allocator, and of Ray for an actor killed by its memory monitor.
_SAY_OUT_OF_MEMORY = ("can't allocate memory", "running low on memory")
_OUT_OF_MEMORY = (torch.OutOfMemoryError, ray.exceptions.OutOfMemoryError, MemoryError)


class Watchdog:
    """Ends this process if nothing happens for `seconds`: Ray then counts it as lost and restarts all workers."""

    def __init__(self, seconds: float, before_end: Callable[[], Any]) -> None:
        self._seconds = seconds
        self._before_end = before_end
        self._last = time.monotonic()
        self._stopped = threading.Event()
        self._is_paused = False

    def __enter__(self) -> "Watchdog":
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()

    def alive(self) -> None:
        """Report progress."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within this context, nothing needs to happen."""
        self._is_paused = True
        try:
            yield
        finally:
            self.alive()
            self._is_paused = False

    def _watch(self) -> None:
        while not self._stopped.wait(min(5.0, self._seconds / 4)):
            if not self._is_paused and time.monotonic() - self._last > self._seconds:
                self._before_end()
                time.sleep(1.0)  # time to send the message
                os._exit(1)


class Slowest:
    """Finds a worker that slows the others down; all workers of a group call it together."""

    def __init__(self) -> None:
        self._said: set[int] = set()

    def of(self, seconds: Sequence[float], gather: Callable[[Any], list[Any]]) -> str:
        """Compare the `seconds` that each worker took for the same work; returns a warning, once per worker, or an
        empty string. `gather` gives a value of every worker.
        """
        slow = max(range(len(seconds)), key=lambda rank: seconds[rank])
        others = [taken for rank, taken in enumerate(seconds) if rank != slow]
        usual = statistics.median(others) if others else math.inf
        if seconds[slow] < max(_SLOW_FACTOR * usual, _SLOW_SECONDS) or slow in self._said:
            return ""
        self._said.add(slow)
        machines = gather(ray.util.get_node_ip_address())
        return (
            f"worker {slow}, on {machines[slow]}, took {seconds[slow] / usual:.1f} times as long as the others for "
            "the same work, and all wait for it; check what else runs there, or remove that machine"
        )


class Recovery(UserCallback):  # type: ignore[misc]
    """Callbacks of Ray Train's controller, at each checkpoint and at each failure before a restart."""

    def __init__(self, store_uri: str, run_folder: str, board: Any) -> None:
        self._store_uri = store_uri
        self._run_folder = run_folder
        self._board = board

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        """Copy its record of checkpoints, which it writes in place: a full disk would leave it empty."""
        store = Store(self._store_uri)
        if (note := checkpoint_note(store, self._run_folder)) is not None:
            store.write_json(f"{self._run_folder}/{_KEPT_NOTE}", note)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Show which workers were lost; halve micro-batches if memory ran out."""
        self._board.add.remote(lost_workers=len(worker_exceptions))
        self._board.post.remote(note=f"train: {failure_text(worker_exceptions)}")
        halve_micro_batches(Store(self._store_uri), self._run_folder, worker_exceptions)


def checkpoint_note(store: Store, run_folder: str, name: str = _NOTE) -> JsonObject | None:
    """Ray Train's record of complete checkpoints in this folder; None if it is missing or truncated."""
    try:
        return store.read_json(f"{run_folder}/{name}")
    except json.JSONDecodeError:
        return None


def clear_unfinished(store: Store, key: str) -> None:
    """Before training: remove or repair what an earlier start had not finished writing; complete checkpoints stay."""
    run_folder = store.path("train", key, "run")
    note = checkpoint_note(store, run_folder)
    if note is None and (note := checkpoint_note(store, run_folder, _KEPT_NOTE)) is not None:
        store.write_json(f"{run_folder}/{_NOTE}", note)
    elif note is None:
        store.remove(f"{run_folder}/{_NOTE}")
    known = json.dumps(note)
    for info in store.folders("train", key, "run"):
        if info.base_name.startswith("checkpoint_") and info.base_name not in known:
            store.remove(info.path)


def failure_text(worker_exceptions: dict[int, Exception]) -> str:
    """The errors of the failed workers, without Ray's frames."""
    return "; ".join(f"worker {rank}: {describe_error(error)}" for rank, error in sorted(worker_exceptions.items()))


def failure_traceback(worker_exceptions: dict[int, Exception]) -> str:
    """The tracebacks of errors that are not a user's mistake, each once; empty if there are none."""
    found = [full_traceback(error) for error in worker_exceptions.values() if not is_users_mistake(error)]
    return "\n".join(dict.fromkeys(found))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the process ran out of memory, or Ray killed the worker because the machine did."""
    cause = root_cause(error)
    return isinstance(cause, _OUT_OF_MEMORY) or any(words in str(cause) for words in _SAY_OUT_OF_MEMORY)


@dataclass(frozen=True)
class Decisions:
    """Decisions that hold for all later starts of a training; None if not made yet."""

    precision: str | None = None
    cut: int | None = None
    """number of parts of each micro-batch"""


def decisions(store: Store, run_folder: str) -> Decisions:
    """The decisions of this training so far."""
    content = store.read_json(f"{run_folder}/{_SETTLED}") or {}
    return Decisions(content.get("precision"), content.get("cut"))


def decide(store: Store, run_folder: str, made: Decisions) -> None:
    """Store further decisions."""
    before = decisions(store, run_folder)
    known = {"precision": made.precision or before.precision, "cut": made.cut or before.cut}
    content = {name: value for name, value in known.items() if value is not None}
    store.write_json(f"{run_folder}/{_SETTLED}", content)


def halve_micro_batches(store: Store, run_folder: str, worker_exceptions: dict[int, Exception]) -> None:
    """After running out of memory, split micro-batches into twice as many parts; the step's result is the same."""
    if any(is_out_of_memory(error) for error in worker_exceptions.values()):
        decide(store, run_folder, Decisions(cut=2 * (decisions(store, run_folder).cut or 1)))
