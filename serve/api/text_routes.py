"""The routes that convert text to tokens or embeddings, or tokens to text, and generate nothing."""

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from serve.access.middleware import hold_so_many
from serve.api import openapi
from serve.api.context import ApiContext
from serve.api.embeddings import EmbeddingsReply, EmbeddingsRequest, tokens_of_texts
from serve.api.request_body import read_json
from serve.api.small_routes import DetokenizedText, DetokenizeRequest, detokenized
from serve.api.streams import unless_departed
from serve.protocol.errors import CLIENT_CLOSED_REQUEST
from serve.protocol.requests import TokenizeRequest
from serve.protocol.responses import Tokens


def add_text_routes(app: FastAPI, api: ApiContext) -> None:
    """POST /tokenize, /detokenize and /v1/embeddings."""
    max_body_bytes = api.settings.max_body_bytes

    @app.post("/tokenize", **openapi.TOKENIZE)
    async def tokenize(request: Request) -> Tokens:
        body = await read_json(TokenizeRequest, request, max_body_bytes)
        if body.model is not None:
            api.check_model(body.model)
        tokens = await api.encoder.tokens(body)
        names = api.encoder.names(tokens) if body.return_token_strs else None
        return Tokens(count=len(tokens), max_model_len=api.engine.max_positions, tokens=tokens, token_strs=names)

    @app.post("/detokenize", **openapi.DETOKENIZE)
    async def detokenize(request: Request) -> DetokenizedText:
        body = await read_json(DetokenizeRequest, request, max_body_bytes)
        if body.model is not None:
            api.check_model(body.model)
        return await detokenized(api.tokenizer, api.engine, body)

    @app.post("/v1/embeddings", **openapi.EMBEDDINGS)
    async def embeddings(request: Request) -> Response:
        body = await read_json(EmbeddingsRequest, request, max_body_bytes)
        api.check_model(body.model)
        reply = EmbeddingsReply(api.engine, body, await tokens_of_texts(api.engine, api.encoder, body))
        await hold_so_many(request, reply.num_tokens)
        with api.admission.admitted(1):
            request.state.reply = reply
            if (whole := await unless_departed(request, reply.completion(api.settings.max_seconds))) is not None:
                return JSONResponse(whole.model_dump())
        return Response(status_code=CLIENT_CLOSED_REQUEST)
