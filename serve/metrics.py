"""The metrics of one replica, for Prometheus; the front merges those of all replicas (serve/front/metrics.py)."""

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serve.engines.base import Engine

_FIRST_SECONDS = (0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_BETWEEN_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0)


class Spread:
    """A histogram for per-token events: prometheus_client's takes locks, and ten times as long."""

    def __init__(self, name: str, words: str, bounds: Sequence[float]) -> None:
        self.count = 0
        self._name, self._words, self._bounds = name, words, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one value."""
        self.count += 1
        self._sum += seconds
        self._counts[bisect_left(self._bounds, seconds)] += 1

    def family(self) -> HistogramMetricFamily:
        """The histogram in Prometheus' form."""
        upper = [*map(str, map(float, self._bounds)), "+Inf"]
        buckets = list(zip(upper, accumulate(self._counts), strict=True))
        return HistogramMetricFamily(f"rayconteur_{self._name}", self._words, buckets=buckets, sum_value=self._sum)


class _Spreads(Collector):
    """Collects the per-token metrics."""

    def __init__(self, metrics: "Metrics") -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        first, between = self._metrics.first_token, self._metrics.between_tokens
        yield first.family()
        yield between.family()
        yield CounterMetricFamily("rayconteur_reply_tokens", "Tokens generated.", value=self._metrics.num_tokens())


class Metrics:
    """The metrics of one replica; in seconds and tokens."""

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
        """The number of tokens generated so far."""
        return self.first_token.count + self.between_tokens.count

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _made(self, kind: Any, name: str, words: str, labels: Any = (), **options: Any) -> Any:
        return kind(f"rayconteur_{name}", words, labels, registry=self._registry, **options)


class TokenClock:
    """Measures the times between the tokens of one reply, from its creation on."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._last = time.monotonic()
        self._is_first = True

    def token(self) -> None:
        """Count one token."""
        before, self._last = self._last, time.monotonic()
        metrics = self._metrics
        (metrics.first_token if self._is_first else metrics.between_tokens).add(self._last - before)
        self._is_first = False
