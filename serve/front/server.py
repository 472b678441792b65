"""The front: one HTTP server before all replicas. It does not need Ray; serve/deployment/front_actor.py runs it.

    front = Front(lease, max_seconds=600)
    await front.listen("127.0.0.1", 8000)

A request's headers are checked first: without a valid key, or with a body that is too large, it is refused before its
body is read. Answers are forwarded as they arrive. When a replica or its engine dies, a request without any answer
yet is retried on another replica, and its client does not notice; a stream that has started ends with an error event
in OpenAI's form. A request that may have killed a replica is retried only once: otherwise it could kill all of them.
"""

import asyncio
import json
import logging
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from serve.access.api_keys import KeyRing
from serve.access.bearer import OPEN_PATHS, key_of
from serve.front.bodies import Budget, check_headers, read_body
from serve.front.cors import Origins
from serve.front.exchange import Exchange
from serve.front.http_server import FrontServer
from serve.front.metrics import MetricsOfAll
from serve.front.upstream import Answer, Headers, LostError, Upstream
from serve.protocol import errors
from serve.protocol.errors import LOST, ApiError
from serve.protocol.transport import LEASE, REQUEST_ID

logger = logging.getLogger(__name__)

__all__ = ["Endpoint", "Front", "Lease", "LostError"]

# For the bodies of all requests that are being read or wait for the start of their answer.
_MAX_BODIES_BYTES = 128 << 20
_PAUSE_SECONDS = 0.2
_TRIES = 2
# Headers of a single connection (RFC 9110, section 7.6.1), and headers that the front sets itself.
_OWN = frozenset(
    name.encode()
    for name in (
        "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "host",
        "content-length", "expect", "content-encoding", "http2-settings", LEASE, LOST, REQUEST_ID,
    )
)  # fmt: skip
# The front answers HEAD there itself if there is no replica.
_WHAT_THERE_IS = {"/": "text/html", "/health": "application/json", "/v1/models": "application/json",
                  "/metrics": CONTENT_TYPE_LATEST}  # fmt: skip


@dataclass(frozen=True)
class Lease:
    """Permission to send one request to the replica at `address`."""

    address: str
    id: str


@dataclass
class Endpoint:
    """What is served: the answer of `/health` while there is no replica."""

    model: str = ""
    release: str = ""


