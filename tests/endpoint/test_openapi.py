"""The OpenAPI document: valid, and true of the endpoint, checked with schemathesis.

To run it manually against a live endpoint, with more examples and its other phases:

    schemathesis run http://127.0.0.1:8000/openapi.json --exclude-checks positive_data_acceptance -n 1000
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import openapi_spec_validator
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from models.base.load import load_tokenizer
from serve.access.api_keys import KeyRing
from serve.api.routes import create_app
from serve.api.settings import ApiSettings
from serve.engines.torch import TorchEngine

MODEL = "tiny/talker"
TALK = [{"role": "user", "content": "Hi"}]
ROUTES = {
    "POST /v1/chat/completions": 25, "POST /v1/completions": 25, "POST /v1/responses": 25, "POST /v1/embeddings": 15,
    "POST /tokenize": 15, "POST /detokenize": 15, "GET /v1/models": 1, "GET /v1/models/{name}": 5, "GET /health": 1,
    "GET /ping": 1, "GET /version": 1, "GET /metrics": 1, "GET /": 1, "GET /load": 1, "GET /tokenizer_info": 1,
    "POST /v1/responses/input_tokens": 10,
}  # fmt: skip
"""the number of examples for each route"""


@pytest.fixture(scope="module")
def app(
    save_talker: Callable[..., Path], tool_templates: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    release = save_talker(tmp_path_factory.mktemp("release"), True, tool_templates["tags"], positions=96)
    engine = TorchEngine(release, precision="fp32", num_threads=1)
    yield create_app(
        engine, load_tokenizer(release), MODEL, "3f2a", ApiSettings(max_new_tokens=4, max_queued_requests=8)
    )
    engine.close()


@pytest.fixture(scope="module")
def document(app: Any, serving: Callable[[Any], AbstractContextManager[str]]) -> Iterator[Any]:
    with serving(app) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def test_the_document_is_one_and_has_every_route(app: Any) -> None:
    document = app.openapi()
    openapi_spec_validator.validate(document)
    described = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    routes = {f"{method} {route.path_format}" for route in app.routes for method in getattr(route, "methods", ())}
    assert described == routes - {"GET /openapi.json", "HEAD /openapi.json"} == {*ROUTES}
    assert document["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"] == [MODEL]


def test_the_document_is_there_in_an_older_version_too(
    app: Any, serving: Callable[[Any], AbstractContextManager[str]]
) -> None:
    with serving(app) as url:
        newest, also, older, none = (
            httpx.get(f"{url}/openapi.json{query}") for query in ("", "?version=3.2", "?version=3.1", "?version=2")
        )
    assert newest.json() == also.json()
    assert (newest.json()["openapi"], older.json()["openapi"]) == ("3.2.0", "3.1.0")
    openapi_spec_validator.validate(older.json())
    assert "itemSchema" in newest.text
    assert "itemSchema" not in older.text
    streams = older.json()["paths"]["/v1/responses"]["post"]["responses"]["200"]["content"]
    assert streams["text/event-stream"] == {"schema": {"type": "string"}}
    assert none.status_code == 400
    assert none.json()["error"]["param"] == "version"


@pytest.mark.parametrize(("route", "mode"), [
    *((route, GenerationMode.POSITIVE) for route in ROUTES),
    *((route, GenerationMode.NEGATIVE) for route in ROUTES if route.startswith("POST")),
])  # fmt: skip
def test_the_endpoint_does_what_the_document_says(document: Any, route: str, mode: GenerationMode) -> None:
    [operation] = [each.ok() for each in document.get_all_operations() if each.ok().label == route]

    @hypothesis.given(operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=ROUTES[route], derandomize=True, database=None, deadline=None,
        phases=[hypothesis.Phase.generate], suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    def holds(case: schemathesis.Case) -> None:
        if mode == GenerationMode.POSITIVE and isinstance(case.body, dict) and case.body.get("messages"):
            case.body["messages"] = TALK  # generated ones do not alternate roles
        # The schema has no rules between fields, so the endpoint may refuse requests that are valid by it.
        answer = case.call_and_validate(excluded_checks=[positive_data_acceptance])
        statuses.append(answer.status_code)

    statuses: list[int] = []
    holds()
    assert mode == GenerationMode.NEGATIVE or 200 in statuses


def test_the_document_says_where_a_key_is_needed(app: Any, tiny_llama: Path) -> None:
    engine = TorchEngine(tiny_llama, precision="fp32", num_threads=1)
    closed = create_app(engine, load_tokenizer(tiny_llama), MODEL, keys=KeyRing(list)).openapi()
    engine.close()
    openapi_spec_validator.validate(closed)
    assert closed["paths"]["/v1/chat/completions"]["post"]["security"] == [{"key": []}]
    assert "401" in closed["paths"]["/metrics"]["get"]["responses"]
    assert "security" not in closed["paths"]["/health"]["get"]
    assert "securitySchemes" not in app.openapi()["components"]
