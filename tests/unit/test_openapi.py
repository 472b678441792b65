"""The OpenAPI document: right by its specification, and what the endpoint does, as schemathesis finds out."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import hypothesis
import openapi_spec_validator
import pytest
import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

from models.base import load_tokenizer
from serve.api import create_app
from serve.engines.torch import TorchEngine

MODEL = "tiny/talker"
TALK = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def app(
    save_talker: Callable[..., Path], tool_templates: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    release = save_talker(tmp_path_factory.mktemp("release"), True, tool_templates["tags"], positions=160)
    engine = TorchEngine(release, precision="fp32", num_threads=1)
    yield create_app(engine, load_tokenizer(release), MODEL, "3f2a", default_max_tokens=4, max_waiting=8)
    engine.close()


@pytest.fixture(scope="module")
def document(app: Any, serving: Callable[[Any], AbstractContextManager[str]]) -> Iterator[Any]:
    with serving(app) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


schema = schemathesis.pytest.from_fixture("document")


def test_the_document_is_one_and_has_every_route(app: Any) -> None:
    document = app.openapi()
    openapi_spec_validator.validate(document)
    described = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
    routes = {(route.path_format, method) for route in app.routes for method in getattr(route, "methods", ())}
    assert described == {route for route in routes if route[0] != "/openapi.json"}


@schema.parametrize()
@hypothesis.settings(max_examples=20, derandomize=True, deadline=None, database=None)
def test_the_endpoint_does_what_the_document_says(case: schemathesis.Case) -> None:
    # Rules of one field about another, such as those of a conversation's turns, are in no schema: the document cannot
    # promise that all it allows is done.
    if case.meta.generation.mode.is_positive and isinstance(case.body, dict) and case.body.get("messages"):
        case.body["messages"] = TALK
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
