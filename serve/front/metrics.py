"""The metrics of all replicas and of the front as one page, in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families


class MetricsOfAll:
    """The front's own counters: requests that no replica answered."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._refused = self._counter(
            "front_refused", "Requests that the front answered itself, by status.", "status"
        )
        self._retried = self._counter("front_retried", "Requests sent again because their replica was gone.")
        self._cut = self._counter(
            "front_streams_cut", "Streams that ended with an error since their replica was gone."
        )

    def refused(self, status: int) -> None:
        """Count a request that the front answered itself."""
        self._refused.labels(str(status)).inc()

    def retried(self) -> None:
        """Count a request that is sent to a replica again."""
        self._retried.inc()

    def cut(self) -> None:
        """Count a stream that ended with an error."""
        self._cut.inc()

    def text(self, replicas: dict[str, str]) -> bytes:
        """The front's metrics, and those of `replicas` (pages by address), each sample labeled with its replica's
        address.
        """
        return generate_latest(self._registry) + generate_latest(_Joined(replicas))

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(f"rayconteur_{name}", words, labels, registry=self._registry)


class _Joined(CollectorRegistry):
    """The metric families of several pages, merged: each family once, with the samples of all pages."""

    def __init__(self, pages: dict[str, str]) -> None:
        super().__init__()
        families: dict[str, Metric] = {}
        for address, page in pages.items():
            for family in text_string_to_metric_families(page):
                joined = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    labels = {**sample.labels, "replica": address}
                    joined.add_sample(sample.name, labels, sample.value, exemplar=sample.exemplar)
        self._families = list(families.values())

    def collect(self) -> "list[Metric]":
        return self._families
