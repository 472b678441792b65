"""deploy: release to endpoint, with Ray Serve.

    rayconteur deploy PIPELINE

Refuses a release whose scorecard did not pass. Leaves in the store a manifest with the endpoint's address; the
endpoint is up to date while `/health` there names this release.
"""

import contextlib
import importlib.util
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from serve.keys import ApiKey
from workflows.keys import KeyFile
from workflows.pipeline import GateFailed, StageFailed
from workflows.players import DISCRIMINATOR, SHIPPED
from workflows.progress import Progress
from workflows.spec import PipelineSpec, ServeSpec
from workflows.store import Artifact, Store, content_key

# The part of a release that an engine loads.
_FOLDERS = {"openvino": "openvino", "torch": "model", "vllm": "model"}

_VLLM_MISSING = "vLLM is not installed here; run: pip install -c constraints.txt 'rayconteur[llm]'"


def url_of(serve: ServeSpec) -> str:
    """Where clients on this machine find the endpoint."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(serve.host, serve.host)
    return f"{'https' if serve.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{serve.port}"


def trust_of(serve: ServeSpec) -> ssl.SSLContext | bool:
    """What this machine checks the endpoint's certificate by."""
    from serve import tls

    return tls.trust_of(serve.tls.certificate) if serve.tls else True


def check_certificate(serve: ServeSpec) -> None:
    """Raise StageFailed for a certificate, or a key, that cannot be read, or do not belong together."""
    if serve.tls is None:
        return
    from serve.tls import Certificate

    for field, file in serve.tls.model_dump().items():
        try:
            Path(file).read_bytes()
        except OSError as error:
            raise StageFailed(f"serve.tls.{field}: cannot read {file}: {error.strerror}") from None
    try:
        ssl.create_default_context().load_verify_locations(serve.tls.certificate)
    except ssl.SSLError as error:
        raise StageFailed(
            f"serve.tls.certificate: {serve.tls.certificate} has no certificate in PEM: {_reason(error)}"
        ) from None
    try:
        Certificate(serve.tls.certificate, serve.tls.key)
    except OSError as error:
        raise StageFailed(
            f"serve.tls.key: {serve.tls.key} is not the key in PEM, without a password, of the first certificate in "
            f"{serve.tls.certificate}: {_reason(error)}"
        ) from None


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error)


def deployment_key(spec: PipelineSpec, release: str) -> str:
    """Changes with the release and with every setting of the endpoint."""
    return content_key({"release": release, "serve": spec.serve.result_fields(), "model": model_name(spec)})


def model_name(spec: PipelineSpec) -> str:
    """What clients put into `model`."""
    return spec.serve.model_name or spec.name


def living_endpoint(spec: PipelineSpec, store: Store, release: str) -> Artifact | None:
    """The endpoint of this release with these settings, if it answers now."""
    url = url_of(spec.serve)
    deployed = [artifact for artifact in store.all_of("deploy") if artifact.figures["url"] == url]
    if not deployed or deployed[-1].key != deployment_key(spec, release):
        return None
    return deployed[-1] if _served_release(url, spec.serve) == release else None


def _served_release(url: str, serve: ServeSpec) -> str | None:
    try:
        return str(httpx.get(f"{url}/health", timeout=2.0, verify=trust_of(serve)).json()["release"])
    except (httpx.HTTPError, OSError, ValueError, KeyError, TypeError):
        return None


def someone_may_ask(spec: PipelineSpec, store: Store) -> bool:
    """Whether the endpoint needs no key, or there is one."""
    return spec.serve.keys == "none" or bool(KeyFile(store).read())


@contextlib.contextmanager
def own_key(spec: PipelineSpec, store: Store) -> Iterator[str | None]:
    """A key to ask the endpoint with, revoked at the end; None where it needs none."""
    if spec.serve.keys == "none":
        yield None
        return
    with KeyFile(store).temporary() as key:
        yield key


def check_passed(scorecard: Artifact, force: bool) -> None:
    """Raise GateFailed for a release whose evaluation did not pass, unless `force`."""
    if not scorecard.figures["passed"] and not force:
        raise GateFailed(
            f"deploy: refused, the scorecard {scorecard.figures['verdict']}; --force deploys all the same"
        )


def chosen_engine(serve: ServeSpec, release: Artifact) -> tuple[str, str]:
    """What generates, and why; raises StageFailed for an engine that is not installed."""
    has_vllm = _has_vllm()
    if serve.engine == "vllm" and not has_vllm:
        raise StageFailed(f"serve.engine: {_VLLM_MISSING}, or take torch")
    if serve.engine != "auto":
        return serve.engine, "as serve.engine says"
    if serve.gpus_per_replica:
        return ("vllm", "replicas have GPUs") if has_vllm else ("torch", f"replicas have GPUs, but {_VLLM_MISSING}")
    if serve.adapters:
        return "torch", "serve.adapters are computed together"
    export = release.figures["openvino"]
    if export == "exported":
        return "openvino", "on CPUs, and the release has an OpenVINO export"
    return "torch", f"the release has no OpenVINO export: {export}"


def _has_vllm() -> bool:
    found = importlib.util.find_spec("vllm")
    return found is not None and found.origin is not None  # any folder of that name is found, without origin


