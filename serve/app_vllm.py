"""Replicas that generate with vLLM: `ray.serve.llm` places and starts it, our routes answer.

application = bind_vllm("/releases/abc", "abc", "my-model", options, limits, num_gpus=2)

Needs the extra `llm`. Ray's `LLMServer` lays out the GPUs (one bundle of a placement group for each), starts vLLM on
them and asks after its health; its own HTTP routes are never built.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import ray

# Named so that it is never taken for our own package `serve`.
from ray import serve as ray_serve
from ray.serve.llm import LLMConfig, LLMServer

from serve.engines.base import DEFAULT_MAX_ACTIVE, Precision
from serve.engines.vllm import VLLMEngine
from serve.engines.vllm_settings import check_heads, engine_arguments, environment
from serve.leases import LeasedOnly, Leases, ReplicaServer


class VLLMReplica(LLMServer):  # type: ignore[misc]
    """One replica: vLLM with the release, and an HTTP server over it for those who hold a lease."""

    async def __init__(  # type: ignore[misc]
        self, config: LLMConfig, release_key: str, limits: dict[str, Any], adapters: dict[str, str]
    ) -> None:
        from models.base import load_tokenizer
        from serve.api import create_app

        await super().__init__(config)
        logging.getLogger("rayconteur").setLevel(logging.INFO)
        # LLMServer's own methods take and give OpenAI's JSON: to the tokens there is only its engine's client.
        self._tokens = VLLMEngine(self.engine._engine_client, asyncio.get_running_loop(), adapters)
        self._leases = Leases()
        loading = config.model_loading_config
        app = create_app(self._tokens, load_tokenizer(loading.model_source), loading.model_id, release_key, **limits)
        self._server = ReplicaServer(LeasedOnly(app, self._leases), ray.util.get_node_ip_address())

    async def lease(self) -> AsyncGenerator[tuple[str, str], None]:
        """As `serve.app.ChatReplica.lease`."""
        if not self._tokens.health().is_alive:
            raise RuntimeError("the engine has stopped")
        async with aclosing(self._leases.held()) as lease_ids:
            async for lease_id in lease_ids:
                yield self._server.address, lease_id

    async def __del__(self) -> None:
        if hasattr(self, "_server"):
            self._server.close()
        if hasattr(self, "_tokens"):
            self._tokens.close()
        await super().__del__()


def llm_config(
    release_folder: str,
    model_name: str,
    options: dict[str, Any],
    *,
    precision: Precision = "auto",
    max_active: int = DEFAULT_MAX_ACTIVE["vllm"],
    num_gpus: float = 0,
    adapters: dict[str, str] | None = None,
) -> LLMConfig:
    """Ray's settings for replicas with `options` of `ray.serve.deployment`, whose GPUs are in `num_gpus` alone.

    Raises ValueError for what vLLM could not serve.
    """
    check_heads(release_folder, num_gpus)
    num_cpus = options["ray_actor_options"]["num_cpus"]
    return LLMConfig(
        model_loading_config={"model_id": model_name, "model_source": release_folder},
        engine_kwargs=engine_arguments(precision, max_active, num_gpus, adapters or {}),
        # A bundle for each worker of vLLM. On CPUs there is one worker, on those of the replica.
        placement_group_config={"bundle_per_worker": {"GPU": min(1.0, num_gpus)} if num_gpus else {"CPU": 0.0}},
        deployment_config=options,
        runtime_env={"env_vars": environment(num_cpus, num_gpus)},
    )


def bind_vllm(
    release_folder: str,
    release_key: str,
    model_name: str,
    options: dict[str, Any],
    limits: dict[str, Any],
    adapters: dict[str, str] | None = None,
    **settings: Any,
) -> Any:
    """The Ray Serve application; `limits` are those of `serve.api.create_app`, the rest is for `llm_config`."""
    folder = str(Path(release_folder).resolve())
    config = llm_config(folder, model_name, options, adapters=adapters, **settings)
    deployment = ray_serve.deployment(VLLMReplica, **VLLMReplica.get_deployment_options(config))
    return deployment.bind(config, release_key, limits, adapters or {})
