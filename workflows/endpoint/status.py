"""Look at an endpoint from outside: its address, its certificate, the release that it serves, its keys."""

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx

from workflows.endpoint.api_keys import KeyFile
from workflows.endpoint.application import model_name
from workflows.endpoint.knowledge import passages_key, read_knowledge
from workflows.figures import DeployFigures
from workflows.spec import PipelineSpec, ServeSpec
from workflows.stage import StageFailed
from workflows.store import Artifact, Store, content_key


def url_of(serve: ServeSpec) -> str:
    """The endpoint's URL for clients on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(serve.host, serve.host)
    return f"{'https' if serve.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{serve.port}"


def trust_of(serve: ServeSpec) -> ssl.SSLContext | bool:
    """How this machine verifies the endpoint's certificate, as httpx's `verify`."""
    from serve.front import tls

    return tls.trust_of(serve.tls.certificate) if serve.tls else True


def check_certificate(serve: ServeSpec) -> None:
    """Raise StageFailed if the certificate or its key cannot be read, or if they do not belong together."""
    if serve.tls is None:
        return
    from serve.front.tls import Certificate

    for field, file in serve.tls.model_dump().items():
        try:
            Path(file).read_bytes()
        except OSError as error:
            raise StageFailed(f"serve.tls.{field}: cannot read {file}: {error.strerror}; give a PEM file") from None
    try:
        ssl.create_default_context().load_verify_locations(serve.tls.certificate)
    except ssl.SSLError as error:
        raise StageFailed(
            f"serve.tls.certificate: {serve.tls.certificate} has no PEM certificate: {_reason(error)}"
        ) from None
    try:
        Certificate(serve.tls.certificate, serve.tls.key)
    except OSError as error:
        raise StageFailed(
            f"serve.tls.key: {serve.tls.key} must be the private key of the first certificate in "
            f"{serve.tls.certificate}, in PEM and without a password: {_reason(error)}"
        ) from None


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error)


def deployment_key(spec: PipelineSpec, release: str, search: str | None = None) -> str:
    """A hash of the release and of every setting of the endpoint; `search`: the key of one over `serve.sampling`."""
    serve = spec.serve.result_fields()
    if spec.serve.knowledge is not None:
        serve["passages"] = passages_key(read_knowledge(spec.serve.knowledge))
    searched = {} if search is None else {"search": search}
    return content_key({"release": release, "serve": serve, "model": model_name(spec), **searched})


def living_endpoint(spec: PipelineSpec, store: Store, release: str, search: str | None = None) -> Artifact | None:
    """The deployment of this release with these settings, if its endpoint answers; otherwise None. For `search`, see
    `deployment_key`.
    """
    url = url_of(spec.serve)
    deployed = [
        artifact for artifact in store.all_of("deploy") if DeployFigures.from_json(artifact.figures).url == url
    ]
    if not deployed or deployed[-1].key != deployment_key(spec, release, search):
        return None
    return deployed[-1] if _served_release(url, spec.serve) == release else None


def _served_release(url: str, serve: ServeSpec) -> str | None:
    try:
        return str(httpx.get(f"{url}/health", timeout=2.0, verify=trust_of(serve)).json()["release"])
    except (httpx.HTTPError, OSError, ValueError, KeyError, TypeError):
        return None


def someone_may_ask(spec: PipelineSpec, store: Store) -> bool:
    """Whether the endpoint requires no key, or at least one key exists."""
    return spec.serve.keys == "none" or bool(KeyFile(store).read())


@contextlib.contextmanager
def own_key(spec: PipelineSpec, store: Store) -> Iterator[str | None]:
    """A temporary key for the endpoint, revoked when the block ends; None if it requires none."""
    if spec.serve.keys == "none":
        yield None
        return
    with KeyFile(store).temporary() as key:
        yield key


def curl_line(endpoint: DeployFigures, serve: ServeSpec) -> str:
    """A curl command that sends the endpoint a request."""
    body = f'{{"model": "{endpoint.model}", "messages": [{{"role": "user", "content": "Hello!"}}], "stream": true}}'
    key = ' -H "Authorization: Bearer $RAYCONTEUR_API_KEY"' if serve.keys == "required" else ""
    trust = f" --cacert {serve.tls.certificate}" if serve.tls else ""
    return f"curl -N{trust} {endpoint.url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
