"""What training does about lost workers: hanging ones are ended, and memory that ran out is asked for in halves."""

import json
import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
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
_NOTE = "checkpoint_manager_snapshot.json"  # Ray Train's, of the checkpoints that are whole
_KEPT_NOTE = "checkpoints.json"  # our copy of it
# A worker that takes this many times as long as the others, and this many seconds, is reported.
_SLOW_FACTOR = 2.0
_SLOW_SECONDS = 1.0
# What torch's CPU allocator raises, and what Ray says of an actor that its memory monitor has ended.
_SAY_OUT_OF_MEMORY = ("can't allocate memory", "running low on memory")
_OUT_OF_MEMORY = (torch.OutOfMemoryError, ray.exceptions.OutOfMemoryError, MemoryError)


class Watchdog:
    """Ends this process where nothing happened in `seconds`: Ray takes it for lost and starts all workers again."""

    def __init__(self, seconds: float, before_end: Callable[[], Any]) -> None:
        self._seconds = seconds
        self._before_end = before_end
        self._last = time.monotonic()
        self._stopped = threading.Event()

    def __enter__(self) -> "Watchdog":
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()

    def alive(self) -> None:
        """Something has happened."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._stopped.wait(min(5.0, self._seconds / 4)):
            if time.monotonic() - self._last > self._seconds:
                self._before_end()
                time.sleep(1.0)  # for the message to go out
                os._exit(1)


class Slowest:
    """Finds the worker that holds the others up; all workers of a group ask it together."""

    def __init__(self) -> None:
        self._said: set[int] = set()

    def of(self, seconds: Sequence[float]) -> str:
        """`seconds` that each worker took for the same: what is to be said, once of each; empty if nothing is."""
        slow = max(range(len(seconds)), key=lambda rank: seconds[rank])
        others = [taken for rank, taken in enumerate(seconds) if rank != slow]
        usual = statistics.median(others) if others else math.inf
        if seconds[slow] < max(_SLOW_FACTOR * usual, _SLOW_SECONDS) or slow in self._said:
            return ""
        self._said.add(slow)
        machines: list[Any] = [None] * len(seconds)
        torch.distributed.all_gather_object(machines, ray.util.get_node_ip_address())
        return (
            f"worker {slow}, on {machines[slow]}, took {seconds[slow] / usual:.1f} times as long as others for the "
            "same work, and all wait for it: check what else runs there, or remove that machine"
        )


class Recovery(UserCallback):  # type: ignore[misc]
    """What Ray Train's controller does for us at each checkpoint, and at each failure before it starts again."""

    def __init__(self, store_uri: str, run_folder: str, board: Any) -> None:
        self._store_uri = store_uri
        self._run_folder = run_folder
        self._board = board

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        """Copy its note of the checkpoints, which it writes in place: where a disk is full that leaves it empty."""
        store = Store(self._store_uri)
        if (note := checkpoint_note(store, self._run_folder)) is not None:
            store.write_json(f"{self._run_folder}/{_KEPT_NOTE}", note)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Show what was lost, and halve micro-batches where memory ran out."""
        self._board.add.remote(lost_workers=len(worker_exceptions))
        self._board.post.remote(note=f"train: {failure_text(worker_exceptions)}")
        halve_micro_batches(Store(self._store_uri), self._run_folder, worker_exceptions)


def checkpoint_note(store: Store, run_folder: str, name: str = _NOTE) -> JsonObject | None:
    """Ray Train's note of the checkpoints in this folder that are whole; None if there is none, or half of one."""
    try:
        return store.read_json(f"{run_folder}/{name}")
    except json.JSONDecodeError:
        return None


def clear_unfinished(store: Store, key: str) -> None:
    """Before training starts: mend what was being written when an earlier start ended; whole checkpoints stay."""
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
    """What went wrong in which workers, without Ray's frames around it."""
    return "; ".join(f"worker {rank}: {describe_error(error)}" for rank, error in sorted(worker_exceptions.items()))


def failure_traceback(worker_exceptions: dict[int, Exception]) -> str:
    """The tracebacks of those that are no user's mistake, each once; empty where there are none."""
    found = [full_traceback(error) for error in worker_exceptions.values() if not is_users_mistake(error)]
    return "\n".join(dict.fromkeys(found))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: a GPU's, the process's, or so much of the machine's that Ray ended the worker."""
    cause = root_cause(error)
    return isinstance(cause, _OUT_OF_MEMORY) or any(words in str(cause) for words in _SAY_OUT_OF_MEMORY)


@dataclass(frozen=True)
class Decisions:
    """What a training has found out for all its later starts; None: not yet."""

    precision: str | None = None
    cut: int | None = None
    """parts that each micro-batch is split into"""


def decisions(store: Store, run_folder: str) -> Decisions:
    """Those of this training so far."""
    content = store.read_json(f"{run_folder}/{_SETTLED}") or {}
    return Decisions(content.get("precision"), content.get("cut"))


def decide(store: Store, run_folder: str, made: Decisions) -> None:
    """Add those that are made."""
    before = decisions(store, run_folder)
    known = {"precision": made.precision or before.precision, "cut": made.cut or before.cut}
    content = {name: value for name, value in known.items() if value is not None}
    store.write_json(f"{run_folder}/{_SETTLED}", content)


def halve_micro_batches(store: Store, run_folder: str, worker_exceptions: dict[int, Exception]) -> None:
    """Where memory ran out, cut micro-batches into twice as many parts; a step still reads the same."""
    if any(is_out_of_memory(error) for error in worker_exceptions.values()):
        decide(store, run_folder, Decisions(cut=2 * (decisions(store, run_folder).cut or 1)))
