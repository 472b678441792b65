"""The routes that describe the endpoint: its models, version, load, tokenizer, health and metrics."""

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from serve.api import openapi
from serve.api.context import ApiContext
from serve.api.small_routes import Load, TokenizerInfo, Version, load_of, tokenizer_info, version_of
from serve.api.watch import Watch
from serve.protocol.responses import Health, Model, ModelList


def add_status_routes(app: FastAPI, api: ApiContext, watch: Watch) -> None:
    """GET /v1/models, /version, /load, /tokenizer_info, /ping, /health and /metrics."""

    @app.get("/v1/models", **openapi.MODELS)
    async def models() -> ModelList:
        return ModelList(data=list(api.models.values()))

    @app.get("/v1/models/{name:path}", **openapi.MODEL)
    async def one_model(name: str) -> Model:
        api.check_model(name)
        return api.models[name]

    @app.get("/version", **openapi.VERSION)
    async def version() -> Version:
        return version_of(api.release_key)

    @app.get("/load", **openapi.LOAD)
    async def load() -> Load:
        return load_of(api.engine)

    @app.get("/tokenizer_info", **openapi.TOKENIZER)
    async def about_tokenizer() -> TokenizerInfo:
        return tokenizer_info(api.tokenizer, api.engine)

    @app.get("/ping", **openapi.HEALTH)
    async def ping() -> Response:
        return await health()

    @app.get("/health", **openapi.HEALTH)
    async def health() -> Response:
        problem, model_name = watch.problem(), next(iter(api.models))
        body = Health(
            status="failed" if problem else "ok", model=model_name, release=api.release_key, problem=problem
        )
        return JSONResponse(body.model_dump(exclude_none=True), 503 if problem else 200)

    @app.get("/metrics", **openapi.METRICS)
    async def all_metrics() -> Response:
        return Response(api.metrics.text(), media_type=CONTENT_TYPE_LATEST)
