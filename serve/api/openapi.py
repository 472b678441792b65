"""The endpoint's OpenAPI document, the answer of GET /openapi.json.

    @app.post("/tokenize", **openapi.TOKENIZE)
    ...
    openapi.complete(app, ["my-model"], has_keys=False)   # after all routes

Routes parse their bodies themselves, so that errors have OpenAI's form; this file describes their bodies and answers.
OpenAPI 3.2 is the first version that describes the events of a stream (`itemSchema`).
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from serve.access.bearer import OPEN_PATHS
from serve.api.embeddings import Embeddings, EmbeddingsRequest
from serve.api.small_routes import DetokenizedText, DetokenizeRequest, InputTokens, Load, TokenizerInfo, Version
from serve.protocol.errors import ApiError
from serve.protocol.requests import ChatRequest, CompletionRequest, TokenizeRequest
from serve.protocol.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    ErrorBody,
    Health,
    Model,
    ModelList,
    TextCompletion,
    TextCompletionChunk,
    Tokens,
)
from serve.protocol.transport import REQUEST_ID
from serve.responses_api.answer import Response as ResponsesAnswer
from serve.responses_api.events import ResponsesEvent
from serve.responses_api.request import ResponsesRequest

VERSIONS = ("3.2", "3.1")
"""supported versions of OpenAPI; the first one is the default"""

_REQUESTS: list[type[BaseModel]] = [
    ChatRequest, CompletionRequest, ResponsesRequest, EmbeddingsRequest, TokenizeRequest, DetokenizeRequest,
]  # fmt: skip
# Unset fields are omitted from their JSON, so a default is not guaranteed to be present.
_CHUNKS: list[type[BaseModel]] = [ChatCompletionChunk, TextCompletionChunk]
_WHOLE: list[type[BaseModel]] = [
    ChatCompletion, DetokenizedText, Embeddings, ErrorBody, Health, InputTokens, Load, Model, ModelList,
    ResponsesAnswer, ResponsesEvent, TextCompletion, TokenizerInfo, Tokens, Version,
]  # fmt: skip

_MODES: list[tuple[type[BaseModel], JsonSchemaMode]] = [
    *((kind, "validation") for kind in _REQUESTS + _CHUNKS),
    *((kind, "serialization") for kind in _WHOLE),
]
_FOUND, _SCHEMAS = models_json_schema(_MODES, ref_template="#/components/schemas/{model}")
_REFERENCES = {kind: reference for (kind, _), reference in _FOUND.items()}

_WORDS = {
    200: "Success.",
    400: "Invalid request; `param` names the field.",
    401: "Missing or invalid API key.",
    404: "Unknown model.",
    413: "Request body too large.",
    415: "The content type of the body is not JSON.",
    429: "Too many requests are running or queued; retry later.",
    500: "Internal error.",
    502: "Two replicas failed while they handled this request.",
    503: "No replica is available, or its engine has stopped.",
    504: "The reply took longer than the limit.",
}
_NO_BODY = (400, 404, 413, 415)  # why a body may be refused


def complete(app: FastAPI, names: Sequence[str], has_keys: bool) -> None:
    """Add the schemas that the routes refer to, the names of the served models, and whether requests need a key; call
    it after adding all routes."""
    app.openapi_version = f"{VERSIONS[0]}.0"
    document = app.openapi()  # FastAPI caches this object
    schemas = copy.deepcopy(_SCHEMAS["$defs"])
    for kind in _REQUESTS:
        name = schemas[kind.__name__]["properties"]["model"]
        name["enum"] = [*names, None] if "anyOf" in name else list(names)
    document.setdefault("components", {})["schemas"] = schemas
    [name] = document["paths"]["/v1/models/{name}"]["get"]["parameters"]
    name["schema"]["enum"] = list(names)
    if has_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's own validation error, which no route returns
            if has_keys and path not in OPEN_PATHS:
                operation["security"] = [{"key": []}]
                operation["responses"]["401"] = _response(401, _json(ErrorBody))


def document(app: FastAPI, version: str) -> dict[str, Any]:
    """The document in a version of OpenAPI. Raises ApiError for an unsupported version.

    Version 3.1 cannot describe the events of a stream; there they are text.
    """
    short = version.removesuffix(".0")
    if short not in VERSIONS:
        raise ApiError(400, f"version: got {version[:80]!r}; supported are {' and '.join(VERSIONS)}.", "version")
    found: dict[str, Any] = app.openapi()
    if short == VERSIONS[0]:
        return found
    older = {**copy.deepcopy(found), "openapi": f"{short}.0"}
    for operation in (operation for item in older["paths"].values() for operation in item.values()):
        for response in operation["responses"].values():
            for content in response.get("content", {}).values():
                if content.pop("itemSchema", None) is not None:
                    content["schema"] = {"type": "string"}
    return older


def _route(
    bodies: Mapping[int, type[BaseModel]],
    *,
    reads: type[BaseModel] | None = None,
    events: type[BaseModel] | None = None,
    text: str | None = None,
    refusals: Iterable[int] = (),
) -> dict[str, Any]:
    """The description of a route, as arguments of FastAPI's decorators.

    The route reads a body of type `reads`, and answers with JSON of the types in `bodies` by status; with 200 also
    with a stream of `events`, or with the media type `text`. The statuses in `refusals`, those of reading a body, and
    500 have OpenAI's error body.
    """
    content = {status: _json(kind) for status, kind in bodies.items()}
    content |= {status: _json(ErrorBody) for status in (*refusals, *(_NO_BODY if reads else ()), 500)}
    if events is not None:
        content[200]["text/event-stream"] = {"itemSchema": _event(events)}
    if text is not None:
        content[200] = {text: {"schema": {"type": "string"}}}
    responses = {str(status): _response(status, content[status]) for status in sorted(content)}
    said: dict[str, Any] = {"responses": responses}
    if reads is not None:
        said["requestBody"] = {"required": True, "content": _json(reads)}
    return {"openapi_extra": said, "response_class": Response if text else JSONResponse}


def _json(kind: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": _REFERENCES[kind]}}


def _event(kind: type[BaseModel]) -> dict[str, Any]:
    """An event of a stream: JSON of `kind`, the error that ended the stream, or the end."""
    either = [_REFERENCES[kind], _REFERENCES[ErrorBody]]
    said = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": either}}
    return {
        "type": "object",
        "properties": {"data": {"anyOf": [{"const": "[DONE]"}, said]}},
        "required": ["data"],
    }


def _response(status: int, content: dict[str, Any]) -> dict[str, Any]:
    headers = {REQUEST_ID: {"description": "Identifies the request in the log.", "schema": {"type": "string"}}}
    if status == 429:
        headers["Retry-After"] = {"description": "Seconds.", "schema": {"type": "integer"}}
    return {"description": _WORDS[status], "headers": headers, "content": content}


_GENERATING = (429, 502, 503, 504)
CHAT = _route({200: ChatCompletion}, reads=ChatRequest, events=ChatCompletionChunk, refusals=_GENERATING)
TEXT = _route({200: TextCompletion}, reads=CompletionRequest, events=TextCompletionChunk, refusals=_GENERATING)
RESPONSES = _route({200: ResponsesAnswer}, reads=ResponsesRequest, events=ResponsesEvent, refusals=_GENERATING)
EMBEDDINGS = _route({200: Embeddings}, reads=EmbeddingsRequest, refusals=_GENERATING)
TOKENIZE = _route({200: Tokens}, reads=TokenizeRequest)
DETOKENIZE = _route({200: DetokenizedText}, reads=DetokenizeRequest)
VERSION = _route({200: Version})
INPUT_TOKENS = _route({200: InputTokens}, reads=ResponsesRequest)
LOAD = _route({200: Load})
TOKENIZER = _route({200: TokenizerInfo})
MODELS = _route({200: ModelList})
MODEL = _route({200: Model}, refusals=(404,))
HEALTH = _route({200: Health, 503: Health})
METRICS = _route({}, text="text/plain")
PAGE = _route({}, text="text/html")
