"""The common part of all replicas: HTTP server, API keys and rate limits."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import ray
from ray import serve as ray_serve

from models.files import local_copy
from serve.access.api_keys import ApiKey, KeyRing
from serve.access.rate_limits import Limits, Taken
from serve.api.settings import ApiSettings
from serve.deployment.settings import ServedRelease
from serve.engines.base import Engine
from serve.front.leases import LeasedOnly, Leases, ReplicaServer
from serve.log import write_log
from serve.protocol.transport import REQUEST_ID

logger = logging.getLogger(__name__)

LIMITS_ACTOR = "limits"

# A replica counts limits alone if the actor that counts for all does not answer within this time.
_SHARED_LIMITS_S = 1.0

ReadKeys = Callable[[], list[ApiKey] | None]


class Answering:
    """The base class of replicas: an HTTP server over the engine, for requests with a lease."""

    def _answer(
        self, engine: Engine, folder: Path, release: ServedRelease, api: ApiSettings, read_keys: ReadKeys | None
    ) -> None:
        """Start the server; `folder` is the release's, on this machine."""
        from models.base.load import load_tokenizer
        from serve.api.routes import create_app
        from serve.replies.reranker import Reranker

        write_log()
        self._engine = engine
        self._leases = Leases()
        self._app = create_app(
            engine,
            load_tokenizer(folder),
            release.model_name,
            release.key,
            api,
            keys=KeyRing(read_keys) if read_keys else None,
            limits=SharedLimits() if read_keys else None,
            reranker=Reranker(local_copy(release.discriminator)) if release.discriminator else None,
            knowledge=release.knowledge.load() if release.knowledge else None,
        )
        self._server = ReplicaServer(LeasedOnly(self._app, self._leases), ray.util.get_node_ip_address())
        self._app.state.watch.add("the HTTP server", self._server.answers)

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Ray Serve behind its own proxy, which adds the request id to the answer itself."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            async def send_without_id(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [pair for pair in message["headers"] if pair[0] != REQUEST_ID.encode()]
                await send(message)

            await self._app(scope, receive, send_without_id)

        return app

    async def lease(self) -> AsyncGenerator[tuple[str, str], None]:
        """The address for one request, and its lease; ends when the request is answered. Until then Ray counts it."""
        self._check()
        async with aclosing(self._leases.held()) as lease_ids:
            async for lease_id in lease_ids:
                yield self._server.address, lease_id

    def _check(self) -> None:
        if (problem := self._app.state.watch.problem()) is not None:
            raise RuntimeError(problem)

    def _stop(self) -> None:
        if hasattr(self, "_server"):
            self._server.close()
        if hasattr(self, "_engine"):
            self._engine.close()
        if hasattr(self, "_app"):
            self._app.state.watch.close()


class SharedLimits(Limits):
    """Limits counted for all replicas by one actor, which Ray Serve restarts; without it, each replica counts alone.

    A restarted actor has full buckets for all keys.
    """

    def __init__(self) -> None:
        super().__init__()
        self._actor: Any = None

    async def take(self, name: str, per_minute: int, amount: int) -> Taken:
        try:
            self._actor = self._actor or ray_serve.get_deployment_actor(LIMITS_ACTOR)
            asked = self._actor.take.remote(name, per_minute, amount)
            taken: Taken = await asyncio.wait_for(asked, _SHARED_LIMITS_S)
        except (TimeoutError, ValueError, ray.exceptions.RayError) as error:
            self._actor = None
            logger.warning("this replica counts rate limits alone: %r", error)
            return await super().take(name, per_minute, amount)
        return taken

    async def give_back(self, name: str, per_minute: int, amount: int) -> None:
        await super().give_back(name, per_minute, amount)
        if self._actor is not None:
            self._actor.give_back.remote(name, per_minute, amount)  # the answer has been sent; nothing waits for this
