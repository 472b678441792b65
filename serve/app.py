"""The endpoint on Ray Serve: replicas that each hold one release, autoscaled by requests in progress.

from ray import serve as ray_serve
ray_serve.run(build("/releases/abc", "abc", "my-model"), name="chat", route_prefix="/")
"""

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any

import ray

# Named so that it is never taken for our own package `serve`.
from ray import serve as ray_serve
from ray.serve.config import DeploymentActorConfig

from serve.engines.base import DEFAULT_MAX_ACTIVE, Engine, Precision
from serve.keys import ApiKey, KeyRing
from serve.limits import Limits, Taken

logger = logging.getLogger(__name__)

# Requests that a replica answers at once beside the replies in it: refusals, health.
_NEVER_HELD_UP = 64
_LIMITS = "limits"
# A replica counts limits alone where the actor that counts for all has not answered after so long.
_SHARED_LIMITS_S = 1.0

ReadKeys = Callable[[], list[ApiKey] | None]


class ChatReplica:
    """One replica: an engine with the release, and the HTTP app over it."""

    def __init__(
        self,
        release_folder: str,
        release_key: str,
        model_name: str,
        engine: str,
        precision: Precision,
        max_new_tokens: int,
        max_waiting: int,
        max_seconds: float,
        max_active: int,
        num_threads: int,
        device: str,
        read_keys: ReadKeys | None = None,
    ) -> None:
        from models.base import load_tokenizer

        self._keys = KeyRing(read_keys) if read_keys else None
        self._limits = SharedLimits() if read_keys else None

        self._tokenizer = load_tokenizer(release_folder)
        self._engine = _load_engine(engine, release_folder, precision, max_active, num_threads, device)
        self._model_name = model_name
        self._release_key = release_key
        self._max_new_tokens = max_new_tokens
        self._max_waiting = max_waiting
        self._max_seconds = max_seconds

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Ray Serve in the replica, after the constructor."""
        from serve.api import create_app

        return create_app(
            self._engine,
            self._tokenizer,
            self._model_name,
            self._release_key,
            default_max_tokens=self._max_new_tokens,
            max_waiting=self._max_waiting,
            max_seconds=self._max_seconds,
            keys=self._keys,
            limits=self._limits,
        )

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises here."""
        if not self._engine.health().is_alive:
            raise RuntimeError("the engine has stopped")

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()


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
        except (ValueError, ray.exceptions.RayError, asyncio.TimeoutError) as error:
            self._actor = None
            logger.warning("limits are counted by this replica alone: %r", error)
            return await super().take(name, per_minute, amount)
        return taken

    async def give_back(self, name: str, per_minute: int, amount: int) -> None:
        await super().give_back(name, per_minute, amount)
        if self._actor is not None:
            self._actor.give_back.remote(name, per_minute, amount)  # the answer is out; nobody waits for this


def _load_engine(
    name: str, folder: str, precision: Precision, max_active: int, num_threads: int, device: str
) -> Engine:
    if name == "openvino":
        from serve.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(folder, precision, max_active, num_threads)
    from serve.engines.torch import TorchEngine

    return TorchEngine(folder, precision, max_active, num_threads, device)


def build(
    release_folder: str,
    release_key: str,
    model_name: str,
    *,
    min_replicas: int = 1,
    max_replicas: int = 1,
    target_ongoing_requests: float = 4,
    max_queued_requests: int = 64,
    num_cpus: float = 1,
    num_gpus: float = 0,
    engine: str = "torch",
    precision: Precision = "auto",
    max_new_tokens: int = 512,
    max_seconds: float = 600.0,
    read_keys: ReadKeys | None = None,
) -> Any:
    """The Ray Serve application (`ray.serve.Application`) that serves the release in `release_folder`.

    Every node that may hold a replica must see `release_folder`: a Hugging Face folder for the engine `torch`, an
    OpenVINO export for `openvino`. `num_cpus` and `num_gpus` are per replica;
    `max_new_tokens` limits replies to requests that set no limit. At each replica, beyond what its engine decodes at
    once, up to `max_queued_requests` wait, and later ones get 429; while there is no replica, as many wait in Ray
    Serve. A reply takes `max_seconds` at most. With `read_keys`, which is called in each replica, requests need a
    key, and one actor beside the replicas counts for all of them what each key has used.
    """
    max_active = max(DEFAULT_MAX_ACTIVE[engine], math.ceil(target_ongoing_requests))
    limits = DeploymentActorConfig(name=_LIMITS, actor_class=ray.remote(Limits), actor_options={"num_cpus": 0})
    deployment = ray_serve.deployment(
        ray_serve.ingress()(ChatReplica),
        name="ChatReplica",
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus},
        deployment_actors=[limits] if read_keys else [],
        # More than a replica lets in: it refuses the others itself, and they do not hold up /health.
        max_ongoing_requests=max_active + max_queued_requests + _NEVER_HELD_UP,
        max_queued_requests=max_queued_requests,
        autoscaling_config={
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": target_ongoing_requests,
        },
    )
    return deployment.bind(
        release_folder,
        release_key,
        model_name,
        engine=engine,
        precision=precision,
        max_new_tokens=max_new_tokens,
        max_waiting=max_queued_requests,
        max_seconds=max_seconds,
        max_active=max_active,
        num_threads=max(1, math.floor(num_cpus)),
        device="cuda" if num_gpus else "cpu",
        read_keys=read_keys,
    )
