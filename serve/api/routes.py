"""The HTTP API over any engine: OpenAI's routes, health, metrics, the OpenAPI document and the chat page.

app = create_app(engine, tokenizer, "my-model", release_key="3f2a")
uvicorn.run(app)

The routes are in generation_routes.py, text_routes.py and status_routes.py; their limits in settings.py.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, Response

from serve.access.api_keys import KeyRing
from serve.access.middleware import ApiKeyMiddleware
from serve.access.rate_limits import Limits
from serve.api import openapi
from serve.api.admission import Admission
from serve.api.chat_page import chat_page
from serve.api.context import ApiContext, served_models
from serve.api.generation_routes import add_generation_routes
from serve.api.request_log import RequestLog
from serve.api.settings import ApiSettings
from serve.api.status_routes import add_status_routes
from serve.api.text_routes import add_text_routes
from serve.api.watch import Watch
from serve.engines.base import Engine
from serve.knowledge.retrieval import Knowledge
from serve.metrics import Metrics
from serve.protocol import errors
from serve.replies.prompt import PromptEncoder
from serve.replies.reranker import Reranker


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
    knowledge: Knowledge | None = None,
) -> FastAPI:
    """The endpoint over `engine`.

    With `keys`, requests need one of them, and `limits` counts what each key uses. `reranker` chooses one of several
    replies for requests with `best_of`. Of `knowledge`, the prompt of a chat has the passages that it is about.
    """
    settings = settings or ApiSettings()
    api = ApiContext(
        engine=engine,
        tokenizer=tokenizer,
        encoder=PromptEncoder(tokenizer, engine, settings.max_new_tokens, knowledge),
        models=served_models(engine, model_name),
        release_key=release_key,
        settings=settings,
        metrics=Metrics(engine),
        admission=Admission(engine.max_active + settings.max_queued_requests),
        reranker=reranker,
    )
    app = _empty_app()
    errors.install(app)
    if keys is not None:
        app.add_middleware(ApiKeyMiddleware, keys=keys, limits=limits or Limits())
    app.add_middleware(RequestLog, metrics=api.metrics)
    app.state.watch = _watch(api)
    add_generation_routes(app, api)
    add_text_routes(app, api)
    add_status_routes(app, api, app.state.watch)
    _add_chat_page(app)
    openapi.complete(app, list(api.models), has_keys=keys is not None)
    _add_openapi_document(app)
    return app


def _empty_app() -> FastAPI:
    return FastAPI(
        title="Rayconteur",
        version="1",  # of the API, as in its paths
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )


def _watch(api: ApiContext) -> Watch:
    watch = Watch(api.engine, api.metrics.num_tokens, api.settings.max_seconds)
    for part, ask in api.encoder.parts().items():
        watch.add(part, ask)
    return watch


def _add_chat_page(app: FastAPI) -> None:
    page, policy = chat_page()

    @app.get("/", **openapi.PAGE)
    async def page_of_chat() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})


def _add_openapi_document(app: FastAPI) -> None:
    @app.get("/openapi.json", include_in_schema=False)
    async def document(version: str = openapi.VERSIONS[0]) -> Response:
        return JSONResponse(openapi.document(app, version))
