"""A lock for stores without file locks: an object that names the program that holds it, renewed while it works.

Times of two machines are never compared: a lease is as old as the store's own clock says, and from then on this
program counts by its own clock how long the object stays unchanged.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

RENEWAL_S = 10.0
DEAD_AFTER_S = 45.0
"""a lease that its holder has not renewed for so long is taken over"""
SETTLE_S = 2.0
_POLL_S = 1.0


class Lease:
    """A lease at a path of a filesystem, from `acquire` to `release`.

    If two programs start within the same two seconds, both write the object, wait, and read it again: the last writer
    continues, the other one waits.
    """

    def __init__(self, filesystem: Any, path: str, on_wait: Callable[[str], None]) -> None:
        """`on_wait` gets one sentence if another program holds the lease."""
        self._filesystem, self._path, self._on_wait = filesystem, path, on_wait
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._released = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def acquire(self) -> None:
        """Wait until no living program holds the lease, and take it."""
        seen, quiet_since, said = "", 0.0, False
        while True:
            text = self._read(self._path)
            now = time.monotonic()
            if text is not None and text != seen:
                seen, quiet_since = text, now - (self._age() if not seen else 0.0)
            if text is None or now - quiet_since >= DEAD_AFTER_S:
                self._renew()
                time.sleep(SETTLE_S)
                if self._holder() == self._owner:
                    break
                seen = ""
            elif not said:
                self._on_wait(f"another run ({json.loads(text)['owner']}) holds {self._path}; waiting for it")
                said = True
            time.sleep(_POLL_S)
        self._keeper.start()

    def release(self) -> None:
        """Let others have it."""
        self._released.set()
        self._keeper.join()
        if self._holder() == self._owner:
            self._filesystem.delete_file(self._path)

    def is_held(self) -> bool:
        """Whether a living program holds the lease now."""
        return self._read(self._path) is not None and self._age() < DEAD_AFTER_S

    def _age(self) -> float:
        """Seconds since the last renewal, as the store dates it and an object that is written now."""
        probe = f"{self._path}.{uuid.uuid4().hex[:8]}"
        self._write(probe, b"")
        lease, now = self._filesystem.get_file_info([self._path, probe])
        self._filesystem.delete_file(probe)
        is_dated = lease.mtime_ns is not None and now.mtime_ns is not None
        return max(0.0, (now.mtime_ns - lease.mtime_ns) / 1e9) if is_dated else 0.0

    def _holder(self) -> str | None:
        text = self._read(self._path)
        return None if text is None else str(json.loads(text)["owner"])

    def _renew(self) -> None:
        # The time tells one renewal from the next; earlier versions also compare it with their clock.
        self._write(self._path, json.dumps({"owner": self._owner, "renewed": time.time()}).encode())

    def _keep(self) -> None:
        while not self._released.wait(RENEWAL_S):
            with contextlib.suppress(OSError):
                if self._holder() in (None, self._owner):  # otherwise another program has taken it over
                    self._renew()

    def _read(self, path: str) -> str | None:
        try:
            with self._filesystem.open_input_stream(path) as stream:
                return str(stream.read().decode())
        except FileNotFoundError:
            return None

    def _write(self, path: str, data: bytes) -> None:
        with self._filesystem.open_output_stream(path) as stream:
            stream.write(data)
