"""The endpoint on Ray Serve: replicas that each hold one release, autoscaled. serve/front_actor.py is before them.

ray_serve.run(build("/releases/abc", "abc", "my-model"), name="chat", route_prefix=None)
"""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import ray

# Named so that it is never taken for our own package `serve`.
from ray import serve as ray_serve
from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingContext, AutoscalingPolicy, DeploymentActorConfig

from models.base.load import resolve
from models.files import local_copy
from serve.engines.base import DEFAULT_MAX_ACTIVE, DEFAULT_MAX_STALL_SECONDS, Engine, Precision
from serve.keys import ApiKey, KeyRing
from serve.leases import LeasedOnly, Leases, ReplicaServer
from serve.limits import Limits, Taken
from serve.observe import REQUEST_ID, write_log

logger = logging.getLogger(__name__)

_LIMITS = "limits"
# Share of the replicas' caches in use above which another replica is wanted.
_FULL_CACHE = 0.8
# A replica counts limits alone where the actor that counts for all has not answered after so long.
_SHARED_LIMITS_S = 1.0

ReadKeys = Callable[[], list[ApiKey] | None]


class Answering:
    """What every replica has: an HTTP server over its engine, for those who hold a lease."""

    def _answer(
        self,
        engine: Engine,
        release_folder: Path,
        release_key: str,
        model_name: str,
        bounds: dict[str, Any],
        read_keys: ReadKeys | None,
        discriminator: str | None,
    ) -> None:
        from models.base.load import load_tokenizer
        from serve.api import create_app
        from serve.reranker import Reranker

        write_log()
        self._engine = engine
        self._leases = Leases()
        self._app = create_app(
            engine,
            load_tokenizer(release_folder),
            model_name,
            release_key,
            keys=KeyRing(read_keys) if read_keys else None,
            limits=SharedLimits() if read_keys else None,
            reranker=Reranker(local_copy(discriminator)) if discriminator else None,
            **bounds,
        )
        self._server = ReplicaServer(LeasedOnly(self._app, self._leases), ray.util.get_node_ip_address())
        self._app.state.watch.add("the HTTP server", self._server.answers)

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Ray Serve behind its own proxy, which puts the request's id into the answer itself."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            async def send_without_id(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [pair for pair in message["headers"] if pair[0] != REQUEST_ID.encode()]
                await send(message)

            await self._app(scope, receive, send_without_id)

        return app

    async def lease(self) -> AsyncGenerator[tuple[str, str], None]:
        """Where to send one request and the lease for it; ends when it is answered. Ray counts it until then."""
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


class ChatReplica(Answering):
    """One replica that holds its engine itself."""

    def __init__(
        self,
        release: str,
        release_key: str,
        model_name: str,
        bounds: dict[str, Any],
        read_keys: ReadKeys | None,
        discriminator: str | None,
        adapters: Mapping[str, str],
        **engine: Any,
    ) -> None:
        """`engine` is what `_load_engine` takes besides folders."""
        folder = resolve(release)
        loaded = _load_engine(
            folder=folder, adapters={name: local_copy(adapter) for name, adapter in adapters.items()}, **engine
        )
        self._answer(loaded, folder, release_key, model_name, bounds, read_keys, discriminator)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray Serve, for `replicas_for`."""
        return {"cache_used": self._engine.health().cache_used}

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises here."""
        self._check()

    def __del__(self) -> None:
        self._stop()


