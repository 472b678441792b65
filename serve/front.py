"""The front: one HTTP server before all replicas. Ray is not needed here; serve/front_actor.py runs it.

    front = Front(lease, max_seconds=600)
    await front.listen("127.0.0.1", 8000)

Bytes pass through as they come. When a replica or its engine dies, a request of which nothing has been answered yet
goes to another one, and its client sees nothing of it; a stream that has begun ends with an error event in OpenAI's
form. A request that a replica died of is tried once more and not again: what kills one would kill them all.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from prometheus_client import CONTENT_TYPE_LATEST
from yarl import URL

from serve.errors import LOST, ApiError
from serve.leases import LEASE
from serve.replica_metrics import MetricsOfAll

logger = logging.getLogger(__name__)

# Beyond what serve.api reads, so that it is a replica that says so and how much is read.
_MOST_BODY_BYTES = 64 << 20
_BODY_SECONDS = 60.0
_PAUSE_SECONDS = 0.2
_TRIES = 2
# Of one connection, not of what is said over it (RFC 9110, 7.6.1).
_HOP_BY_HOP = {
    "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "host",
    "content-length", "expect", LEASE, LOST,
}  # fmt: skip
_GONE = (aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError)


class LostError(Exception):
    """The replica is gone; `may_have_died_of_it` unless the request never reached it."""

    def __init__(self, may_have_died_of_it: bool) -> None:
        super().__init__("the replica is gone")
        self.may_have_died_of_it = may_have_died_of_it


@dataclass(frozen=True)
class Lease:
    """Leave to send one request to the replica at `address`."""

    address: str
    id: str


@dataclass
class Endpoint:
    """What is served, for `/health` while there is no replica."""

    model: str = ""
    release: str = ""


class Front:
    """`lease` waits so many seconds for a replica with room; raises ApiError where there is none, and LostError."""

    def __init__(self, lease: Callable[[float], AbstractAsyncContextManager[Lease]], max_seconds: float) -> None:
        self.endpoint = Endpoint()
        self._lease = lease
        self._max_seconds = max_seconds
        self._replicas: dict[str, None] = {}
        self._metrics = MetricsOfAll()
        self._client: aiohttp.ClientSession
        self._runner: web.AppRunner

    async def listen(self, host: str, port: int) -> None:
        """Answer at that address from now on; raises OSError. Shares the port with a front that is closing."""
        # No limit on connections, none on the time of a reply: the replica has one for it.
        timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_connect=5)
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60), timeout=timeout, auto_decompress=False
        )
        app = web.Application(client_max_size=_MOST_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, keepalive_timeout=75, shutdown_timeout=self._max_seconds
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, reuse_port=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        """Take no new connections, let replies come to their end."""
        await self._runner.cleanup()
        await self._client.close()

    def serve(self, endpoint: Endpoint) -> None:
        """Say so of the endpoint; replicas of earlier ones are forgotten."""
        self.endpoint = endpoint
        self._replicas.clear()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            if request.path == "/-/healthz":
                return web.Response(text="success")
            return await self._answer(request)
        except web.HTTPRequestEntityTooLarge:
            error = ApiError(413, f"The request body has more than {_MOST_BODY_BYTES} bytes.")
        except ApiError as raised:
            error = raised
        self._metrics.refused(error.status)
        headers = {**(error.headers or {}), "content-type": "application/json"}
        return web.Response(status=error.status, body=error.body().encode(), headers=headers)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            if request.path == "/metrics":
                return await self._all_metrics(request)
            if (answer := await self._from_any(request)) is not None:
                return answer
        try:
            body = await asyncio.wait_for(request.read(), _BODY_SECONDS)
        except TimeoutError:
            raise ApiError(408, f"The request body did not come in {_BODY_SECONDS:g} seconds.") from None
        deadline = asyncio.get_running_loop().time() + self._max_seconds
        tries = 0
        while True:
            try:
                async with self._lease(deadline - asyncio.get_running_loop().time()) as lease:
                    self._replicas[lease.address] = None
                    return await self._forward(request, body, lease)
            except LostError as lost:
                tries += lost.may_have_died_of_it
                self._metrics.retried()
                if tries >= _TRIES:
                    raise ApiError(
                        502, f"{tries} replicas ended while they worked on this request.", code="replica_lost"
                    ) from lost
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _from_any(self, request: web.Request) -> web.StreamResponse | None:
        """A GET needs no lease: it waits behind no reply and wakes no replica up. None if no replica is known."""
        for address in list(self._replicas):
            try:
                return await self._forward(request, b"", Lease(address, ""))
            except LostError:
                self._replicas.pop(address, None)
        if request.path == "/health" and self.endpoint.model:
            health = {"status": "idle", "model": self.endpoint.model, "release": self.endpoint.release}
            return web.json_response(health)
        return None

    async def _forward(self, request: web.Request, body: bytes, lease: Lease) -> web.StreamResponse:
        """The replica's answer; raises LostError while nothing of it has been sent."""
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP]
        url = URL(f"http://{lease.address}{request.raw_path}", encoded=True)
        reached = False
        try:
            async with self._client.request(
                request.method,
                url,
                headers=[*headers, (LEASE, lease.id)],
                data=body or None,
                allow_redirects=False,
                skip_auto_headers=("content-type", "user-agent", "accept-encoding"),
            ) as answer:
                reached = True
                if LOST in answer.headers:
                    raise LostError(may_have_died_of_it=answer.headers[LOST] == "in")
                kept = ((name, value) for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP)
                passed = CIMultiDict(kept)
                if answer.content_type == "text/event-stream":
                    return await self._stream(request, answer, passed)
                whole = await answer.read()
                return web.Response(status=answer.status, headers=passed, body=whole)
        except _GONE as error:
            raise LostError(reached or not isinstance(error, aiohttp.ClientConnectorError)) from error

    async def _stream(
        self, request: web.Request, answer: aiohttp.ClientResponse, headers: "CIMultiDict[str]"
    ) -> web.StreamResponse:
        events = _events(answer)
        first = await anext(events, b"")
        response = web.StreamResponse(status=answer.status, headers=headers)
        await response.prepare(request)
        try:
            await response.write(first)
            while True:
                try:
                    event = await anext(events)
                except StopAsyncIteration:
                    break
                except _GONE:
                    self._metrics.cut()
                    await response.write(_cut_off())
                    break
                await response.write(event)
            await response.write_eof()
        except (ConnectionError, aiohttp.ClientConnectionResetError):
            pass  # the client has gone, and what it would have got has no reader
        return response

    async def _all_metrics(self, request: web.Request) -> web.StreamResponse:
        """Of all replicas and the front; as much as the replicas, which know about keys, let the client see."""
        texts: dict[str, str] = {}
        for address in list(self._replicas):
            try:
                answer = await self._forward(request, b"", Lease(address, ""))
            except LostError:
                self._replicas.pop(address, None)
                continue
            if not isinstance(answer, web.Response) or answer.status != 200:
                return answer
            texts[address] = str(answer.text)
        return web.Response(body=self._metrics.text(texts), headers={"content-type": CONTENT_TYPE_LATEST})


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """What has come, whole server-sent events alone: half a one would make the error after it unreadable."""
    begun = b""
    async for chunk in answer.content.iter_any():
        whole, separator, begun = (begun + chunk).rpartition(b"\n\n")
        if separator:
            yield whole + separator


def _cut_off() -> bytes:
    error = ApiError(500, "The replica ended in the middle of this reply; ask again.", code="replica_lost")
    logger.warning("a stream was cut off: its replica is gone")
    return f"data: {error.body()}\n\ndata: [DONE]\n\n".encode()
