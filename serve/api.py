"""The HTTP routes: OpenAI's chat completions, models, health and the chat page, over any engine.

app = create_app(engine, tokenizer, "my-model", release_key="3f2a")
uvicorn.run(app)
"""

import asyncio
import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from serve import errors
from serve.completion import Reply
from serve.engines.base import Engine
from serve.errors import ApiError
from serve.prompt import PromptEncoder
from serve.protocol import ChatRequest, Health, Model, ModelList

DEFAULT_MAX_TOKENS = 512
MAX_BODY_BYTES = 4 << 20

PAGE = Path(__file__).parent / "page" / "index.html"
# The page is whole in itself; even a bug in it could load or send nothing elsewhere.
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)


class EventStream(StreamingResponse):
    """Server-sent events; their generator is closed when the client leaves, not when it is collected."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.body_iterator.aclose()  # type: ignore[attr-defined]


def create_app(
    engine: Engine,
    tokenizer: Any,
    model_name: str,
    release_key: str = "",
    default_max_tokens: int = DEFAULT_MAX_TOKENS,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> FastAPI:
    """The endpoint over `engine`.

    A request without a limit gets `default_max_tokens`, less where the prompt leaves less.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    errors.install(app)
    encoder = PromptEncoder(tokenizer, engine.max_positions, default_max_tokens)
    model = Model(id=model_name, created=int(time.time()))
    page = PAGE.read_text(encoding="utf-8")

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        chat_request = await _read_request(request, max_body_bytes)
        _refuse_other_model(chat_request.model, model_name)
        generation = await encoder.encode(chat_request)
        reply = Reply(engine, tokenizer, generation, chat_request.stop_strings(), model_name)
        if chat_request.stream:
            options = chat_request.stream_options
            events = reply.events(include_usage=bool(options and options.include_usage))
            return EventStream(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        return await _whole_reply(request, reply)

    @app.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[model])

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Model:
        _refuse_other_model(name, model_name)
        return model

    @app.get("/health")
    async def health() -> Response:
        is_alive = engine.health().is_alive
        body = Health(status="ok" if is_alive else "failed", model=model_name, release=release_key)
        return JSONResponse(body.model_dump(), 200 if is_alive else 503)

    @app.get("/")
    async def chat_page() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    return app


async def _read_request(request: Request, max_body_bytes: int) -> ChatRequest:
    """The parsed body; raises ApiError for anything that is not a chat request in JSON."""
    body = await _read_body(request, max_body_bytes)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise ApiError(415, f"Content-Type: got {content_type!r}; must be application/json.")
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise errors.refusal(error) from error


async def _read_body(request: Request, max_body_bytes: int) -> bytes:
    """The body; one that is too large is taken in up to a bound, so that its sender reads the answer."""
    body = bytearray()
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes <= max_body_bytes:
            body += chunk
        if num_bytes > 16 * max_body_bytes:
            break
    if num_bytes > max_body_bytes:
        raise ApiError(413, f"The request body has {num_bytes} bytes or more; at most {max_body_bytes} are read.")
    return bytes(body)


def _refuse_other_model(name: str, model_name: str) -> None:
    if name != model_name:
        raise ApiError(
            404, f"The model {name[:200]!r} does not exist; {model_name!r} does.", "model", "model_not_found"
        )


async def _whole_reply(request: Request, reply: Reply) -> Response:
    """The reply in one piece; generation ends when the client goes away first."""
    completion = asyncio.create_task(reply.completion())
    departure = asyncio.create_task(_departure(request))
    try:
        await asyncio.wait({completion, departure}, return_when=asyncio.FIRST_COMPLETED)
        if completion.done():
            return JSONResponse(completion.result().model_dump())
        return Response(status_code=errors.CLIENT_CLOSED_REQUEST)
    finally:
        completion.cancel()
        departure.cancel()


async def _departure(request: Request) -> None:
    """Returns when the client has disconnected; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
