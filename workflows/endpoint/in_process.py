"""The endpoint's code in this process: an engine answers requests as it would behind the endpoint's address.

endpoint = InProcessEndpoint(engine, tokenizer)
response = await endpoint.post("/v1/chat/completions", {"model": "model", "messages": [...]})
await endpoint.close()
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

    from serve.engines.base import Engine

_NO_LIMIT = 1_000_000
_MAX_SECONDS = 86_400.0


class InProcessEndpoint:
    """An engine with the endpoint's application. It belongs to the event loop of the first request."""

    def __init__(
        self, engine: "Engine", tokenizer: Any, model_name: str = "model", max_queued_requests: int = _NO_LIMIT
    ) -> None:
        """`engine` stays the caller's, to close after the endpoint. `model_name`: as requests name the model."""
        import httpx

        from serve.api.routes import create_app
        from serve.api.settings import ApiSettings

        settings = ApiSettings(max_queued_requests=max_queued_requests, max_seconds=_MAX_SECONDS)
        self._app = create_app(engine, tokenizer, model_name, settings=settings)
        transport = httpx.ASGITransport(app=self._app)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://endpoint", timeout=None)

    async def post(self, route: str, body: Any) -> "httpx.Response":
        """The response to a request with this JSON body."""
        return await self._client.post(route, json=body)

    async def close(self) -> None:
        """End the application's own tasks."""
        await self._client.aclose()
        self._app.state.watch.close()