def deploy(spec: PipelineSpec, store: Store, done: dict[str, Artifact], progress: Progress) -> Artifact:
    """Start or update the endpoint on the connected cluster and wait until it answers; its artifact."""
    import ray

    from serve.front import Endpoint
    from serve.front_actor import FrontSettings, run_endpoint
    from workflows.cluster import check_fits

    serve, release, url = spec.serve, done["optimize"], url_of(spec.serve)
    check_certificate(serve)
    check_fits(spec, ["deploy"], progress)
    engine, reason = chosen_engine(serve, release)
    progress.start("deploy", f"release {release.key} to {url} (Ray Serve); engine {engine}: {reason}")
    started, began = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    app = application(spec, store, release, engine, surge=_has_room_for_one_more(serve))
    endpoint = Endpoint(model_name(spec), release.key)
    shown = FrontSettings(
        origins=tuple(serve.cors_origins),
        tls=(serve.tls.certificate, serve.tls.key) if serve.tls else None,
        read_keys=_read_keys(spec, store),
    )
    try:
        run_endpoint(app, spec.name, serve.host, serve.port, serve.max_reply_seconds, endpoint, shown)
    except (RuntimeError, ray.exceptions.RayError) as error:
        raise StageFailed(f"deploy: Ray Serve could not start the endpoint: {error}") from error
    except OSError as error:
        raise StageFailed(
            f"serve.port: cannot listen on {serve.host}:{serve.port}: {error}; "
            f"free it or take another, as in --set serve.port={min(serve.port + 1, 65535)}"
        ) from None
    artifact = Artifact(
        stage="deploy",
        key=deployment_key(spec, release.key),
        pipeline=spec.name,
        inputs={name: done[name].key for name in ("evaluate", "optimize")},
        settings={"serve": serve.result_fields()},
        figures={"url": url, "model": model_name(spec), "engine": engine, "engine_because": reason},
        started=started,
        seconds=round(time.monotonic() - began, 3),
    )
    store.finish(artifact)
    progress.finish("deploy", {})
    return artifact


def application(spec: PipelineSpec, store: Store, release: Artifact, engine: str, **options: Any) -> Any:
    """The Ray Serve application of a release; `options` are further ones of `serve.app.build`."""
    from serve.app import build

    serve = spec.serve
    has_discriminator = release.figures.get(DISCRIMINATOR) == SHIPPED
    served, adapters = _served_models(spec, store, release, engine)
    return build(
        served,
        release.key,
        model_name(spec),
        min_replicas=serve.min_replicas,
        max_replicas=serve.max_replicas,
        target_ongoing_requests=serve.target_ongoing_requests,
        upscale_delay_seconds=serve.upscale_delay_s,
        downscale_delay_seconds=serve.downscale_delay_s,
        max_queued_requests=serve.max_queued_requests,
        num_cpus=serve.cpus_per_replica,
        num_gpus=serve.gpus_per_replica,
        engine=engine,
        precision=serve.precision,
        max_new_tokens=serve.max_new_tokens,
        max_seconds=serve.max_reply_seconds,
        adapters=adapters,
        max_stall_seconds=serve.max_stall_ms / 1000,
        beside=serve.beside,
        read_keys=_read_keys(spec, store),
        discriminator=store.address("optimize", release.key, DISCRIMINATOR) if has_discriminator else None,
        **options,
    )


def _read_keys(spec: PipelineSpec, store: Store) -> Callable[[], list[ApiKey] | None] | None:
    return KeyFile(store).read if spec.serve.keys == "required" else None


def _served_models(spec: PipelineSpec, store: Store, release: Artifact, engine: str) -> tuple[str, dict[str, str]]:
    """What an engine loads: the release; or for adapters the model that they belong to, and all adapters with the
    pipeline's own among them, under the endpoint's name."""
    adapters = dict(spec.serve.adapters)
    if adapters:
        from models.adapters import is_adapter

        checkpoint = release.inputs["train"]
        if is_adapter(store.local_folder("train", checkpoint, "model")):
            return spec.base_model, {model_name(spec): store.address("train", checkpoint, "model"), **adapters}
    return store.address("optimize", release.key, _FOLDERS[engine]), adapters


def _has_room_for_one_more(serve: ServeSpec) -> bool:
    """Whether an update can start a new replica beside the old ones."""
    import ray

    free = ray.available_resources()
    return bool(free.get("CPU", 0) >= serve.cpus_per_replica and free.get("GPU", 0) >= serve.gpus_per_replica)


def curl_line(artifact: Artifact) -> str:
    """A command that shows the endpoint at work."""
    figures: dict[str, Any] = artifact.figures
    body = f'{{"model": "{figures["model"]}", "messages": [{{"role": "user", "content": "Hello!"}}], "stream": true}}'
    has_keys = artifact.settings["serve"]["keys"] == "required"
    key = ' -H "Authorization: Bearer $RAYCONTEUR_API_KEY"' if has_keys else ""
    tls = artifact.settings["serve"].get("tls")
    trust = f" --cacert {tls['certificate']}" if tls else ""
    return f"curl -N{trust} {figures['url']}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
