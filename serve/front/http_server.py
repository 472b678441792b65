"""aiohttp's HTTP server, adapted to the front: the front writes every error answer, and a client that has shut down
its sending side still gets its answer.

server = FrontServer(handle, refuse)
"""

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from serve.protocol.errors import ApiError

logger = logging.getLogger(__name__)

# The parser reports the exceeded limit, not the line: the first line has a different limit.
_MAX_LINE_BYTES = 8190
_MAX_HEADER_BYTES = 8192
_MAX_HEADERS = 128
_KEEP_OPEN_SECONDS = 75.0
_PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
_PROBE_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Refuse = Callable[[web.BaseRequest, ApiError], web.StreamResponse]


class FrontServer(web.Server):
    """`handle` answers requests; `refuse` answers invalid requests, and those for which `handle` fails."""

    def __init__(self, handle: Handle, refuse: Refuse) -> None:
        super().__init__(handle, handler_cancellation=True)
        self.refuse = refuse

    def __call__(self) -> RequestHandler:
        return _Connection(
            self,
            loop=self._loop,
            access_log=None,
            keepalive_timeout=_KEEP_OPEN_SECONDS,
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            max_headers=_MAX_HEADERS,
            auto_decompress=False,
        )


class _Connection(RequestHandler):
    def __init__(self, manager: FrontServer, **options: Any) -> None:
        super().__init__(manager, **options)
        self._refuse = manager.refuse
        self._last_body: Any = None
        self._is_half_closed = False

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages:
            self._last_body = self._messages[-1][1]

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client sends nothing more. It may still wait for an answer; True keeps the connection open."""
        if self._is_half_closed:
            return True  # uvloop calls it twice
        transport = self.transport
        is_answering = bool(self._messages) or self._waiter is None or self._waiter.done()
        if transport is None or self._last_body is None or not (is_answering and self._last_body.is_eof()):
            return None
        if transport.get_extra_info("sslcontext") is not None:
            return None  # asyncio closes these in any case
        self._is_half_closed = True
        self.close()  # after the last answer
        self._probe_soon(transport, 0)
        return True

    def _probe_soon(self, transport: asyncio.Transport, tries: int) -> None:
        pause = _PROBE_PAUSES[min(tries, len(_PROBE_PAUSES) - 1)]
        self._loop.call_later(pause, self._probe, transport, tries)

    def _probe(self, transport: asyncio.Transport, tries: int) -> None:
        """Test whether the client is still connected: a closed socket looks like one whose sending side is shut down,
        until something is sent to it."""
        if self.transport is not transport or transport.is_closing():
            return
        there: socket.socket = transport.get_extra_info("socket")
        if there.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            transport.abort()
            return
        request = self._current_request
        if not tries and request is not None and request.version >= (1, 1) and not request.writer.output_size:
            transport.write(_PROBE)  # clients ignore it
        self._probe_soon(transport, tries + 1)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to an invalid request, or to one for which the front failed."""
        if status >= 500:
            logger.error("the front failed at a request", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has already started")
        response = self._refuse(request, _refusal(status, exc, message))
        response.force_close()
        return response


def _refusal(status: int, error: BaseException | None, message: str | None) -> ApiError:
    if status >= 500:
        return ApiError(500, "The server failed at this request; its log says why.")
    if isinstance(error, LineTooLong):
        if str(error.args[1]) == str(_MAX_LINE_BYTES):
            return ApiError(414, f"The request's first line has more than {_MAX_LINE_BYTES} bytes.")
        return ApiError(431, f"A header of the request has more than {_MAX_HEADER_BYTES} bytes.")
    if message == "Too many headers received":
        return ApiError(431, f"The request has more than {_MAX_HEADERS} headers.")
    # The lines after the first one are the request itself, which may contain a key.
    words = re.sub(r"\s+", " ", (message or "").partition("\n")[0]).strip(" :.")
    return ApiError(400, f"This is not a valid HTTP/1.1 request: {words[:200] or 'it cannot be parsed'}.")
