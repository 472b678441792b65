"""The front as a Ray actor, with leases from a Ray Serve application.

run_endpoint(build("/releases/abc", "abc", "my-model"), "chat", "127.0.0.1", 8000, 600, Endpoint("my-model", "abc"))
"""

import asyncio
import hashlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
import uvloop
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from serve.access.api_keys import ApiKey, KeyRing
from serve.front.cors import Origins
from serve.front.leases import collect_seldom
from serve.front.server import Endpoint, Front, Lease, LostError
from serve.front.tls import Certificate
from serve.log import write_log
from serve.protocol.errors import ApiError, replicas_busy

logger = logging.getLogger(__name__)

_NAMESPACE = "rayconteur"
# Incremented when the front's code changes: the next deploy then replaces a running front.
_VERSION = 3
_KEYS_SECONDS = 5.0


@dataclass(frozen=True)
class FrontSettings:
    """Allowed CORS origins, the TLS certificate and key (files on the front's machine), and the API keys."""

    origins: tuple[str, ...] = ()
    tls: tuple[str, str] | None = None
    read_keys: Callable[[], list[ApiKey] | None] | None = None

    def digest(self) -> str:
        """A short hash that changes with the settings; for the function that reads keys, with its name."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


class FrontActor:
    """A Front with leases from the application `app_name`. It runs in a thread that starts with the actor, so it is
    back after Ray restarts the actor."""

    def __init__(self, app_name: str, host: str, port: int, max_seconds: float, settings: FrontSettings) -> None:
        write_log()
        self._app_name = app_name
        self._handle: Any = None
        self._loop = uvloop.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="front", daemon=True).start()
        self._front = Front(self._lease, max_seconds, Origins(settings.origins))
        self._problem = None
        try:
            certificate = Certificate(*settings.tls) if settings.tls else None
            self._done(self._front.listen(host, port, certificate.context if certificate else None))
        except OSError as error:
            self._problem = str(error)
            return
        if certificate is not None:
            self._following = asyncio.run_coroutine_threadsafe(certificate.follow(), self._loop)
        if settings.read_keys is not None:
            self._done(self._follow_keys(settings.read_keys))
        collect_seldom()

    def problem(self) -> str | None:
        """Why it cannot listen."""
        return self._problem

    def serve(self, endpoint: Endpoint) -> None:
        """Announce this endpoint on /health."""
        self._loop.call_soon_threadsafe(self._front.serve, endpoint)

    def close(self) -> None:
        """Refuse new connections; returns after the last reply."""
        self._done(self._front.close())

    async def _follow_keys(self, read: Callable[[], list[ApiKey] | None]) -> None:
        """Load the keys, retrying until they can be read; until then only replicas check keys."""
        try:
            self._front.keys = await asyncio.to_thread(KeyRing, read)
        except Exception as error:  # whatever a store's library raises
            logger.warning("API keys cannot be read by the front (%s: %s)", type(error).__name__, error)
            self._loop.call_later(_KEYS_SECONDS, lambda: self._loop.create_task(self._follow_keys(read)))

    def _done(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    @asynccontextmanager
    async def _lease(self, seconds: float) -> AsyncIterator[Lease]:
        try:
            if self._handle is None:
                self._handle = ray_serve.get_app_handle(self._app_name)
            responses = self._handle.options(stream=True).lease.remote()
            try:
                address, lease_id = await asyncio.wait_for(anext(responses), max(0.0, seconds))
                yield Lease(address, lease_id)
            except BaseException:
                responses.cancel()  # the request is gone, or may not have claimed it
                raise
        except TimeoutError:
            raise ApiError(504, "No replica was free for this request in time.", code="deadline_exceeded") from None
        except BackPressureError:
            raise replicas_busy() from None
        except DeploymentUnavailableError as error:
            raise ApiError(503, f"The endpoint could not be started: {error}.", code="unavailable") from error
        except (RayError, RayServeException, StopAsyncIteration) as error:
            raise LostError(may_have_died_of_it=False) from error


def run_endpoint(
    app: Any,
    name: str,
    host: str,
    port: int,
    max_seconds: float,
    endpoint: Endpoint,
    settings: FrontSettings | None = None,
) -> None:
    """Run a Ray Serve application of `serve.deployment.application.build`, or update the one of that name, and serve
    it at `host`:`port` of this node when it is ready.

    Raises OSError if the front cannot listen there, and RuntimeError or RayError if Ray Serve cannot start it.
    """
    front = open_front(name, host, port, max_seconds, settings)
    ray_serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
    ray_serve.run(app, name=name, route_prefix=None)
    ray.get(front.serve.remote(endpoint))


def startup_failures(name: str) -> str:
    """Why an application's deployments could not start, by Ray Serve's status: texts of tracebacks."""
    found = ray_serve.status().applications.get(name)
    return "\n".join(each.message for each in found.deployments.values() if each.message) if found else ""


def open_front(app_name: str, host: str, port: int, max_seconds: float, settings: FrontSettings | None = None) -> Any:
    """The actor of the front that serves the application at `host`:`port` of this node; raises OSError.

    A running front with the same settings is kept. One with other settings closes after its last reply, while the new
    one already listens. Ray restarts a front that dies.
    """
    settings = settings or FrontSettings()
    name = f"front {app_name} {host}:{port} {max_seconds:g} {settings.digest()} v{_VERSION}"
    fronts = _fronts()
    if name in fronts:
        return fronts[name]
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: Any = {
        "name": name, "namespace": _NAMESPACE, "lifetime": "detached", "num_cpus": 0, "max_restarts": -1,
        "max_concurrency": 4, "scheduling_strategy": here,
    }  # fmt: skip
    front = ray.remote(FrontActor).options(**options).remote(app_name, host, port, max_seconds, settings)
    if (problem := ray.get(front.problem.remote())) is not None:
        ray.kill(front)
        raise OSError(problem)
    for old in fronts.values():
        ray.get(old.close.remote())
        ray.kill(old)
    return front


def close_fronts() -> None:
    """End all fronts of this cluster, and the requests in progress."""
    for front in _fronts().values():
        ray.kill(front)


def _fronts() -> dict[str, Any]:
    found = {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == _NAMESPACE and actor["name"].startswith("front "):
            with suppress(ValueError):  # it has just ended
                found[actor["name"]] = ray.get_actor(actor["name"], _NAMESPACE)
    return found
