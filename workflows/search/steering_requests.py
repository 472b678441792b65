"""What people ask of a running search: files in its folder of the store, which the search's driver answers.

<store>/tune/<key>/requests/<name>.json     a request; the driver writes it again, with its answer

    for answered in ask(store, key, [request], say):        # the command
        print(answered.answer)

    with Listener(store, key, decide):                      # the driver
        ...

The answered requests are the record of what was asked, from which an interrupted search goes on. Imports neither
Ray nor torch.
"""

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

from models.errors import RayconteurError
from workflows.cluster.errors import describe_error
from workflows.record import Record, optional
from workflows.store import Store, StoreError

_REQUESTS = "requests"
# Between two looks: a folder of this machine, and an object store.
_SECONDS_LOCAL, _SECONDS_AWAY = 0.5, 3.0
_SECONDS_BETWEEN_NOTES = 10.0
_PATIENCE_S = 300.0


@dataclass(frozen=True, kw_only=True)
class SteeringRequest(Record):
    """What one option of the command asks, and the answer of the search's driver."""

    name: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    does: Literal["stop", "add", "clone"]
    trial: int | None = optional()
    """the trial to stop or to clone"""
    values: Mapping[str, Any] = field(default_factory=dict)
    """of the trial to add, or of a clone where it differs; once it is answered, of the trial that it is about"""
    asked: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="microseconds"))
    """UTC, ISO 8601"""
    answer: str | None = optional()
    is_refused: bool = False
    number: int | None = optional()
    """the number of the trial that was added"""
    step: int | None = optional()
    """the last step that the trial to stop had reported"""


def ask(
    store: Store, key: str, requests: Sequence[SteeringRequest], say: Callable[[str], None]
) -> list[SteeringRequest]:
    """Ask the driver of a search, and wait for its answers; raises RayconteurError if there is no driver.

    `say` gets a sentence every few seconds. Requests without an answer are withdrawn.
    """
    if not store.is_locked("tune", key):
        raise RayconteurError(
            f"trials: no run is working on search {key}, so it takes no requests; start it with rayconteur tune, "
            "and ask while it runs"
        )
    for request in requests:
        _write(store, key, request)
    try:
        return _wait(store, key, requests, say)
    except BaseException:
        for request in read_requests(store, key, [request.name for request in requests]):
            if request.answer is None:
                with contextlib.suppress(OSError):
                    store.remove(_path(store, key, request.name))
        raise


def _wait(
    store: Store, key: str, requests: Sequence[SteeringRequest], say: Callable[[str], None]
) -> list[SteeringRequest]:
    began = noted = looked = time.monotonic()
    is_at_work = True
    while True:
        now = time.monotonic()
        if store.is_local or now - looked > _SECONDS_BETWEEN_NOTES:
            looked, is_at_work = now, store.is_locked("tune", key)  # before reading: the driver's last answers count
        found = read_requests(store, key, [request.name for request in requests])
        if len(found) == len(requests) and all(request.answer is not None for request in found):
            return found
        if not is_at_work:
            raise RayconteurError("trials: the run that worked on the search ended without an answer; start it again")
        if now - began > _PATIENCE_S:
            raise RayconteurError(
                f"trials: the driver of the search has not answered for {_PATIENCE_S:.0f} seconds; it may hang, or "
                "run an earlier version"
            )
        if now - noted > _SECONDS_BETWEEN_NOTES:
            noted = now
            say("waiting for the search's driver to answer")
        time.sleep(_pause(store))


def read_requests(store: Store, key: str, names: Sequence[str] | None = None) -> list[SteeringRequest]:
    """The requests of a search, the earliest first: all, or those of these names that are there."""
    if names is None:
        files = [info for info in store.entries("tune", key, _REQUESTS) if info.extension == "json"]
        names = [info.base_name.removesuffix(".json") for info in files]
    texts = store.read_texts(_path(store, key, name) for name in names)
    found = [_parsed(text) for text in texts if text]
    return sorted(filter(None, found), key=lambda request: (request.asked, request.name))


def _parsed(text: str) -> SteeringRequest | None:
    """A request; None if the file is none, or one of a later version."""
    try:
        return SteeringRequest.from_json(json.loads(text))
    except ValueError:
        return None


def take_over(store: Store, key: str, other: str) -> list[SteeringRequest]:
    """Copy what another search was asked and has not refused: this one goes on where it ended."""
    requests = [request for request in read_requests(store, other) if request.answer and not request.is_refused]
    for request in requests:
        _write(store, key, request)
    return requests


class Listener:
    """Answers requests in a thread, from `__enter__` to `__exit__`."""

    def __init__(self, store: Store, key: str, decide: Callable[[SteeringRequest], SteeringRequest]) -> None:
        """`decide` answers a request; it is called once for each."""
        self._store, self._key, self._decide = store, key, decide
        self._answered: dict[str, SteeringRequest] = {}
        self._written: set[str] = set()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> "Listener":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _listen(self) -> None:
        while not self._is_over.is_set():
            self.look()
            self._is_over.wait(_pause(self._store))
        self.look()

    def look(self) -> None:
        """Answer what is there. Where the store fails, it is tried again at the next look."""
        store, key = self._store, self._key
        with contextlib.suppress(OSError, StoreError):
            files = [info for info in store.entries("tune", key, _REQUESTS) if info.extension == "json"]
            names = {info.base_name.removesuffix(".json") for info in files} - self._written
            for request in read_requests(store, key, sorted(names)):
                if request.answer is None:
                    if request.name not in self._answered:
                        self._answered[request.name] = self._decided(request)
                    _write(store, key, self._answered[request.name])
                self._written.add(request.name)

    def _decided(self, request: SteeringRequest) -> SteeringRequest:
        try:
            return self._decide(request)
        except Exception as error:  # the command waits for an answer
            return refused(request, f"cannot be done: {describe_error(error)}")


def _pause(store: Store) -> float:
    return _SECONDS_LOCAL if store.is_local else _SECONDS_AWAY


def _path(store: Store, key: str, name: str) -> str:
    return store.path("tune", key, _REQUESTS, f"{name}.json")


def _write(store: Store, key: str, request: SteeringRequest) -> None:
    store.write_json(_path(store, key, request.name), request.to_json())


def answered(request: SteeringRequest, words: str, **fields: Any) -> SteeringRequest:
    """The request with the driver's answer."""
    return replace(request, answer=words, **fields)


def refused(request: SteeringRequest, words: str) -> SteeringRequest:
    """The request with the driver's refusal."""
    return replace(request, answer=words, is_refused=True)
