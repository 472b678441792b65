"""The HTTP routes: OpenAI's chat and text completions, models, health and the chat page, over any engine.

app = create_app(engine, tokenizer, "my-model", release_key="3f2a")
uvicorn.run(app)
"""

import contextlib
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError

from serve.access.api_keys import KeyRing
from serve.access.middleware import Gate, hold_so_many, hold_tokens
from serve.access.rate_limits import Limits
from serve.api import openapi
from serve.api.admission import Admission
from serve.api.chat_page import chat_page
from serve.api.embeddings import EmbeddingsReply, EmbeddingsRequest, tokens_of_texts
from serve.api.request_log import RequestLog
from serve.api.settings import ApiSettings
from serve.api.small_routes import (
    DetokenizedText,
    DetokenizeRequest,
    InputTokens,
    Load,
    TokenizerInfo,
    Version,
    detokenized,
    load_of,
    tokenizer_info,
    version_of,
)
from serve.api.streams import stream_of, unless_departed
from serve.api.watch import Watch
from serve.engines.base import Engine, GenerationRequest
from serve.metrics import Metrics, TokenClock
from serve.protocol import errors
from serve.protocol.errors import LOST, ApiError
from serve.protocol.requests import ChatRequest, CompletionRequest, GenerationFields, TokenizeRequest
from serve.protocol.responses import Health, Model, ModelList, Tokens
from serve.replies.chat_reply import ChatReply
from serve.replies.completion import Reply
from serve.replies.generation import Generation, Wishes
from serve.replies.prompt import PromptEncoder
from serve.replies.reranker import Reranker
from serve.replies.text_reply import TextReply
from serve.responses_api.fitting import encoded
from serve.responses_api.reply import ResponsesReply
from serve.responses_api.request import ResponsesRequest
from serve.responses_api.translation import Translation

Body = TypeVar("Body", bound=BaseModel)
Answer = TypeVar("Answer")


