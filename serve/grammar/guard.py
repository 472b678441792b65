"""The guard against expensive grammars: a process with limits of time and memory checks each before it is used.

guard = GrammarGuard(Setup(tokens, vocab_size, end_token_ids, Bounds()))
verdict = await guard.verdict(grammar)      # at most `Bounds.patience` later
"""

import asyncio
import contextlib
import hashlib
import logging
import subprocess
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TypeVar

from serve.child_process import send_all, start_child
from serve.grammar.process import Setup, Verdict

Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)

# A grammar that takes too long on a busy machine may pass on an idle one: it is checked again after a while.
_EXCESS_STAYS_S = 60.0
_MAX_KNOWN = 1024
# Extra time for an answer to arrive on a busy machine.
_GRACE_S = 0.5
# Time to start, with a vocabulary of 256,000 on a busy machine.
_START_S = 60.0
# A process that ended by itself is restarted immediately, but only this often.
_RESTARTS, _RESTARTS_WITHIN_S = 3, 60.0


class GrammarGuard:
    """Checks grammars in a process that starts at the first one, and again after it has ended."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._known: OrderedDict[str, tuple[Verdict, float]] = OrderedDict()
        self._lock = threading.Lock()
        self._trier: _Trier | None = None
        self._started: list[float] = []
        self._is_closed = False

    @property
    def process_id(self) -> int | None:
        """The id of the process that checks grammars, if it is running."""
        return self._trier.process.pid if self._trier else None

    async def verdict(self, grammar: str) -> Verdict:
        """The verdict, cached or found in time. Concurrent requests with the same grammar share one check."""
        key = hashlib.sha256(grammar.encode("utf-8", "surrogatepass")).hexdigest()
        if (known := self._remembered(key)) is not None:
            return known
        asked = self._ask(key, grammar)
        if asked is None:
            return Verdict(excess="queue")
        try:
            if (trier := self._trier) is not None:
                await _within(trier.started, _START_S)
            return await _within(asked, self._setup.bounds.patience + _GRACE_S)
        except TimeoutError:
            self._give_up()
            return Verdict(excess="queue")

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._is_closed = True
            if self._trier is not None:
                self._trier.end()

    def _remembered(self, key: str) -> Verdict | None:
        with self._lock:
            verdict, until = self._known.get(key, (None, 0.0))
            if verdict is None or time.monotonic() > until:
                return None
            self._known.move_to_end(key)
            return verdict

    def _remember(self, key: str, verdict: Verdict) -> None:
        if verdict.excess == "queue":
            return
        with self._lock:
            self._known[key] = verdict, time.monotonic() + (_EXCESS_STAYS_S if verdict.excess else float("inf"))
            self._known.move_to_end(key)
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)

    def _ask(self, key: str, grammar: str) -> "Future[Verdict] | None":
        with self._lock:
            if self._trier is None or not self._trier.is_alive:
                now = time.monotonic()
                self._started = [began for began in self._started if now - began < _RESTARTS_WITHIN_S]
                if self._is_closed or len(self._started) > _RESTARTS:
                    return None
                self._started.append(now)
                self._trier = _Trier(self._setup)
            asked, is_new = self._trier.ask(key, grammar)
        if is_new:
            asked.add_done_callback(lambda future: self._remember(key, future.result()))
        return asked

    def _give_up(self) -> None:
        """Kill the process: it did not keep its own time limit, so its state is unknown."""
        with self._lock:
            if self._trier is not None and self._trier.is_silent(self._setup.bounds.patience):
                logger.error("the process that checks grammars has not answered in time and is restarted")
                self._trier.end()


async def _within(future: "Future[Answer]", seconds: float) -> Answer:
    """The future's result within this time; other waiters are not affected."""
    return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), seconds)


class _Trier:
    """One run of the process."""

    def __init__(self, setup: Setup) -> None:
        self.started: Future[None] = Future()
        self.is_alive = True
        self.process: subprocess.Popen[bytes]
        self.process, self._connection = start_child("serve.grammar.process")
        self._outbox: SimpleQueue[object] = SimpleQueue()
        self._open: dict[int, tuple[str, Future[Verdict]]] = {}
        self._by_key: dict[str, Future[Verdict]] = {}
        self._number = 0
        self._heard = time.monotonic()
        self._lock = threading.Lock()
        self._outbox.put(setup)
        for work in (self._send, self._receive):
            threading.Thread(target=work, name=f"grammar-guard{work.__name__}", daemon=True).start()

    def ask(self, key: str, grammar: str) -> "tuple[Future[Verdict], bool]":
        """A future verdict, and whether this starts a new check."""
        with self._lock:
            if (found := self._by_key.get(key)) is not None:
                return found, False
            self._number += 1
            asked: Future[Verdict] = Future()
            if not self.is_alive:
                asked.set_result(Verdict(excess="queue"))
                return asked, True
            self._by_key[key] = asked
            self._open[self._number] = key, asked
            self._outbox.put((self._number, grammar))
            return asked, True

    def is_silent(self, seconds: float) -> bool:
        """Whether the process has sent nothing for this long."""
        return time.monotonic() - self._heard > seconds

    def end(self) -> None:
        """Kill the process; its waiters get an error."""
        self.process.kill()

    def _send(self) -> None:
        send_all(self._outbox, self._connection)

    def _receive(self) -> None:
        try:
            with contextlib.suppress(EOFError, OSError):
                self._take_all(self._connection)
        finally:
            self.process.kill()
            self.process.wait()
            self._outbox.put(None)
            with self._lock:
                self.is_alive = False
                left = [asked for _, asked in self._open.values()]
                self._open.clear()
                self._by_key.clear()
            if not self.started.done():
                self.started.set_result(None)
            for asked in left:
                asked.set_result(Verdict(excess="queue"))

    def _take_all(self, connection: Connection) -> None:
        while True:
            message = connection.recv()
            self._heard = time.monotonic()
            if message == "ready":
                self.started.set_result(None)
                continue
            number, verdict = message
            with self._lock:
                key, asked = self._open.pop(number)
                del self._by_key[key]
            asked.set_result(verdict)
