"""Answers as server-sent events, and clients that disconnect before their answer."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from serve.protocol.errors import ApiError
from serve.protocol.event_stream import COMMENT, COMMENT_SECONDS, EARLY_SECONDS, STREAM_HEADERS, failure
from serve.protocol.transport import DIRECT, LEASE

Answer = TypeVar("Answer")


class EventStream(StreamingResponse):
    """Server-sent events, `first` and then the others. Their generator is closed when the client disconnects, not
    when it is garbage-collected. `at_end` is called exactly once.
    """

    def __init__(self, path: str, first: "asyncio.Future[str]", events: AsyncGenerator[str, None]) -> None:
        super().__init__(events, headers=STREAM_HEADERS)
        self._path = path
        self.at_end: Callable[[], None] = lambda: None
        self._first = first
        self._events = events
        self._send_piece: SendPiece

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send_piece = _piece_sender(scope.get(DIRECT, send))
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.at_end()
            await _end(self._first, self._events)

    async def stream_response(self, send: Send) -> None:
        """Called by the framework. Only the headers pass through the middleware."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._send_events(self._send_piece)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, send: "SendPiece") -> None:
        while not self._first.done():
            await send(COMMENT.encode())
            await asyncio.wait({self._first}, timeout=COMMENT_SECONDS)
        try:
            await send(self._first.result().encode())
        except ApiError as error:
            await send(failure(error.body(), self._path).encode())
            return
        async for event in self._events:
            await send(event.encode())


SendPiece = Callable[[bytes], Awaitable[None]]


def _piece_sender(send: Send) -> SendPiece:
    """A function that sends pieces of a body after its headers. Under uvicorn it writes chunks to the connection
    directly: an ASGI message for each token would be a tenth of the cost of a token."""
    cycle = getattr(send, "__self__", None)
    if not isinstance(cycle, RequestResponseCycle):
        return lambda piece: send({"type": "http.response.body", "body": piece, "more_body": True})

    async def write(piece: bytes) -> None:
        if cycle.disconnected:
            return
        if cycle.flow.write_paused:
            await cycle.flow.drain()
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if cycle.chunked_encoding else piece)

    return write


async def stream_of(request: Request, events: AsyncGenerator[str, None]) -> EventStream | None:
    """The answer with these events; None if the client has disconnected.

    Its headers wait for the first event, so that an earlier failure gets its own status. Without a front, which sends
    early headers itself, they wait for a second at most.
    """
    first: asyncio.Future[str] = asyncio.ensure_future(anext(events))
    patience = None if LEASE in request.headers else EARLY_SECONDS
    is_left = True
    try:
        is_left = await unless_departed(request, asyncio.wait({first}, timeout=patience)) is None
        if not is_left and first.done():
            first.result()
    except BaseException:
        is_left = True
        raise
    finally:
        if is_left:
            await _end(first, events)
    return None if is_left else EventStream(request.url.path, first, events)


async def _end(first: "asyncio.Future[str]", events: AsyncGenerator[str, None]) -> None:
    first.cancel()
    await asyncio.wait({first})
    if not first.cancelled():
        first.exception()  # marks it as retrieved
    await events.aclose()


async def unless_departed(request: Request, work: Awaitable[Answer]) -> Answer | None:
    """The result of `work`; if the client disconnects first, `work` is cancelled and the result is None."""
    task = asyncio.ensure_future(work)
    departure = asyncio.create_task(_departure(request))
    try:
        await asyncio.wait({task, departure}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        departure.cancel()


async def _departure(request: Request) -> None:
    """Returns when the client has disconnected; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
