"""One request to the front and its answer: the request id, the log line, common headers, and streams whose headers
are sent before the reply starts.
"""

import asyncio
import json
import re
import time
from collections.abc import Iterable

from aiohttp import web
from multidict import CIMultiDict

from serve.front.cors import Origins
from serve.front.upstream import Answer
from serve.log import logger as requests_log
from serve.protocol.errors import ApiError
from serve.protocol.event_stream import COMMENT, COMMENT_SECONDS, EARLY_SECONDS, STREAM_HEADERS, failure
from serve.protocol.transport import REQUEST_ID, request_id_of

# Above the first value a replica's answer waits for a slow client; below the second it continues.
_MAX_UNSENT_BYTES = 1 << 20
_FEW_UNSENT_BYTES = 128 << 10
# In a typed event; inside a text its quotes would be escaped.
_NUMBER = re.compile(rb'"sequence_number":\s*(\d{1,9})')
_STREAM_FIELD = re.compile(rb'"stream"\s*:\s*true')


class Exchange:
    """A request and the state of its answer."""

    def __init__(self, request: web.BaseRequest, origins: Origins) -> None:
        self.request = request
        self.id = request_id_of(request.headers.get(REQUEST_ID))
        self.reached_replica = False
        """whether a replica handles it, and writes its log line"""
        self._began = time.perf_counter()
        self._cors = origins.headers(request.headers.get("origin"))
        self._stream: web.StreamResponse | None = None
        self._num_written = 0
        self._last = b""
        self._is_whole = False

    @property
    def has_begun(self) -> bool:
        """Whether headers have been sent."""
        return self._stream is not None

    def answer(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> web.Response:
        """A complete answer; the server omits the body for HEAD."""
        self._is_whole = True
        return web.Response(status=status, headers=self._all(headers), body=body)

    def refusal(self, error: ApiError) -> web.StreamResponse:
        """The error answer."""
        headers = {**(error.headers or {}), "Content-Type": "application/json"}
        return self.answer(error.status, headers.items(), error.body().encode())

    def _all(self, headers: Iterable[tuple[str, str]]) -> "CIMultiDict[str]":
        found = CIMultiDict(headers)
        found[REQUEST_ID] = self.id
        for name, value in self._cors.items():
            found[name] = value
        return found

    async def begin(self, headers: Iterable[tuple[str, str]] = STREAM_HEADERS.items()) -> None:
        """Send the headers of a stream, if they have not been sent."""
        if self._stream is not None:
            return
        stream = self._stream = web.StreamResponse(headers=self._all(headers))
        if self.request.version >= (1, 1):
            stream.enable_chunked_encoding()
        await stream.prepare(self.request)
        self.request.writer.send_headers()

    def write(self, piece: bytes) -> None:
        """Send complete events. Does nothing if the client has disconnected, since this request is then cancelled."""
        transport = self.request.transport
        self._num_written += 1
        self._last = piece
        if transport is not None and not transport.is_closing():
            is_chunked = self.request.version >= (1, 1)
            transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)

    def fail(self, body: str | bytes) -> None:
        """Send an error body as the last event."""
        numbers = _NUMBER.findall(self._last)
        self.write(failure(body, self.request.path, int(numbers[-1]) + 1 if numbers else 0).encode())

    async def end(self) -> web.StreamResponse:
        """Complete the stream."""
        assert self._stream is not None
        await self._stream.write_eof()
        return self._stream

    async def keep_alive(self, body: bytes | bytearray) -> None:
        """Send a stream's headers if there is no answer after a second, and comments until there is one."""
        await asyncio.sleep(EARLY_SECONDS)
        if not self.has_begun:
            if self._is_whole or not _asks_for_stream(body):
                return
            await self.begin()
            self.write(COMMENT.encode())
        while True:
            before = self._num_written
            await asyncio.sleep(COMMENT_SECONDS)
            if self._num_written == before:
                self.write(COMMENT.encode())

    async def pass_on(self, answer: Answer) -> None:
        """Send a replica's events as they arrive, only complete ones: half an event would corrupt the next one.

        Raises LostError.
        """
        begun = b""
        is_paused = False
        loop = asyncio.get_running_loop()

        def resume() -> None:
            nonlocal is_paused
            transport = self.request.transport
            if transport is None or transport.get_write_buffer_size() < _FEW_UNSENT_BYTES:
                is_paused = False
                answer.resume()
            else:
                loop.call_later(0.05, resume)

        def write(piece: bytes) -> None:
            nonlocal begun, is_paused
            if begun or not piece.endswith(b"\n\n"):
                piece, separator, begun = (begun + piece).rpartition(b"\n\n")
                piece += separator
            if piece:
                self.write(piece)
            transport = self.request.transport
            if not is_paused and transport is not None and transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
                is_paused = True
                answer.pause()
                loop.call_later(0.05, resume)

        await answer.pass_on(write)

    def tell(self, status: int) -> None:
        """Write the log line, if no replica writes it."""
        line = {
            "id": self.id,
            "method": self.request.method[:20],
            "path": self.request.path[:200],
            "by": "front",
            "status": status,
            "seconds": round(time.perf_counter() - self._began, 4),
        }
        requests_log.info(json.dumps(line))


def _asks_for_stream(body: bytes | bytearray) -> bool:
    if not _STREAM_FIELD.search(body):
        return False
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(asked, dict) and asked.get("stream") is True
