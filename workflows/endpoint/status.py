"""An endpoint from outside: its address, its certificate, what it serves, and who may ask."""

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from workflows.endpoint.api_keys import KeyFile
from workflows.endpoint.application import model_name
from workflows.spec import PipelineSpec, ServeSpec
from workflows.stage import StageFailed
from workflows.store import Artifact, Store, content_key


def url_of(serve: ServeSpec) -> str:
    """Where clients on this machine find the endpoint."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(serve.host, serve.host)
    return f"{'https' if serve.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{serve.port}"


def trust_of(serve: ServeSpec) -> ssl.SSLContext | bool:
    """What this machine checks the endpoint's certificate by."""
    from serve.front import tls

    return tls.trust_of(serve.tls.certificate) if serve.tls else True


def check_certificate(serve: ServeSpec) -> None:
    """Raise StageFailed for a certificate, or a key, that cannot be read, or do not belong together."""
    if serve.tls is None:
        return
    from serve.front.tls import Certificate

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


def curl_line(artifact: Artifact) -> str:
    """A command that shows the endpoint at work."""
    figures: dict[str, Any] = artifact.figures
    body = f'{{"model": "{figures["model"]}", "messages": [{{"role": "user", "content": "Hello!"}}], "stream": true}}'
    has_keys = artifact.settings["serve"]["keys"] == "required"
    key = ' -H "Authorization: Bearer $RAYCONTEUR_API_KEY"' if has_keys else ""
    tls = artifact.settings["serve"].get("tls")
    trust = f" --cacert {tls['certificate']}" if tls else ""
    return f"curl -N{trust} {figures['url']}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
