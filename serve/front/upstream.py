"""The front's connections to replicas: one request at a time on each, and answers as raw bytes.

upstream = Upstream()
async with upstream.ask("10.0.0.5:41234", "POST", "/v1/completions", headers, body) as answer:
    whole = await answer.read()                # or: await answer.pass_on(write)

A library's client wakes a task for each piece of an answer; here the callback that receives a stream's bytes forwards
them, since this is most of the cost of a token.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

import httptools

Headers = list[tuple[bytes, bytes]]

_CONNECT_SECONDS = 5.0


class LostError(Exception):
    """The replica is gone; `may_have_died_of_it` is False if the request never reached it."""

    def __init__(self, may_have_died_of_it: bool) -> None:
        super().__init__("the replica is gone")
        self.may_have_died_of_it = may_have_died_of_it


class Answer:
    """A replica's answer, once its headers have arrived."""

    def __init__(self, connection: "_Connection", status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers
        self._connection = connection

    def header(self, name: bytes) -> bytes:
        """The first header with this name, in lower case; empty if there is none."""
        return next((value for key, value in self.headers if key.lower() == name), b"")

    async def read(self) -> bytes:
        """The whole body. Raises LostError."""
        parts: list[bytes] = []
        await self.pass_on(parts.append)
        return b"".join(parts)

    async def pass_on(self, write: Callable[[bytes], None]) -> None:
        """Call `write` with the body's bytes as they arrive, up to its end. Raises LostError."""
        await self._connection.pass_on(write)

    def pause(self) -> None:
        """Stop reading for now."""
        self._connection.pause()

    def resume(self) -> None:
        """Continue reading."""
        self._connection.resume()


class Upstream:
    """Open connections to replicas, by address; used from one asyncio loop."""

    def __init__(self) -> None:
        self._idle: defaultdict[str, deque[_Connection]] = defaultdict(deque)

    @asynccontextmanager
    async def ask(
        self, address: str, method: str, target: str, headers: Iterable[tuple[bytes, bytes]], body: bytes | bytearray
    ) -> AsyncIterator[Answer]:
        """Send a request; yields its answer, which must be read completely in the block. Raises LostError."""
        connection = await self._connection(address)
        try:
            yield await connection.ask(_head(address, method, target, headers, len(body)), body)
        finally:
            if connection.is_idle:
                self._idle[address].append(connection)
            else:
                connection.abort()

    def close(self) -> None:
        """Close unused connections."""
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()

    async def _connection(self, address: str) -> "_Connection":
        idle = self._idle[address]
        while idle:
            if (connection := idle.pop()).is_idle:
                return connection
        del self._idle[address]  # addresses of replicas change, so empty lists would pile up
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, connection = await asyncio.get_running_loop().create_connection(
                    _Connection, host.strip("[]"), int(port)
                )
        except OSError as error:  # TimeoutError is one
            raise LostError(may_have_died_of_it=False) from error
        return connection


def _head(address: str, method: str, target: str, headers: Iterable[tuple[bytes, bytes]], length: int) -> bytes:
    lines = [f"{method} {target} HTTP/1.1\r\nhost: {address}".encode()]
    lines += [name + b": " + value for name, value in headers]
    if length or method == "POST":
        lines.append(b"content-length: %d" % length)
    return b"\r\n".join(lines) + b"\r\n\r\n"


class _Connection(asyncio.Protocol):
    """HTTP/1.1, one answer at a time. The parser calls the methods whose names start with on_."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._parser: Any = None
        self._is_lost = False
        self._is_complete = True
        self._headers: Headers = []
        self._begun: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._write: Callable[[bytes], None] | None = None
        self._parts: list[bytes] = []

    @property
    def is_idle(self) -> bool:
        """Whether another request may be sent."""
        return self._is_complete and not self._is_lost

    async def ask(self, head: bytes, body: bytes | bytearray) -> Answer:
        """Send a request; returns when the answer's headers have arrived. Raises LostError."""
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._parts, self._write, self._is_complete = [], [], None, False
        self._begun = asyncio.get_running_loop().create_future()
        self._transport.writelines([head, body] if body else [head])
        await self._begun
        return Answer(self, self._parser.get_status_code(), self._headers)

    async def pass_on(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._flush()
        if self._is_complete:
            return
        if self._is_lost:
            raise LostError(may_have_died_of_it=True)
        self._ended = asyncio.get_running_loop().create_future()
        await self._ended

    def pause(self) -> None:
        if not self._is_lost:
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self._is_lost:
            self._transport.resume_reading()

    def abort(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._is_complete:
            self.abort()  # there is no request in progress
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()
            return
        self._flush()
        self._end_if_complete()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_lost = True
        if not self._is_complete:
            for waiting in (self._begun, self._ended):
                self._end(waiting, LostError(may_have_died_of_it=True))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._parser.get_status_code() >= 200:  # below 200, the final headers follow
            self._end(self._begun, None)
        else:
            self._headers = []

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self._is_complete = True
            if not self._parser.should_keep_alive():
                self._is_lost = True

    def _flush(self) -> None:
        """Forward bytes that arrived together in one write: often several events."""
        if self._write is not None and self._parts:
            parts, self._parts = self._parts, []
            self._write(parts[0] if len(parts) == 1 else b"".join(parts))

    def _end_if_complete(self) -> None:
        if self._is_complete:
            self._end(self._ended, None)

    @staticmethod
    def _end(waiting: "asyncio.Future[None] | None", error: Exception | None) -> None:
        if waiting is None or waiting.done():
            return
        if error is None:
            waiting.set_result(None)
        else:
            waiting.set_exception(error)
