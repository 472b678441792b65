"""What the endpoint tells of itself: Prometheus metrics, and a log line for each request. Never what was said.

Metrics are of one replica; serve/front.py answers with those of all.
"""

import json
import logging
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.engines.base import Engine

if TYPE_CHECKING:
    from serve.completion import Reply

logger = logging.getLogger("rayconteur.requests")

REQUEST_ID = "x-request-id"
_FIRST_SECONDS = (0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BETWEEN_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """The figures of one endpoint, in Prometheus' terms; seconds and tokens."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._made(Counter, "requests", "Requests, by route and status.", ["route", "status"])
        self.first_token = self._made(
            Histogram, "time_to_first_token_seconds", "From a request to its first token.", buckets=_FIRST_SECONDS
        )
        self.between_tokens = self._made(
            Histogram,
            "time_between_tokens_seconds",
            "From a token to the next.",
            buckets=_BETWEEN_SECONDS,
        )
        self.prompt_tokens = self._made(Counter, "prompt_tokens", "Tokens of prompts that were replied to.")
        self.reply_tokens = self._made(Counter, "reply_tokens", "Tokens generated.")
        active = self._made(Gauge, "replies_active", "Replies that are generated now.")
        active.set_function(lambda: engine.health().num_active)
        waiting = self._made(Gauge, "replies_waiting", "Replies that wait for the engine.")
        waiting.set_function(lambda: engine.health().num_waiting)
        self._made(Gauge, "slots", "Replies that the engine generates at once.").set(engine.max_active)
        cache = self._made(
            Gauge, "cache_used_ratio", "Share of the key-value cache that open replies take or may need."
        )
        cache.set_function(lambda: engine.health().cache_used)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)

    def _made(self, kind: Any, name: str, words: str, labels: Any = (), **options: Any) -> Any:
        return kind(f"rayconteur_{name}", words, labels, registry=self._registry, **options)


class TokenClock:
    """Times the tokens of one reply from the moment that it is made."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._last = time.perf_counter()
        self._is_first = True

    def token(self) -> None:
        """There is one more."""
        before, self._last = self._last, time.perf_counter()
        histogram = self._metrics.first_token if self._is_first else self._metrics.between_tokens
        histogram.observe(self._last - before)
        self._is_first = False
        self._metrics.reply_tokens.inc()


class RequestLog:
    """ASGI middleware: an id for each request, which is in the answer's headers and in the log line at its end.

    Ray Serve's proxy gives the id and puts it into the answer itself.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID)
        request_id = given or f"req-{uuid4().hex}"
        began = time.perf_counter()
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if given is None:
                    MutableHeaders(scope=message).append(REQUEST_ID, request_id)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._tell(scope, request_id, status, time.perf_counter() - began)

    def _tell(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        state = scope.get("state", {})
        reply: Reply | None = state.get("reply")
        line: dict[str, Any] = {"id": request_id[:200], "method": scope["method"], "path": scope["path"][:200]}
        if "caller" in state:
            line["key"] = state["caller"].name
        if reply is not None:
            usage = reply.usage()
            self._metrics.prompt_tokens.inc(usage.prompt_tokens)
            line |= {"reply": reply.id, "prompt_tokens": usage.prompt_tokens, "reply_tokens": usage.completion_tokens}
            status = reply.status  # a stream's headers are sent before it fails, or its client leaves
        route = getattr(scope.get("route"), "path", "none")  # not the path: anybody could make up names without end
        self._metrics.requests.labels(route, str(status)).inc()
        logger.info(json.dumps(line | {"status": status, "seconds": round(seconds, 4)}))
