"""Disturb a training worker when a condition holds."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil


def workers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in child.name() or any("RayTrainWorker" in word for word in child.cmdline()[:1]):
                found.append(child)
    return found


class Disturbance:
    """Inside the block, call `act(a training worker)` as soon as `when()` is true, and set `happened`."""

    def __init__(self, when: Callable[[], bool], act: Callable[[psutil.Process], Any]) -> None:
        self._when, self._act = when, act
        self._ended = threading.Event()
        self.happened = False

    def __enter__(self) -> "Disturbance":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.is_set() and not self._when():
            time.sleep(0.001)
        if (found := workers()) and not self._ended.is_set():
            self._act(found[-1])
            self.happened = True