class SharedLimits(Limits):
    """Counted for all replicas by one actor, which Ray Serve keeps alive; by each for itself while that is away.

    A new actor begins with a minute's worth for every key.
    """

    def __init__(self) -> None:
        super().__init__()
        self._actor: Any = None

    async def take(self, name: str, per_minute: int, amount: int) -> Taken:
        try:
            self._actor = self._actor or ray_serve.get_deployment_actor(_LIMITS)
            asked = self._actor.take.remote(name, per_minute, amount)
            taken: Taken = await asyncio.wait_for(asked, _SHARED_LIMITS_S)
        except (TimeoutError, ValueError, ray.exceptions.RayError) as error:
            self._actor = None
            logger.warning("limits are counted by this replica alone: %r", error)
            return await super().take(name, per_minute, amount)
        return taken

    async def give_back(self, name: str, per_minute: int, amount: int) -> None:
        await super().give_back(name, per_minute, amount)
        if self._actor is not None:
            self._actor.give_back.remote(name, per_minute, amount)  # the answer is out; nobody waits for this


def _load_engine(
    name: str,
    folder: Path,
    precision: Precision,
    max_active: int,
    num_threads: int,
    device: str,
    adapters: Mapping[str, Path],
    max_stall_seconds: float,
    beside: bool,
) -> Engine:
    if name == "openvino":
        from serve.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(folder, precision, max_active, num_threads, max_stall_seconds, beside)
    from serve.engines.torch import TorchEngine

    return TorchEngine(folder, precision, max_active, num_threads, device, adapters, max_stall_seconds)


def replicas_for(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """By the requests in progress, as Ray Serve does by itself, and by their tokens: long ones fill the caches."""
    wanted, state = replica_queue_length_autoscaling_policy(context)
    used = (context.aggregated_metrics or {}).get("cache_used", {})
    return max(wanted, sum(used.values()) / _FULL_CACHE), state


def build(
    release: str,
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
    beside: bool = True,
    surge: bool = False,
    read_keys: ReadKeys | None = None,
    discriminator: str | None = None,
    behind_proxy: bool = False,
) -> Any:
    """The Ray Serve application (`ray.serve.Application`) that serves a release.

    `release` is a folder or the URI of one: an OpenVINO export for the engine `openvino`, else a Hugging Face model,
    by any name that `models.base.load.resolve` knows. Each replica opens it, and the folders or URIs of `adapters`,
    on its own machine. `num_cpus` and `num_gpus` are per replica;
    `max_new_tokens` limits replies to requests that set no limit. Up to `max_queued_requests` wait for a replica with
    room, and later ones get 429. A reply takes `max_seconds` at most. With `surge` an update starts new replicas
    before it stops old ones, which takes room for one more. With `read_keys`, called in each replica, requests need a
    key, and one actor beside the replicas counts for all of them what each key has used. With the folder or
    URI of a `discriminator` requests may ask for the best of several replies. `beside`: the engine `openvino` decodes
    what its pipeline cannot follow beside it, else it refuses that. `behind_proxy`: requests
    come through Ray Serve's proxies, with their limits, not by leases. Raises ValueError for what the engine could
    not serve.
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
            "policy": AutoscalingPolicy(policy_function=replicas_for),
        },
    }
    limits = DeploymentActorConfig(name=_LIMITS, actor_class=ray.remote(Limits), actor_options={"num_cpus": 0})
    actors = [limits] if read_keys else []
    bounds = {"default_max_tokens": max_new_tokens, "max_waiting": max_queued_requests, "max_seconds": max_seconds}
    said = (release, release_key, model_name, bounds, read_keys, discriminator)
    shared: dict[str, Any] = {"precision": precision, "max_active": max_active, "adapters": dict(adapters or {})}
    if engine == "vllm":
        from serve.app_vllm import bind_vllm

        return bind_vllm(*said, options, actors, num_gpus=num_gpus, **shared)
    options["ray_actor_options"]["num_gpus"] = num_gpus
    replica = ray_serve.ingress(None)(ChatReplica) if behind_proxy else ChatReplica
    return ray_serve.deployment(replica, deployment_actors=actors, **options).bind(
        *said,
        name=engine,
        num_threads=max(1, math.floor(num_cpus)),
        device="cuda" if num_gpus else "cpu",
        max_stall_seconds=max_stall_seconds,
        beside=beside,
        **shared,
    )
