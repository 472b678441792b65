"""The endpoint on Ray Serve: replicas that each hold one release, autoscaled. serve/deployment/front_actor.py is
before them.

ray_serve.run(build("/releases/abc", "abc", "my-model"), name="chat", route_prefix=None)
"""

import math
from collections.abc import Mapping
from typing import Any

import ray

# Named so that it is never taken for our own package `serve`.
from ray import serve as ray_serve
from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingContext, AutoscalingPolicy, DeploymentActorConfig

from serve.access.rate_limits import Limits
from serve.deployment.chat_replica import ChatReplica
from serve.deployment.replica import LIMITS_ACTOR, ReadKeys
from serve.engines.base import DEFAULT_MAX_ACTIVE, DEFAULT_MAX_STALL_SECONDS, Precision

# Share of the replicas' caches in use above which another replica is wanted.
_FULL_CACHE = 0.8


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
    limits = DeploymentActorConfig(name=LIMITS_ACTOR, actor_class=ray.remote(Limits), actor_options={"num_cpus": 0})
    actors = [limits] if read_keys else []
    bounds = {"default_max_tokens": max_new_tokens, "max_waiting": max_queued_requests, "max_seconds": max_seconds}
    said = (release, release_key, model_name, bounds, read_keys, discriminator)
    shared: dict[str, Any] = {"precision": precision, "max_active": max_active, "adapters": dict(adapters or {})}
    if engine == "vllm":
        from serve.deployment.vllm_replica import bind_vllm

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
