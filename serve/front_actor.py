"""The front as a Ray actor: its leases come from a Ray Serve application.

run_endpoint(build("/releases/abc", "abc", "my-model"), "chat", "127.0.0.1", 8000, 600, Endpoint("my-model", "abc"))
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import ray
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from serve.errors import ApiError
from serve.front import Endpoint, Front, Lease, LostError

_NAMESPACE = "rayconteur"
# Raised when a front's code changes: an older one is exchanged at the next deploy.
_VERSION = 1


class FrontActor:
    """A Front whose leases come from the application `app_name`; in a thread, so that it is there again by itself
    when Ray has started this actor anew."""

    def __init__(self, app_name: str, host: str, port: int, max_seconds: float) -> None:
        self._app_name = app_name
        self._handle: Any = None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="front", daemon=True).start()
        self._front = Front(self._lease, max_seconds)
        self._problem = None
        try:
            self._done(self._front.listen(host, port))
        except OSError as error:
            self._problem = str(error)

    def problem(self) -> str | None:
        """Why it cannot listen."""
        return self._problem

    def serve(self, endpoint: Endpoint) -> None:
        """Say so of the endpoint from now on."""
        self._loop.call_soon_threadsafe(self._front.serve, endpoint)

    def close(self) -> None:
        """Take no new connections; ends with the last reply."""
        self._done(self._front.close())

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
                responses.cancel()  # nobody waits for it any more, or it may not have been claimed
                raise
        except TimeoutError:
            raise ApiError(504, "No replica had room for this request in time.", code="deadline_exceeded") from None
        except BackPressureError:
            raise ApiError(
                429,
                "All replicas are busy, and as many requests wait as may; try again.",
                code="queue_full",
                headers={"Retry-After": "1"},
            ) from None
        except DeploymentUnavailableError as error:
            raise ApiError(503, f"The endpoint could not be started: {error}.", code="unavailable") from error
        except (RayError, RayServeException, StopAsyncIteration) as error:
            raise LostError(may_have_died_of_it=False) from error


def run_endpoint(app: Any, name: str, host: str, port: int, max_seconds: float, endpoint: Endpoint) -> None:
    """Run a Ray Serve application of `serve.app.build`, or update the one of that name, and have it answer at
    `host`:`port` of this node when it is ready.

    Raises OSError where nothing can listen there, and RuntimeError or RayError where Ray Serve could not start it.
    """
    front = open_front(name, host, port, max_seconds)
    ray_serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
    ray_serve.run(app, name=name, route_prefix=None)
    ray.get(front.serve.remote(endpoint))


def open_front(app_name: str, host: str, port: int, max_seconds: float) -> Any:
    """The actor that has the application answer at `host`:`port` of this node; raises OSError.

    A front that is there goes on. One with other settings is closed when its replies have ended, the new one
    listening beside it. Ray starts a front again if it dies.
    """
    name = f"front {app_name} {host}:{port} {max_seconds:g} v{_VERSION}"
    fronts = _fronts()
    if name in fronts:
        return fronts[name]
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: Any = {
        "name": name, "namespace": _NAMESPACE, "lifetime": "detached", "num_cpus": 0, "max_restarts": -1,
        "max_concurrency": 4, "scheduling_strategy": here,
    }  # fmt: skip
    front = ray.remote(FrontActor).options(**options).remote(app_name, host, port, max_seconds)
    if (problem := ray.get(front.problem.remote())) is not None:
        ray.kill(front)
        raise OSError(problem)
    for old in fronts.values():
        ray.get(old.close.remote())
        ray.kill(old)
    return front


def close_fronts() -> None:
    """End the fronts of this cluster, and what they are answering."""
    for front in _fronts().values():
        ray.kill(front)


def _fronts() -> dict[str, Any]:
    found = {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == _NAMESPACE and actor["name"].startswith("front "):
            with suppress(ValueError):  # it has just ended
                found[actor["name"]] = ray.get_actor(actor["name"], _NAMESPACE)
    return found
