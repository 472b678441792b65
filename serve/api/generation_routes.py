"""The routes that generate replies: chat completions, text completions, responses."""

import contextlib
from collections.abc import Callable, Sequence

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from models.chat.knowledge import Passage
from serve.access.middleware import hold_tokens
from serve.api import openapi
from serve.api.context import ApiContext
from serve.api.request_body import read_json
from serve.api.small_routes import InputTokens
from serve.api.streams import stream_of, unless_departed
from serve.engines.base import GenerationRequest
from serve.metrics import TokenClock
from serve.protocol.errors import CLIENT_CLOSED_REQUEST, LOST, ApiError
from serve.protocol.requests import ChatRequest, CompletionRequest, GenerationFields
from serve.replies.chat_reply import ChatReply
from serve.replies.completion import Choose, Reply, ReplyOptions
from serve.replies.generation import Generation, Wishes
from serve.replies.text_reply import TextReply
from serve.responses_api.fitting import encoded, passages_for
from serve.responses_api.reply import ResponsesReply
from serve.responses_api.request import ResponsesRequest
from serve.responses_api.translation import Translation

AnyReply = Reply | ResponsesReply
MakeReply = Callable[[Sequence[Generation], ReplyOptions], AnyReply]


def add_generation_routes(app: FastAPI, api: ApiContext) -> None:
    """POST /v1/chat/completions, /v1/completions, /v1/responses and /v1/responses/input_tokens."""
    max_body_bytes, defaults = api.settings.max_body_bytes, api.settings.sampling

    @app.post("/v1/chat/completions", **openapi.CHAT)
    async def chat_completions(request: Request) -> Response:
        body = defaults.filled(await read_json(ChatRequest, request, max_body_bytes))
        api.check_model(body.model)
        passages = await api.encoder.passages(body)
        return await _answer(api, ChatReply, request, body, await api.encoder.chat(body, passages), passages)

    @app.post("/v1/completions", **openapi.TEXT)
    async def completions(request: Request) -> Response:
        body = defaults.filled(await read_json(CompletionRequest, request, max_body_bytes))
        api.check_model(body.model)
        return await _answer(api, TextReply, request, body, await api.encoder.completion(body))

    @app.post("/v1/responses", **openapi.RESPONSES)
    async def responses(request: Request) -> Response:
        asked = defaults.filled(await read_json(ResponsesRequest, request, max_body_bytes))
        api.check_model(asked.model)
        chat = Translation(asked)
        passages = await passages_for(api.encoder, chat)
        body, wanted = await encoded(api.encoder, asked, chat, passages)

        def make_reply(generations: Sequence[Generation], options: ReplyOptions) -> ResponsesReply:
            return ResponsesReply(asked, chat, generations, options.sources())

        return await _answer(api, make_reply, request, body, wanted, passages)

    @app.post("/v1/responses/input_tokens", **openapi.INPUT_TOKENS)
    async def input_tokens(request: Request) -> InputTokens:
        body = await read_json(ResponsesRequest, request, max_body_bytes)
        api.check_model(body.model)
        chat = Translation(body)
        _, [wanted, *_] = await encoded(api.encoder, body, chat, await passages_for(api.encoder, chat))
        return InputTokens(input_tokens=len(wanted.prompt_ids))


async def _answer(
    api: ApiContext,
    make_reply: MakeReply,
    request: Request,
    body: GenerationFields,
    wanted: list[GenerationRequest],
    passages: Sequence[Passage] = (),
) -> Response:
    """The replies to `wanted`, what the engine gets for `body`, with the passages in its prompt. Raises ApiError."""
    choose = _chooser(api, body)
    generations = _generations(api, body, wanted)
    options = ReplyOptions.of(body, api.release_key or None, choose, passages)
    reply = make_reply(generations, options)
    if not api.engine.health().is_alive:
        raise ApiError(503, "The engine has stopped.", code="engine_lost", headers={LOST: "before"})
    await hold_tokens(request, wanted, options.n)
    with api.admission.admitted(len(generations)) as place:
        request.state.reply = reply
        return await _sent(request, body, reply, place)


async def _sent(request: Request, body: GenerationFields, reply: AnyReply, place: contextlib.ExitStack) -> Response:
    """The answer, or its stream; a stream keeps its place until it has ended."""
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
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _chooser(api: ApiContext, body: GenerationFields) -> Choose | None:
    """What chooses one of several replies, if the request asks for that (`best_of`)."""
    if not isinstance(body, ChatRequest) or (body.best_of or 1) <= 1:
        return None
    if api.reranker is None:
        why = "best_of: this release has no discriminator to choose by; leave it out, or ask for n."
        raise ApiError(400, why, "best_of")
    return api.reranker.chooser(body.best_of_by or "softmax", body.seed)


def _generations(api: ApiContext, body: GenerationFields, wanted: list[GenerationRequest]) -> list[Generation]:
    stops = body.stop_strings()
    return [
        Generation(
            api.engine,
            api.tokenizer,
            each,
            stops,
            api.settings.max_seconds,
            TokenClock(api.metrics),
            api.encoder.reading(body, each.prompt_ids),
            _wishes(body, prompt_text),
        )
        for each, prompt_text in zip(wanted, api.encoder.echoes(body, wanted), strict=True)
    ]


def _wishes(body: GenerationFields, prompt_text: str | None) -> Wishes:
    return Wishes(
        shows_stop=bool(body.include_stop_str_in_output),
        prompt_text=prompt_text,
        names_ids=bool(body.return_tokens_as_token_ids),
        stop_token_ids=frozenset(body.stop_token_ids or ()),
        is_prompt_alone=body.token_limit()[1] == 0,
    )
