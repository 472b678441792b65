"""Replicas that generate with vLLM: `ray.serve.llm` places and starts it, and this project's routes answer.

`serve.deployment.application.build` makes them for the engine `vllm`; needs the extra `llm`. Ray's `LLMServer`
reserves the GPUs, a bundle of a placement group for each, starts vLLM on them and checks its health; its own HTTP
routes are not used.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

# The alias keeps it apart from this project's package `serve`.
from ray import serve as ray_serve
from ray.serve.llm import LLMConfig, LLMServer

from models.base.load import resolve
from models.files import local_copy
from serve.api.settings import ApiSettings
from serve.deployment.replica import Answering, ReadKeys
from serve.deployment.settings import EngineSettings, ServedRelease
from serve.engines.base import DEFAULT_MAX_ACTIVE, Precision
from serve.engines.vllm import VLLMEngine
from serve.engines.vllm_settings import check_heads, engine_arguments, environment


class VLLMReplica(Answering, LLMServer):  # type: ignore[misc]
    """One replica: vLLM, started by Ray, with the release."""

    async def __init__(  # type: ignore[misc]
        self,
        config: LLMConfig,
        release: ServedRelease,
        api: ApiSettings,
        read_keys: ReadKeys | None,
    ) -> None:
        # Paths on this machine; the driver's paths do not exist here.
        folder, adapters = resolve(release.folder), _local(release.adapters)
        config.model_loading_config.model_source = str(folder)
        await LLMServer.__init__(self, config)
        # LLMServer's own methods take and return OpenAI's JSON; only its engine's client has tokens.
        engine = VLLMEngine(self.engine._engine_client, asyncio.get_running_loop(), adapters)
        self._answer(engine, folder, release, api, read_keys)

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises here."""
        await super().check_health()
        self._check()

    async def __del__(self) -> None:
        self._stop()
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
    """Ray's settings for replicas with `options` of `ray.serve.deployment`, except for their GPUs, `num_gpus`.

    Raises RayconteurError if vLLM could not serve the release.
    """
    check_heads(release_folder, num_gpus)
    num_cpus = options["ray_actor_options"]["num_cpus"]
    return LLMConfig(
        model_loading_config={"model_id": model_name, "model_source": release_folder},
        engine_kwargs=engine_arguments(precision, max_active, num_gpus, adapters or {}),
        # A bundle for each vLLM worker. On CPUs there is one worker, which uses the replica's.
        placement_group_config={"bundle_per_worker": {"GPU": min(1.0, num_gpus)} if num_gpus else {"CPU": 0.0}},
        deployment_config=options,
        runtime_env={"env_vars": environment(num_cpus, num_gpus)},
    )


def bind_vllm(
    release: ServedRelease,
    engine: EngineSettings,
    api: ApiSettings,
    read_keys: ReadKeys | None,
    options: dict[str, Any],
    actors: list[Any],
    max_active: int,
    num_gpus: float,
) -> Any:
    """The Ray Serve application of `serve.deployment.application.build`, with its options and actors."""
    config = llm_config(
        str(resolve(release.folder).resolve()),
        release.model_name,
        options,
        precision=engine.precision,
        max_active=max_active,
        num_gpus=num_gpus,
        adapters=_local(release.adapters),
    )
    deployment = ray_serve.deployment(
        VLLMReplica, deployment_actors=actors, **VLLMReplica.get_deployment_options(config)
    )
    return deployment.bind(config, release, api, read_keys)


def _local(adapters: Mapping[str, str]) -> dict[str, str]:
    return {name: str(local_copy(adapter)) for name, adapter in adapters.items()}
