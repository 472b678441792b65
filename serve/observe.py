"""What the endpoint tells of itself: Prometheus metrics, and a log line for each request. Never what was said.

Metrics are of one replica; serve/front.py answers with those of all.
"""

import json
import logging
import re
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.engines.base import Engine

if TYPE_CHECKING:
    from serve.completion import Reply

logger = logging.getLogger("rayconteur.requests")

REQUEST_ID = "x-request-id"
DIRECT = "rayconteur.direct"
"""in a request's scope: the server's own `send`, for the many pieces of a stream after its headers"""
_GIVEN_ID = re.compile(r"[!-~]{1,128}")
_FIRST_SECONDS = (0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BETWEEN_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0)


class Spread:
    """A histogram for what happens at every token: prometheus_client's takes locks, and ten times as long."""

    def __init__(self, name: str, words: str, bounds: Sequence[float]) -> None:
        self.count = 0
        self._name, self._words, self._bounds = name, words, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.count += 1
        self._sum += seconds
        self._counts[bisect_left(self._bounds, seconds)] += 1

    def family(self) -> HistogramMetricFamily:
        """In Prometheus' terms."""
        upper = [*map(str, map(float, self._bounds)), "+Inf"]
        buckets = list(zip(upper, accumulate(self._counts), strict=True))
        return HistogramMetricFamily(f"rayconteur_{self._name}", self._words, buckets=buckets, sum_value=self._sum)


class _Spreads(Collector):
    """What is counted at every token."""

    def __init__(self, metrics: "Metrics") -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        first, between = self._metrics.first_token, self._metrics.between_tokens
        yield first.family()
        yield between.family()
        yield CounterMetricFamily("rayconteur_reply_tokens", "Tokens generated.", value=self._metrics.num_tokens())


class Metrics:
    """The figures of one endpoint, in Prometheus' terms; seconds and tokens."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._made(Counter, "requests", "Requests, by route and status.", ["route", "status"])
        self.first_token = Spread("time_to_first_token_seconds", "From a request to its first token.", _FIRST_SECONDS)
        self.between_tokens = Spread("time_between_tokens_seconds", "From a token to the next.", _BETWEEN_SECONDS)
        self._registry.register(_Spreads(self))
        self.prompt_tokens = self._made(Counter, "prompt_tokens", "Tokens of prompts that were replied to.")
        active = self._made(Gauge, "replies_active", "Replies that are generated now.")
        active.set_function(lambda: engine.health().num_active)
        waiting = self._made(Gauge, "replies_waiting", "Replies that wait for the engine.")
        waiting.set_function(lambda: engine.health().num_waiting)
        self._made(Gauge, "slots", "Replies that the engine generates at once.").set(engine.max_active)
        cache = self._made(
            Gauge, "cache_used_ratio", "Share of the key-value cache that open replies take or may need."
        )
        cache.set_function(lambda: engine.health().cache_used)

    def num_tokens(self) -> int:
        """Generated so far."""
        return self.first_token.count + self.between_tokens.count

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)

    def _made(self, kind: Any, name: str, words: str, labels: Any = (), **options: Any) -> Any:
        return kind(f"rayconteur_{name}", words, labels, registry=self._registry, **options)


def request_id_of(given: str | None) -> str:
    """The client's own, if it is printable and has at most 128 characters, else a new one."""
    return given if given is not None and _GIVEN_ID.fullmatch(given) else f"req-{uuid4().hex}"


def write_log() -> None:
    """Write the lines of requests to standard error: Ray keeps it, in the file of this process under its logs."""
    top = logging.getLogger("rayconteur")
    top.setLevel(logging.INFO)
    if not top.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        top.addHandler(handler)


class TokenClock:
    """Times the tokens of one reply from the moment that it is made."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._last = time.monotonic()
        self._is_first = True

    def token(self) -> None:
        """There is one more."""
        before, self._last = self._last, time.monotonic()
        metrics = self._metrics
        (metrics.first_token if self._is_first else metrics.between_tokens).add(self._last - before)
        self._is_first = False


class RequestLog:
    """ASGI middleware: an id for each request, which is in the answer's headers and in the log line at its end."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID)
        request_id = request_id_of(given)
        scope[DIRECT] = send
        began = time.perf_counter()
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._tell(scope, request_id, status, time.perf_counter() - began)

    def _tell(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        state = scope.get("state", {})
        reply: Reply | None = state.get("reply")
        line: dict[str, Any] = {"id": request_id, "method": scope["method"], "path": scope["path"][:200]}
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
