"""The records of a search: its trials, their reports, and the leader. Imports neither Ray nor torch.

<store>/tune/<key>/search.json              the whole search, written again while it runs
<store>/trials/<key>/trial.json             one trial, found by its settings: searches share them
<store>/trials/<key>/checkpoint_<step>_<mark>/   what a trial can go on from; model/ in it is what can be served
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import TypeVar

from pydantic import TypeAdapter

from models.training.report import Report
from workflows.spec.space import Values
from workflows.spec.tune import SUITE
from workflows.store import Store

TRIALS = "trials"
SEARCH_FILE = "search.json"
TRIAL_FILE = "trial.json"

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"
"""of a trial: running, or interrupted with the search; trained to its end; ended by the scheduler or the time limit;
failed, with a reason
"""


def higher_is_better(metric: str) -> bool:
    """Whether a higher value of a metric is better."""
    return metric in ("held_out_accuracy", "held_out_margin") or metric.startswith(SUITE)


Kept = TypeVar("Kept", "Trial", "Search")
"""what the store keeps of a search"""


@dataclass
class Origin:
    """The trial that a member of a population has copied: it continued from that trial's checkpoint."""

    key: str
    number: int
    step: int


@dataclass
class Trial:
    """One training of a search. A population's member that copies another becomes a new trial."""

    number: int
    """its number in the search, from 0; a population's member keeps it"""
    key: str
    values: Values
    state: str = RUNNING
    reports: list[Report] = field(default_factory=list)
    origin: Origin | None = None
    error: str = ""
    """why it failed"""
    failures: int = 0
    """number of times that its workers were lost and it continued from its last checkpoint"""
    reused: int = 0
    """number of its reports that an earlier run had measured"""

    @property
    def last(self) -> Report | None:
        """Its latest report."""
        return self.reports[-1] if self.reports else None

    def best(self, metric: str) -> Report | None:
        """Its best report by `metric`, the earliest of equal ones; None without a finite value."""
        reports = [report for report in self.reports if math.isfinite(report.figures.get(metric, math.nan))]
        return min(reports, key=lambda report: badness(metric, report.figures[metric]), default=None)


@dataclass
class Winner:
    """The best report of all trials, and its metric measured again."""

    trial: int
    key: str
    step: int
    checkpoint: str
    reported: float
    remeasured: float


@dataclass
class Forecast:
    """What the small models of a search over mixtures predict."""

    sources: list[str]
    candidates: list[str]
    """what each trial of the base model is, by its number"""
    predicted: list[float]
    """the small model's held-out loss for each candidate"""
    measured_of_proxies: list[float]
    predicted_of_proxies: list[float]
    """of each small model that came to its end, by a regression fitted without it"""
    spearman: float
    """the rank correlation of these two"""


@dataclass
class Search:
    """A whole search; the display, the page and `rayconteur trials` show it."""

    pipeline: str
    key: str
    metrics: list[str]
    """the first one decides the winner"""
    space: Mapping[str, object]
    """dotted field -> its entry in the pipeline file"""
    searcher: str
    scheduler: str
    wanted: int | None
    """requested number of trials; None if only time limits the search"""
    trials: list[Trial] = field(default_factory=list)
    seconds: float = 0.0
    seconds_allowed: float | None = None
    at_once: int = 1
    """number of concurrent trials"""
    winner: Winner | None = None
    family: str = ""
    """the same for searches that differ only in their budget"""
    forecast: Forecast | None = None
    """of a search over mixtures"""

    def leader(self) -> tuple[Trial, Report] | None:
        """The best report of all trials by the first metric, and its trial."""
        return leader(self.trials, self.metrics[0])

    def front(self) -> list[tuple[Trial, Report]]:
        """With two metrics: the trials that no other beats in both (Pareto front), sorted by the first metric.

        Each trial counts with its best report by the first metric.
        """
        points = [(trial, report) for trial in self.trials if (report := trial.best(self.metrics[0]))]
        points = [pair for pair in points if all(metric in pair[1].figures for metric in self.metrics)]
        badnesses = [[badness(metric, report.figures[metric]) for metric in self.metrics] for _, report in points]
        free = [
            pair
            for pair, mine in zip(points, badnesses, strict=True)
            if not any(_dominates(other, mine) for other in badnesses)
        ]
        return sorted(free, key=lambda pair: badness(self.metrics[0], pair[1].figures[self.metrics[0]]))


def badness(metric: str, value: float) -> float:
    """A number that is smaller for a better value of the metric, for sorting."""
    return -value if higher_is_better(metric) else value


def leader(trials: Iterable[Trial], metric: str) -> tuple[Trial, Report] | None:
    """The best report of all trials, and its trial; of equal ones, the earliest of the lowest number."""
    found = [(trial, report) for trial in trials if (report := trial.best(metric))]
    return min(found, key=lambda pair: (badness(metric, pair[1].figures[metric]), pair[0].number), default=None)


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def trial_folder(store: Store, key: str) -> str:
    """The folder of a trial's checkpoints, on the store's filesystem."""
    return store.path(TRIALS, key)


def read_trial(store: Store, key: str) -> Trial | None:
    """The record of a trial with these settings, from this search or another one; None if there is none."""
    content = store.read_json(store.path(TRIALS, key, TRIAL_FILE))
    return None if content is None else _reader(Trial).validate_python(content)


def write_trial(store: Store, trial: Trial) -> None:
    """Write a trial's record."""
    store.write_json(store.path(TRIALS, trial.key, TRIAL_FILE), asdict(trial))


def read_search(store: Store, key: str) -> Search | None:
    """The record of a search, finished or not; None if it never started."""
    content = store.read_json(store.path("tune", key, SEARCH_FILE))
    return None if content is None else _reader(Search).validate_python(content)


def write_search(store: Store, search: Search) -> None:
    """Write the record of a search."""
    store.write_json(store.path("tune", search.key, SEARCH_FILE), asdict(search))


@cache
def _reader(kind: type[Kept]) -> TypeAdapter[Kept]:
    """Reads what this build or another one has written: unknown keys are ignored, missing ones get defaults."""
    return TypeAdapter(kind)
