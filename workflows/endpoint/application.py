"""Build the Ray Serve application of a pipeline's release."""

import importlib.util
from collections.abc import Callable
from typing import Any

from serve.access.api_keys import ApiKey
from workflows.endpoint.api_keys import KeyFile
from workflows.endpoint.knowledge import served_knowledge
from workflows.figures import OptimizeFigures, Part
from workflows.spec import PipelineSpec, ServeSpec
from workflows.spec.serve import SAMPLING, SamplingSpec
from workflows.stage import DISCRIMINATOR, StageFailed
from workflows.store import Artifact, Store

# The folder of a release that each engine loads.
_FOLDERS = {"openvino": "openvino", "torch": "model", "vllm": "model"}

_VLLM_MISSING = "vLLM is not installed here; run: pip install -c constraints.txt 'rayconteur[llm]'"


def model_name(spec: PipelineSpec) -> str:
    """The name that clients send as `model`."""
    return spec.serve.model_name or spec.name


def chosen_engine(serve: ServeSpec, openvino: Part) -> tuple[str, str]:
    """The engine to use for a release with or without an OpenVINO export, and why; raises StageFailed for an engine
    that is not installed.
    """
    has_vllm = _has_vllm()
    if serve.engine == "vllm" and not has_vllm:
        raise StageFailed(f"serve.engine: {_VLLM_MISSING}, or use torch")
    if serve.engine != "auto":
        return serve.engine, "set by serve.engine"
    if serve.gpus_per_replica:
        return ("vllm", "replicas have GPUs") if has_vllm else ("torch", f"replicas have GPUs, but {_VLLM_MISSING}")
    if serve.adapters:
        return "torch", "it computes serve.adapters in one batch"
    if openvino.is_there:
        return "openvino", "on CPUs, and the release has an OpenVINO export"
    return "torch", f"the release has no OpenVINO export: {openvino.why_not}"


def _has_vllm() -> bool:
    found = importlib.util.find_spec("vllm")
    return found is not None and found.origin is not None  # a plain folder named vllm is found too, without origin


def application(
    spec: PipelineSpec,
    store: Store,
    release: Artifact,
    engine: str,
    surge: bool = False,
    behind_proxy: bool = False,
) -> Any:
    """The Ray Serve application of a release; `surge` as in `Scaling`, `behind_proxy` as in `build`."""
    from serve.api.settings import ApiSettings, SamplingDefaults
    from serve.deployment.application import build
    from serve.deployment.settings import EngineSettings, Scaling, ServedRelease

    serve = spec.serve
    discriminator = OptimizeFigures.from_json(release.figures).discriminator
    has_discriminator = discriminator is not None and discriminator.is_there
    folder, adapters = _served_models(spec, store, release, engine)
    return build(
        ServedRelease(
            folder,
            release.key,
            model_name(spec),
            adapters,
            store.address("optimize", release.key, DISCRIMINATOR) if has_discriminator else None,
            served_knowledge(serve, store),
        ),
        EngineSettings(engine, serve.precision, serve.max_stall_ms / 1000, serve.beside),
        Scaling(
            min_replicas=serve.min_replicas,
            max_replicas=serve.max_replicas,
            target_ongoing_requests=serve.target_ongoing_requests,
            upscale_delay_seconds=serve.upscale_delay_s,
            downscale_delay_seconds=serve.downscale_delay_s,
            num_cpus=serve.cpus_per_replica,
            num_gpus=serve.gpus_per_replica,
            surge=surge,
        ),
        ApiSettings(
            serve.max_new_tokens,
            serve.max_queued_requests,
            serve.max_reply_seconds,
            sampling=SamplingDefaults(**serve.sampling.model_dump()),
        ),
        read_keys=key_reader(spec, store),
        behind_proxy=behind_proxy,
    )


def with_winner(spec: PipelineSpec, search: Artifact | None) -> PipelineSpec:
    """The pipeline with the sampling settings that won a search over `serve.sampling`, if it has one."""
    figures = {} if search is None else search.figures
    found = {name.removeprefix(SAMPLING): value for name, value in figures.items() if name.startswith(SAMPLING)}
    if not found:
        return spec
    sampling = SamplingSpec.model_validate({**spec.serve.sampling.model_dump(), **found})
    return spec.model_copy(update={"serve": spec.serve.model_copy(update={"sampling": sampling})})


def key_reader(spec: PipelineSpec, store: Store) -> Callable[[], list[ApiKey] | None] | None:
    return KeyFile(store).read if spec.serve.keys == "required" else None


def _served_models(spec: PipelineSpec, store: Store, release: Artifact, engine: str) -> tuple[str, dict[str, str]]:
    """What the engine loads: the release and `serve.adapters`. If there are adapters and the checkpoint is itself an
    adapter: the base model and all adapters, with the checkpoint under the endpoint's model name.
    """
    adapters = dict(spec.serve.adapters)
    if adapters:
        from models.base.adapters import is_adapter

        checkpoint = release.inputs["train"]
        if is_adapter(store.local_folder("train", checkpoint, "model")):
            return spec.base_model, {model_name(spec): store.address("train", checkpoint, "model"), **adapters}
    return store.address("optimize", release.key, _FOLDERS[engine]), adapters