def create_app(
    engine: Engine,
    tokenizer: Any,
    model_name: str,
    release_key: str = "",
    settings: ApiSettings | None = None,
    *,
    keys: KeyRing | None = None,
    limits: Limits | None = None,
    reranker: Reranker | None = None,
) -> FastAPI:
    """The endpoint over `engine`.

    With `keys`, requests need one of them, and `limits` counts what each has used. `reranker` takes one of several
    replies where a request asks for that.
    """
    settings = settings or ApiSettings()
    max_body_bytes, max_seconds = settings.max_body_bytes, settings.max_seconds
    app = FastAPI(
        title="Rayconteur",
        version="1",  # of the API, as in its paths
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    errors.install(app)
    metrics = Metrics(engine)
    if keys is not None:
        app.add_middleware(Gate, keys=keys, limits=limits or Limits())
    app.add_middleware(RequestLog, metrics=metrics)
    encoder = PromptEncoder(tokenizer, engine, settings.max_new_tokens)
    app.state.watch = watch = Watch(engine, metrics.num_tokens, max_seconds)
    for part, ask in encoder.parts().items():
        watch.add(part, ask)
    admission = Admission(engine.max_active + settings.max_queued_requests)
    parents = {model_name: None, **dict.fromkeys(engine.adapters, model_name)}
    models_by_name = {
        name: Model(id=name, created=int(time.time()), root=name, parent=parent, max_model_len=engine.max_positions)
        for name, parent in parents.items()
    }
    page, page_policy = chat_page()

    @app.post("/v1/chat/completions", **openapi.CHAT)
    async def chat_completions(request: Request) -> Response:
        body = await _read(ChatRequest, request, max_body_bytes)
        _refuse_other_model(body.model, models_by_name)
        return await answer(ChatReply, request, body, await encoder.chat(body))

    @app.post("/v1/completions", **openapi.TEXT)
    async def completions(request: Request) -> Response:
        body = await _read(CompletionRequest, request, max_body_bytes)
        _refuse_other_model(body.model, models_by_name)
        return await answer(TextReply, request, body, await encoder.completion(body))

    @app.post("/v1/responses", **openapi.RESPONSES)
    async def responses(request: Request) -> Response:
        body = await _read(ResponsesRequest, request, max_body_bytes)
        _refuse_other_model(body.model, models_by_name)
        chat = Translation(body)
        return await answer(partial(ResponsesReply, body, chat), request, *await encoded(encoder, body, chat))

    @app.post("/v1/responses/input_tokens", **openapi.INPUT_TOKENS)
    async def input_tokens(request: Request) -> InputTokens:
        body = await _read(ResponsesRequest, request, max_body_bytes)
        _refuse_other_model(body.model, models_by_name)
        _, [wanted, *_] = await encoded(encoder, body, Translation(body))
        return InputTokens(input_tokens=len(wanted.prompt_ids))

    async def answer(
        kind: Callable[..., Reply | ResponsesReply],
        request: Request,
        body: GenerationFields,
        wanted: list[GenerationRequest],
    ) -> Response:
        choose = None
        if isinstance(body, ChatRequest) and (body.best_of or 1) > 1:
            if reranker is None:
                why = "best_of: this release has no discriminator to choose by; leave it out, or ask for n."
                raise ApiError(400, why, "best_of")
            choose = reranker.chooser(body.best_of_by or "softmax", body.seed)
        stops = body.stop_strings()
        generations = [
            Generation(
                engine,
                tokenizer,
                each,
                stops,
                max_seconds,
                TokenClock(metrics),
                encoder.reading(body, each.prompt_ids),
                _wishes(body, text),
            )
            for each, text in zip(wanted, encoder.echoes(body, wanted), strict=True)
        ]
        num_replies = body.num_replies()
        with_logprobs = body.num_logprobs() is not None
        told = (bool(body.return_token_ids), body.prompt_logprobs, body.calls_functions())
        reply = kind(generations, body.model, num_replies, with_logprobs, choose, release_key or None, *told)
        if not engine.health().is_alive:
            raise ApiError(503, "The engine has stopped.", code="engine_lost", headers={LOST: "before"})
        await hold_tokens(request, wanted, num_replies)
        admission.enter(len(generations))
        request.state.reply = reply
        with contextlib.ExitStack() as place:
            place.callback(admission.leave, len(generations))
            if body.stream:
                options = body.stream_options
                events = reply.events(
                    include_usage=bool(options and options.include_usage),
                    usage_so_far=bool(options and options.continuous_usage_stats),
                )
                if (stream := await stream_of(request, events)) is not None:
                    stream.at_end = place.pop_all().close
                    return stream
            elif (whole := await unless_departed(request, reply.completion())) is not None:
                return JSONResponse(whole.model_dump())
        return Response(status_code=errors.CLIENT_CLOSED_REQUEST)

    @app.post("/tokenize", **openapi.TOKENIZE)
    async def tokenize(request: Request) -> Tokens:
        body = await _read(TokenizeRequest, request, max_body_bytes)
        if body.model is not None:
            _refuse_other_model(body.model, models_by_name)
        tokens = await encoder.tokens(body)
        names = encoder.names(tokens) if body.return_token_strs else None
        return Tokens(count=len(tokens), max_model_len=engine.max_positions, tokens=tokens, token_strs=names)

    @app.post("/detokenize", **openapi.DETOKENIZE)
    async def detokenize(request: Request) -> DetokenizedText:
        body = await _read(DetokenizeRequest, request, max_body_bytes)
        if body.model is not None:
            _refuse_other_model(body.model, models_by_name)
        return await detokenized(tokenizer, engine, body)

    @app.post("/v1/embeddings", **openapi.EMBEDDINGS)
    async def embeddings(request: Request) -> Response:
        body = await _read(EmbeddingsRequest, request, max_body_bytes)
        _refuse_other_model(body.model, models_by_name)
        reply = EmbeddingsReply(engine, body, await tokens_of_texts(engine, encoder, body))
        await hold_so_many(request, reply.num_tokens)
        admission.enter(1)
        request.state.reply = reply
        with contextlib.ExitStack() as place:
            place.callback(admission.leave, 1)
            if (whole := await unless_departed(request, reply.completion(max_seconds))) is not None:
                return JSONResponse(whole.model_dump())
        return Response(status_code=errors.CLIENT_CLOSED_REQUEST)

    @app.get("/v1/models", **openapi.MODELS)
    async def models() -> ModelList:
        return ModelList(data=list(models_by_name.values()))

    @app.get("/v1/models/{name:path}", **openapi.MODEL)
    async def one_model(name: str) -> Model:
        _refuse_other_model(name, models_by_name)
        return models_by_name[name]

    @app.get("/version", **openapi.VERSION)
    async def version() -> Version:
        return version_of(release_key)

    @app.get("/load", **openapi.LOAD)
    async def load() -> Load:
        return load_of(engine)

    @app.get("/tokenizer_info", **openapi.TOKENIZER)
    async def about_tokenizer() -> TokenizerInfo:
        return tokenizer_info(tokenizer, engine)

    @app.get("/ping", **openapi.HEALTH)
    async def ping() -> Response:
        return await health()

    @app.get("/health", **openapi.HEALTH)
    async def health() -> Response:
        problem = watch.problem()
        body = Health(status="failed" if problem else "ok", model=model_name, release=release_key, problem=problem)
        return JSONResponse(body.model_dump(exclude_none=True), 503 if problem else 200)

    @app.get("/metrics", **openapi.METRICS)
    async def all_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", **openapi.PAGE)
    async def page_of_chat() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": page_policy})

    openapi.complete(app, list(models_by_name), has_keys=keys is not None)

    @app.get("/openapi.json", include_in_schema=False)
    async def document(version: str = openapi.VERSIONS[0]) -> Response:
        return JSONResponse(openapi.document(app, version))

    return app


async def _read(kind: type[Body], request: Request, max_body_bytes: int) -> Body:
    """The parsed body; raises ApiError for anything that is not a `kind` in JSON."""
    body = await _read_body(request, max_body_bytes)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise ApiError(415, f"Content-Type: got {content_type!r}; must be application/json.")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise errors.refusal(error, kind) from error


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


def _wishes(body: GenerationFields, prompt_text: str | None) -> Wishes:
    return Wishes(
        shows_stop=bool(body.include_stop_str_in_output),
        prompt_text=prompt_text,
        names_ids=bool(body.return_tokens_as_token_ids),
        stop_token_ids=frozenset(body.stop_token_ids or ()),
        is_prompt_alone=body.token_limit()[1] == 0,
    )


def _refuse_other_model(name: str, known: Collection[str]) -> None:
    if name not in known:
        there = ", ".join(map(repr, known))
        raise ApiError(404, f"The model {name[:200]!r} does not exist; there is {there}.", "model", "model_not_found")
