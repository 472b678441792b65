"""A job's output while it runs: over a websocket, or over plain HTTP where a proxy lets none through."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp

from workflows.cluster.errors import ClusterError
from workflows.jobs.errors import UnknownJob, first_line

# A cluster that does not answer for this long counts as lost; while a job writes nothing, the cluster is pinged this
# often.
_GONE_AFTER_S = 60.0
_ASKED_EVERY_S = 10.0

# Without websockets, the log is read this often; they count as no use after one has broken this often in a row.
_POLLED_EVERY_S = 2.0
_BROKEN_FOR_GOOD = 3


class _SilentWebSocket(RuntimeError):
    """A proxy accepts a websocket and delivers nothing, while the job's log has lines."""


class JobLog:
    """The output of a job."""

    def __init__(
        self,
        address: str,
        job_id: str,
        *,
        tail: Callable[[], AsyncIterator[str]],
        whole: Callable[[], str],
        is_over: Callable[[], bool],
        ping: Callable[[], None],
    ) -> None:
        """`tail` opens a websocket, which delivers the output in pieces; the others ask over plain HTTP, and raise
        ClusterError: for the output so far, whether the job has ended, and whether the cluster answers.
        """
        self._address = address
        self._job_id = job_id
        self._tail = tail
        self._whole = whole
        self._is_over = is_over
        self._ping_cluster = ping
        self._answered = time.monotonic()

    def lines(self) -> Iterator[str]:
        """Every line from the start, until the job ends; raises ClusterError."""
        seen, broken, self._answered = 0, 0, time.monotonic()
        read = self._from_websocket
        while True:
            number, why = 0, "connection lost"
            try:
                for line in read():
                    number += 1
                    if number > seen:
                        seen, broken = number, 0
                        yield line
                self._ping()
                if self._is_over():
                    return
            except UnknownJob:
                raise ClusterError(
                    f"job {self._job_id} is gone: the cluster at {self._address} restarted; submit it again to "
                    "resume from the store"
                ) from None
            except ClusterError as error:
                why = first_line(error)
            except (RuntimeError, OSError, aiohttp.ClientError) as error:  # of the websocket
                why, broken = first_line(error), broken + 1
                never = isinstance(error, aiohttp.WSServerHandshakeError | _SilentWebSocket)
                if self._answers() and (never or broken >= _BROKEN_FOR_GOOD):
                    read = self._polled
                    continue
            if time.monotonic() - self._answered > _GONE_AFTER_S:
                raise ClusterError(
                    f"the cluster at {self._address} has not answered for {_GONE_AFTER_S:.0f} s ({why}); once it "
                    "answers, submit the pipeline again to resume from the store"
                )
            time.sleep(1.0)

    def _from_websocket(self) -> Iterator[str]:
        """The lines from the start. Pings the cluster while the job writes nothing, because a machine that loses
        power does not close its connections.
        """
        loop = asyncio.new_event_loop()
        chunks: Any = self._tail()
        rest, next_one = "", None
        is_silent, missed = True, 0
        try:
            while True:
                next_one = next_one or loop.create_task(chunks.__anext__())
                loop.run_until_complete(asyncio.wait({next_one}, timeout=_ASKED_EVERY_S))
                if not next_one.done():
                    self._ping()
                    missed += is_silent and bool(self._whole())
                    if missed == 2:
                        raise _SilentWebSocket("the websocket delivers nothing")
                    continue
                try:
                    rest, next_one, is_silent = rest + next_one.result(), None, False
                except StopAsyncIteration:
                    break
                self._answered = time.monotonic()
                *lines, rest = rest.split("\n")
                yield from lines
            if rest:
                yield rest
        finally:
            if next_one is not None:
                next_one.cancel()
                loop.run_until_complete(asyncio.gather(next_one, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def _polled(self) -> Iterator[str]:
        """The lines from the start, over plain HTTP, until the job ends."""
        given, is_over = 0, False
        while not is_over:
            is_over = self._is_over()  # before the log, which then is complete
            began = time.monotonic()
            *lines, rest = self._whole().split("\n")
            self._answered = time.monotonic()
            lines += [rest] if is_over and rest else []
            yield from lines[given:]
            given = len(lines)
            if not is_over:  # each answer has the whole log
                time.sleep(max(_POLLED_EVERY_S, 10 * (self._answered - began)))

    def _answers(self) -> bool:
        try:
            self._ping()
        except ClusterError:
            return False
        return True

    def _ping(self) -> None:
        self._ping_cluster()
        self._answered = time.monotonic()
