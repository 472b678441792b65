"""The Ray Serve application of the endpoint: autoscaled replicas that each serve one release, behind the front
(serve/deployment/front_actor.py).

release = ServedRelease("/releases/abc", "abc", "my-model")
ray_serve.run(build(release), name="chat", route_prefix=None)
"""

import math
from typing import Any

import ray

# The alias keeps it apart from this project's package `serve`.
from ray import serve as ray_serve
from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingContext, AutoscalingPolicy, DeploymentActorConfig

from serve.access.rate_limits import Limits
from serve.api.settings import ApiSettings
from serve.deployment.chat_replica import ChatReplica
from serve.deployment.replica import LIMITS_ACTOR, ReadKeys
from serve.deployment.settings import EngineSettings, Scaling, ServedRelease
from serve.engines.base import DEFAULT_MAX_ACTIVE

# Another replica starts when more than this share of the replicas' caches is in use.
_FULL_CACHE = 0.8


def replicas_for(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """The number of replicas by requests in progress, as Ray Serve's default, and by their tokens,
    which fill caches.
    """
    wanted, state = replica_queue_length_autoscaling_policy(context)
    used = (context.aggregated_metrics or {}).get("cache_used", {})
    return max(wanted, sum(used.values()) / _FULL_CACHE), state


def build(
    release: ServedRelease,
    engine: EngineSettings | None = None,
    scaling: Scaling | None = None,
    api: ApiSettings | None = None,
    *,
    read_keys: ReadKeys | None = None,
    behind_proxy: bool = False,
) -> Any:
    """The Ray Serve application (`ray.serve.Application`) that serves a release.

    With `read_keys`, called in each replica, requests need a key, and one actor counts the use of each key for all
    replicas. `behind_proxy`: requests come through Ray Serve's proxies, with their limits, not by leases. Raises
    RayconteurError if the engine could not serve the release.
    """
    engine, scaling, api = engine or EngineSettings(), scaling or Scaling(), api or ApiSettings()
    max_active = max(DEFAULT_MAX_ACTIVE[engine.name], math.ceil(scaling.target_ongoing_requests))
    options = _deployment_options(scaling, api, max_active)
    limits = DeploymentActorConfig(name=LIMITS_ACTOR, actor_class=ray.remote(Limits), actor_options={"num_cpus": 0})
    actors = [limits] if read_keys else []
    if engine.name == "vllm":
        from serve.deployment.vllm_replica import bind_vllm

        return bind_vllm(release, engine, api, read_keys, options, actors, max_active, scaling.num_gpus)
    options["ray_actor_options"]["num_gpus"] = scaling.num_gpus
    replica = ray_serve.ingress(None)(ChatReplica) if behind_proxy else ChatReplica
    return ray_serve.deployment(replica, deployment_actors=actors, **options).bind(
        release,
        engine,
        api,
        read_keys,
        max_active,
        num_threads=max(1, math.floor(scaling.num_cpus)),
        device="cuda" if scaling.num_gpus else "cpu",
    )


def _deployment_options(scaling: Scaling, api: ApiSettings, max_active: int) -> dict[str, Any]:
    """Arguments of `ray.serve.deployment`."""
    return {
        "name": "ChatReplica",
        "ray_actor_options": {"num_cpus": scaling.num_cpus},
        # A few more than the engine decodes at once, so that a free place is filled immediately.
        "max_ongoing_requests": max_active + max(2, max_active // 8),
        "max_queued_requests": api.max_queued_requests,
        "health_check_period_s": 2.0,
        # Replies in progress can finish.
        "graceful_shutdown_timeout_s": api.max_seconds + 10.0,
        "graceful_shutdown_wait_loop_s": 0.5,
        "max_surge_percent": 100 if scaling.surge else 0,
        "autoscaling_config": {
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_ongoing_requests,
            "upscale_delay_s": scaling.upscale_delay_seconds,
            "downscale_delay_s": scaling.downscale_delay_seconds,
            # A longer average would react to load that is gone.
            "look_back_period_s": 5.0,
            "metrics_interval_s": 1.0,
            "policy": AutoscalingPolicy(policy_function=replicas_for),
        },
    }
