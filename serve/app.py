"""The endpoint on Ray Serve: replicas that each hold one release, autoscaled, behind one front.

ray_serve.run(build("/releases/abc", "abc", "my-model"), name="chat", route_prefix=None)
front = open_front("chat", "127.0.0.1", 8000, max_seconds=600)
"""

import asyncio
import logging
import math
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import ray

# Named so that it is never taken for our own package `serve`.
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from serve.engines.base import DEFAULT_MAX_ACTIVE, DEFAULT_MAX_STALL_SECONDS, Engine, Precision
from serve.errors import ApiError
from serve.front import Endpoint, Front, Lease, LostError
from serve.leases import LeasedOnly, Leases, ReplicaServer

_NAMESPACE = "rayconteur"
# Raised when a front's code changes: an older one is exchanged at the next deploy.
_FRONT_VERSION = 1


class ChatReplica:
    """One replica: an engine with the release, and an HTTP server over it for those who hold a lease."""

    def __init__(
        self,
        release_folder: str,
        release_key: str,
        model_name: str,
        limits: dict[str, Any],
        engine: str,
        precision: Precision,
        max_active: int,
        num_threads: int,
        device: str,
        adapters: Mapping[str, str],
        max_stall_seconds: float,
    ) -> None:
        from models.base import load_tokenizer
        from serve.api import create_app

        logging.getLogger("rayconteur").setLevel(logging.INFO)
        self._engine = _load_engine(
            engine, release_folder, precision, max_active, num_threads, device, adapters, max_stall_seconds
        )
        self._leases = Leases()
        app = create_app(self._engine, load_tokenizer(release_folder), model_name, release_key, **limits)
        self._server = ReplicaServer(LeasedOnly(app, self._leases), ray.util.get_node_ip_address())

    async def lease(self) -> AsyncGenerator[tuple[str, str], None]:
        """Where to send one request and the lease for it; ends when it is answered. Ray counts it until then."""
        self.check_health()
        async with aclosing(self._leases.held()) as lease_ids:
            async for lease_id in lease_ids:
                yield self._server.address, lease_id

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises here."""
        if not self._engine.health().is_alive:
            raise RuntimeError("the engine has stopped")

    def __del__(self) -> None:
        if hasattr(self, "_server"):
            self._server.close()
        if hasattr(self, "_engine"):
            self._engine.close()


def _load_engine(
    name: str,
    folder: str,
    precision: Precision,
    max_active: int,
    num_threads: int,
    device: str,
    adapters: Mapping[str, str],
    max_stall_seconds: float,
) -> Engine:
    if name == "openvino":
        from serve.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(folder, precision, max_active, num_threads, max_stall_seconds)
    from serve.engines.torch import TorchEngine

    return TorchEngine(folder, precision, max_active, num_threads, device, adapters, max_stall_seconds)


def build(
    release_folder: str,
    release_key: str,
    model_name: str,
    *,
    min_replicas: int = 1,
    max_replicas: int = 1,
    target_ongoing_requests: float = 4,
    upscale_delay_seconds: float = 3.0,
    downscale_delay_seconds: float = 300.0,
    max_queued_requests: int = 64,
    num_cpus: float = 1,
    num_gpus: float = 0,
    engine: str = "torch",
    precision: Precision = "auto",
    max_new_tokens: int = 512,
    max_seconds: float = 600.0,
    adapters: Mapping[str, str] | None = None,
    max_stall_seconds: float = DEFAULT_MAX_STALL_SECONDS,
    surge: bool = False,
) -> Any:
    """The Ray Serve application (`ray.serve.Application`) that serves the release in `release_folder`.

    Every node that may hold a replica must see `release_folder`: an OpenVINO export for the engine `openvino`, else a
    Hugging Face folder; and the folders of `adapters`. `num_cpus` and `num_gpus` are per replica;
    `max_new_tokens` limits replies to requests that set no limit. Up to `max_queued_requests` wait for a replica with
    room, and later ones get 429. A reply takes `max_seconds` at most. With `surge` an update starts new replicas
    before it stops old ones, which takes room for one more. Raises ValueError for what the engine could not serve.
    """
    max_active = max(DEFAULT_MAX_ACTIVE[engine], math.ceil(target_ongoing_requests))
    options: dict[str, Any] = {
        "name": "ChatReplica",
        "ray_actor_options": {"num_cpus": num_cpus},
        # A few more than are decoded at once: the next ones are there when a place is free.
        "max_ongoing_requests": max_active + max(2, max_active // 8),
        "max_queued_requests": max_queued_requests,
        "health_check_period_s": 2.0,
        # Replies that are under way come to their end.
        "graceful_shutdown_timeout_s": max_seconds + 10.0,
        "graceful_shutdown_wait_loop_s": 0.5,
        "max_surge_percent": 100 if surge else 0,
        "autoscaling_config": {
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": target_ongoing_requests,
            "upscale_delay_s": upscale_delay_seconds,
            "downscale_delay_s": downscale_delay_seconds,
            # Of the last seconds: the average over more would answer a load that has gone.
            "look_back_period_s": 5.0,
            "metrics_interval_s": 1.0,
        },
    }
    limits = {"default_max_tokens": max_new_tokens, "max_waiting": max_queued_requests, "max_seconds": max_seconds}
    shared: dict[str, Any] = {"precision": precision, "max_active": max_active, "adapters": dict(adapters or {})}
    if engine == "vllm":
        from serve.app_vllm import bind_vllm

        return bind_vllm(release_folder, release_key, model_name, options, limits, num_gpus=num_gpus, **shared)
    options["ray_actor_options"]["num_gpus"] = num_gpus
    return ray_serve.deployment(ChatReplica, **options).bind(
        release_folder,
        release_key,
        model_name,
        limits,
        engine=engine,
        num_threads=max(1, math.floor(num_cpus)),
        device="cuda" if num_gpus else "cpu",
        max_stall_seconds=max_stall_seconds,
        **shared,
    )


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
        responses = None
        try:
            if self._handle is None:
                self._handle = ray_serve.get_app_handle(self._app_name)
            responses = self._handle.options(stream=True).lease.remote()
            address, lease_id = await asyncio.wait_for(anext(responses), max(0.0, seconds))
        except asyncio.TimeoutError:
            responses.cancel()  # type: ignore[union-attr]
            raise ApiError(504, "No replica had room for this request in time.", code="deadline_exceeded") from None
        except asyncio.CancelledError:
            if responses is not None:
                responses.cancel()
            raise
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
        try:
            yield Lease(address, lease_id)
        except BaseException:
            responses.cancel()  # it may not have been claimed
            raise


def open_front(app_name: str, host: str, port: int, max_seconds: float) -> Any:
    """The actor that has the application answer at `host`:`port` of this node; raises OSError.

    A front that is there goes on. One with other settings is closed when its replies have ended, the new one
    listening beside it. Ray starts a front again if it dies.
    """
    name = f"front {app_name} {host}:{port} {max_seconds:g} v{_FRONT_VERSION}"
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
