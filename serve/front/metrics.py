"""The metrics of all replicas as one page, and the front's own. In Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families


class MetricsOfAll:
    """What the front counts itself: what never came to a replica, or back."""

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
        """A request was answered here, without a replica."""
        self._refused.labels(str(status)).inc()

    def retried(self) -> None:
        """A request goes to a replica once more."""
        self._retried.inc()

    def cut(self) -> None:
        """A stream ended with an error."""
        self._cut.inc()

    def text(self, replicas: dict[str, str]) -> bytes:
        """The front's, and those of `replicas` (their pages by address), each sample with its replica's address."""
        return generate_latest(self._registry) + generate_latest(_Joined(replicas))

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(f"rayconteur_{name}", words, labels, registry=self._registry)


class _Joined(CollectorRegistry):
    """The families of several pages; a family stands once, with the samples of all."""

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