class Front:
    """`lease(seconds)` waits for a free replica; raises ApiError if there is none in time, and LostError.

    With `keys` a request without a valid one is refused before its body is read; replicas check the key again, since
    they read the keys themselves.
    """

    def __init__(
        self,
        lease: Callable[[float], AbstractAsyncContextManager[Lease]],
        max_seconds: float,
        origins: Origins | None = None,
        keys: KeyRing | None = None,
    ) -> None:
        self.endpoint = Endpoint()
        self.keys = keys
        self._lease = lease
        self._max_seconds = max_seconds
        self._origins = origins or Origins()
        self._replicas: dict[str, None] = {}
        self._metrics = MetricsOfAll()
        self._bodies = Budget(_MAX_BODIES_BYTES)
        self._upstream = Upstream()
        self._runner: web.ServerRunner

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Listen at this address; raises OSError. Shares the port with a front that is closing."""
        server = FrontServer(self._handle, self._refuse)
        self._runner = web.ServerRunner(server, shutdown_timeout=self._max_seconds)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, reuse_port=True, ssl_context=tls).start()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        """Refuse new connections, and wait for replies in progress."""
        await self._runner.cleanup()
        self._upstream.close()

    def serve(self, endpoint: Endpoint) -> None:
        """Announce this endpoint on /health, and forget the replicas of earlier ones."""
        self.endpoint = endpoint
        self._replicas.clear()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        exchange = Exchange(request, self._origins)
        try:
            return await self._answer(exchange)
        except ApiError as error:
            return await self._fail(exchange, error)
        except asyncio.CancelledError:
            if not exchange.reached_replica:
                exchange.tell(errors.CLIENT_CLOSED_REQUEST)
            raise
        except Exception:
            if exchange.has_begun:
                raise  # the server logs it, and the connection ends
            logger.exception("the front failed at a request")
            why = "The server failed at this request; its log says why."
            return await self._fail(exchange, ApiError(500, why))

    async def _fail(self, exchange: Exchange, error: ApiError) -> web.StreamResponse:
        self._count(exchange, error)
        if not exchange.has_begun:
            return exchange.refusal(error)
        exchange.fail(error.body())
        return await exchange.end()

    def _refuse(self, request: web.BaseRequest, error: ApiError) -> web.StreamResponse:
        exchange = Exchange(request, self._origins)
        self._count(exchange, error)
        return exchange.refusal(error)

    def _count(self, exchange: Exchange, error: ApiError) -> None:
        self._metrics.refused(error.status)
        exchange.tell(error.status)

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
        request, method, path = exchange.request, exchange.request.method, exchange.request.path
        if path == "/-/healthz":
            return exchange.answer(200, [("Content-Type", "text/plain")], b"success")
        if method == "OPTIONS":
            return exchange.answer(204, self._origins.preflight(request.headers).items(), b"")
        if not path.startswith("/"):
            raise ApiError(400, f"The request target is {path[:200]!r}; it must be a path, or a URL with one.")
        if self.keys is not None and path not in OPEN_PATHS:
            key_of(request.headers.get("authorization", "").encode("utf-8", "surrogateescape"), self.keys)
        if method in ("GET", "HEAD") and (answer := await self._without_lease(exchange)) is not None:
            return answer
        check_headers(request)
        with self._bodies.room() as room:
            body = await read_body(request, room)

            def let_go() -> None:
                room.give_back()
                with suppress(BufferError):  # a part of it is still being sent
                    body.clear()

            comments = asyncio.create_task(exchange.keep_alive(body))
            try:
                return await self._from_some(exchange, body, let_go)
            finally:
                comments.cancel()

    async def _from_some(
        self, exchange: Exchange, body: bytes | bytearray, on_answer: Callable[[], None]
    ) -> web.StreamResponse:
        """The answer of a free replica, or of another one if that is lost; calls `on_answer` when the body is not
        needed any more."""
        deadline = asyncio.get_running_loop().time() + self._max_seconds
        tries = 0
        while True:
            try:
                async with self._lease(deadline - asyncio.get_running_loop().time()) as lease:
                    self._replicas[lease.address] = None
                    return await self._forward(exchange, exchange.request.method, body, lease, on_answer)
            except LostError as lost:
                exchange.reached_replica = False
                tries += lost.may_have_died_of_it
                self._metrics.retried()
                if tries >= _TRIES:
                    raise ApiError(
                        502, f"{tries} replicas failed while they handled this request.", code="replica_lost"
                    ) from lost
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _without_lease(self, exchange: Exchange) -> web.StreamResponse | None:
        """Answer GET and HEAD without a lease, and without starting a replica. None if a replica must answer, and
        none is known.
        """
        path, is_head = exchange.request.path, exchange.request.method == "HEAD"
        if path == "/metrics":
            return await self._all_metrics(exchange)
        for address in list(self._replicas):
            try:
                return await self._forward(exchange, "GET", b"", Lease(address, ""))
            except LostError:
                self._replicas.pop(address, None)
        if path in ("/health", "/ping") and self.endpoint.model:
            health = {"status": "idle", "model": self.endpoint.model, "release": self.endpoint.release}
            return exchange.answer(200, [("Content-Type", "application/json")], json.dumps(health).encode())
        if is_head:
            kind = _WHAT_THERE_IS.get(path)
            return exchange.answer(200 if kind else 404, [("Content-Type", kind or "application/json")], b"")
        return None

    async def _forward(
        self,
        exchange: Exchange,
        method: str,
        body: bytes | bytearray,
        lease: Lease,
        on_answer: Callable[[], None] = lambda: None,
    ) -> web.StreamResponse:
        """Forward a replica's answer; raises LostError as long as nothing of it has been sent."""
        headers = [pair for pair in exchange.request.raw_headers if pair[0].lower() not in _OWN]
        headers += [(REQUEST_ID.encode(), exchange.id.encode()), (LEASE.encode(), lease.id.encode())]
        target = exchange.request.rel_url.raw_path_qs
        exchange.reached_replica = True
        async with self._upstream.ask(lease.address, method, target, headers, body) as answer:
            if lost := answer.header(LOST.encode()):
                raise LostError(may_have_died_of_it=lost == b"in")
            if answer.header(b"content-type").startswith(b"text/event-stream"):
                on_answer()
                return await self._stream(exchange, answer)
            whole = await answer.read()
            on_answer()
            if not exchange.has_begun:
                return exchange.answer(answer.status, _passed(answer.headers), whole)
            exchange.fail(whole)
            return await exchange.end()

    async def _stream(self, exchange: Exchange, answer: Answer) -> web.StreamResponse:
        await exchange.begin(_passed(answer.headers))
        try:
            await exchange.pass_on(answer)
        except LostError:
            self._metrics.cut()
            logger.warning("a stream was cut off: its replica is gone")
            why = "The replica failed in the middle of this reply; send the request again."
            exchange.fail(ApiError(500, why, code="replica_lost").body())
        return await exchange.end()

    async def _all_metrics(self, exchange: Exchange) -> web.StreamResponse:
        """The metrics of all replicas and the front, if the replicas, which check keys, show them to the client."""
        texts: dict[str, str] = {}
        for address in list(self._replicas):
            try:
                answer = await self._forward(exchange, "GET", b"", Lease(address, ""))
            except LostError:
                self._replicas.pop(address, None)
                continue
            if not isinstance(answer, web.Response) or answer.status != 200:
                return answer
            texts[address] = str(answer.text)
        return exchange.answer(200, [("Content-Type", CONTENT_TYPE_LATEST)], self._metrics.text(texts))


def _passed(headers: Headers) -> list[tuple[str, str]]:
    """The headers of a replica's answer that the client gets."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers if name.lower() not in _OWN]
