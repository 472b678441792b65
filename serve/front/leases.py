"""A replica's HTTP server, which answers requests with a lease.

The front gets a lease from Ray Serve for each request (`Answering.lease` in serve/deployment/replica.py), so that Ray
counts the replica's requests, and then connects to the replica directly: a reply's tokens do not pass through Ray. A
lease id is 128 random bits and valid for one request; without one only GET is answered, which reveals nothing secret.
"""

import asyncio
import gc
import secrets
import threading
import time
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from typing import Any

import uvicorn
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.protocol.transport import LEASE

# After this time the front is gone, or its request never arrived.
_CLAIM_SECONDS = 20.0


class Leases:
    """The open leases; created in one asyncio loop, claimed and returned in the server's."""

    def __init__(self) -> None:
        self._open: dict[str, _Lease] = {}

    async def held(self) -> AsyncGenerator[str, None]:
        """The id of a new lease; ends when its request has been answered, or did not arrive."""
        lease_id = secrets.token_hex(16)
        lease = self._open[lease_id] = _Lease()
        try:
            yield lease_id
            await lease.until_done()
        finally:
            self._open.pop(lease_id, None)

    def claim(self, lease_id: str) -> "_Lease | None":
        """The lease with this id, if it is open and not claimed."""
        lease = self._open.get(lease_id)
        if lease is None or lease.is_claimed:
            return None
        lease.is_claimed = True
        return lease


class _Lease:
    def __init__(self) -> None:
        self.is_claimed = False
        self._loop = asyncio.get_running_loop()
        self._done = asyncio.Event()

    async def until_done(self) -> None:
        claim = self._loop.call_later(_CLAIM_SECONDS, self._give_up)
        try:
            await self._done.wait()
        finally:
            claim.cancel()

    def end(self) -> None:
        """Called from the server's loop."""
        self._loop.call_soon_threadsafe(self._done.set)

    def _give_up(self) -> None:
        if not self.is_claimed:
            self._done.set()


class LeasedOnly:
    """ASGI middleware that only lets requests with a lease, and GET, pass."""

    def __init__(self, app: ASGIApp, leases: Leases) -> None:
        self._app = app
        self._leases = leases

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        lease_id = Headers(scope=scope).get(LEASE) if scope["type"] == "http" else None
        lease = self._leases.claim(lease_id) if lease_id else None
        if lease is None and scope["type"] == "http" and scope["method"] != "GET":
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"no lease"})
            return
        try:
            await self._app(scope, receive, send)
        finally:
            if lease is not None:
                lease.end()


def collect_seldom() -> None:
    """Collect garbage rarely, in a process that has loaded everything: scanning it would cost time at every token."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


class ReplicaServer:
    """uvicorn in its own thread, on a free port of `host`."""

    def __init__(self, app: Any, host: str) -> None:
        config = uvicorn.Config(
            app, host=host, port=0, log_level="warning", lifespan="off", timeout_keep_alive=3600, access_log=False
        )
        self._server = uvicorn.Server(config)
        collect_seldom()
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError(f"the replica's HTTP server cannot listen on {host}")
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def answers(self) -> "Future[None]":
        """A future that is done when the server's loop runs it."""
        answer: Future[None] = Future()
        self._server.servers[0].get_loop().call_soon_threadsafe(answer.set_result, None)
        return answer

    def close(self) -> None:
        """Stop the server, and close open connections."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
