"""The records of a search: its trials, their reports, and the leader. Imports neither Ray nor torch.

<store>/tune/<key>/search.json              the whole search, written again while it runs
<store>/trials/<key>/trial_<search>.json    one trial, found by its settings, as one search has recorded it
<store>/trials/<key>/trial.json             the same, by earlier versions
<store>/trials/<key>/checkpoint_*/          what a trial can go on from (workflows/search/checkpoints.py)

Searches share trials. Each writes only its own records, so none can shorten another one's, and reads all of them.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

from models.training.report import Report
from workflows.search.pareto import Point, front
from workflows.spec.constraints import broken
from workflows.spec.space import Values
from workflows.spec.tune import SUITE
from workflows.store import Store

TRIALS = "trials"
SEARCH_FILE = "search.json"
_CHECKPOINT = "checkpoint_"

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
    excluded: list[int] = field(default_factory=list)
    """the steps of its reports that break `tune.constraints`"""
    retry: bool = True
    """after a failure: whether the next search tries it again, because it lost workers or lacked resources"""
    added: str = ""
    """of a trial that somebody has added to the running search: how"""
    is_stopped_by_hand: bool = False
    """whether somebody has stopped it"""

    def __post_init__(self) -> None:
        self._bests: dict[str, tuple[int, Report | None]] = {}

    @property
    def last(self) -> Report | None:
        """Its latest report."""
        return self.reports[-1] if self.reports else None

    def best(self, metric: str) -> Report | None:
        """Its best report by `metric`, the earliest of equal ones; None without a finite value."""
        seen, best = self._bests.get(metric, (0, None))
        count = len(self.reports)  # another thread may add to them
        for report in self.reports[seen:count]:
            value = report.figures.get(metric, math.nan)
            if not math.isfinite(value) or report.step in self.excluded:
                continue
            if best is None or badness(metric, value) < badness(metric, best.figures[metric]):
                best = report
        self._bests[metric] = (count, best)
        return best

    def point(self, metrics: list[str]) -> Point | None:
        """What Pareto fronts compare: all metrics of its best report by the first one, smaller is better; None if one
        has no finite value.
        """
        report = self.best(metrics[0])
        values = [report.figures.get(metric, math.nan) for metric in metrics] if report else [math.nan]
        if not all(map(math.isfinite, values)):
            return None
        return tuple(badness(metric, value) for metric, value in zip(metrics, values, strict=True))


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
class OnProxy:
    """The search on a small model, whose region of best trials a search has as its space."""

    base_model: str
    search: str
    """its key"""
    trials: int
    """of it, those that have reported"""
    best: int
    """of these, those that span the region"""
    first: Values
    """the settings of the best one, with which the base model begins"""
    rate_factor: float = 1.0
    """what the region's learning rates were multiplied by, for the width of the base model"""


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
    proxy: OnProxy | None = None
    """with `tune.proxy`"""
    constraints: list[str] = field(default_factory=list)
    """`tune.constraints`"""
    expected_gain: float | None = None
    """with `tune.min_gain`: what further trials are expected to gain for the tokens of a whole training"""
    min_gain: float | None = None
    """`tune.min_gain`, if it has ended the search"""
    measure: str = ""
    """the same for searches whose metrics measure the same: the same model on the same conversations"""
    price_per_hour: float | None = None
    """dollars for an hour of the nodes that its trials use; None if it is not known"""
    spent_before: float = 0.0
    """dollars, by earlier starts of the search"""
    max_cost: float | None = None
    """`tune.max_cost`"""
    cost_with_another: float | None = None
    """if `tune.max_cost` has ended the search: what it was expected to cost with another trial"""
    stopped_by_cost: bool = False
    """whether trials were stopped because of `tune.max_cost`"""

    @property
    def spent(self) -> float | None:
        """Dollars, with those of earlier starts of the search; None if no price is known."""
        return None if self.price_per_hour is None else self.spent_before + self.price_per_hour * self.seconds / 3600

    def leader(self) -> tuple[Trial, Report] | None:
        """The winner and its report, if it is known; else the best report of all trials by the first metric."""
        if (won := self.winner) is not None:
            trials = [trial for trial in self.trials if (trial.number, trial.key) == (won.trial, won.key)]
            found = [(trial, report) for trial in trials for report in trial.reports if report.step == won.step]
            if found:
                return found[0]
        bests = ((trial, report) for trial in self.trials if (report := trial.best(self.metrics[0])))
        return min(bests, key=lambda pair: _rank(pair, self.metrics[0]), default=None)

    def front(self) -> list[tuple[Trial, Report]]:
        """With several metrics: the trials that no other beats in all (Pareto front), sorted by the first one.

        Each trial counts with its best report by the first metric.
        """
        metric = self.metrics[0]
        points = [(point, trial) for trial in self.trials if (point := trial.point(self.metrics)) is not None]
        return [(trial, report) for _, trial in front(points) if (report := trial.best(metric)) is not None]


def badness(metric: str, value: float) -> float:
    """A number that is smaller for a better value of the metric, for sorting."""
    return -value if higher_is_better(metric) else value


def compared_badness(metric: str, figures: Mapping[str, float], constraints: Sequence[str]) -> float:
    """`badness` of a report as schedulers and searchers compare it: infinity if the metric is no finite number, or if
    the report breaks a constraint.
    """
    value = figures.get(metric, math.nan)
    return badness(metric, value) if math.isfinite(value) and not broken(constraints, figures) else math.inf


def ranking(trials: Iterable[Trial], metric: str) -> list[tuple[Trial, Report]]:
    """The best report of each trial, best first; of equal ones, the earliest of the lowest number."""
    found = [(trial, report) for trial in trials if (report := trial.best(metric))]
    return sorted(found, key=lambda pair: _rank(pair, metric))


def _rank(pair: tuple[Trial, Report], metric: str) -> tuple[float, int]:
    trial, report = pair
    return badness(metric, report.figures[metric]), trial.number


def trial_folder(store: Store, key: str) -> str:
    """The folder of a trial's checkpoints, on the store's filesystem."""
    return store.path(TRIALS, key)


def read_trial(store: Store, key: str) -> Trial | None:
    """The longest record of a trial with these settings, of any search; None if there is none.

    Its reports name only checkpoints whose folders are there.
    """
    entries = store.entries(TRIALS, key)
    folders = {info.base_name for info in entries if info.base_name.startswith(_CHECKPOINT)}
    paths = [info.path for info in entries if info.extension == "json" and info.base_name.startswith("trial")]
    texts = [text for text in store.read_texts(paths) if text]
    records: list[Trial] = [_reader(Trial).validate_json(text) for text in texts]
    if not records:
        return None
    longest = max(records, key=lambda trial: (len(trial.reports), trial.state != RUNNING))
    for report in longest.reports:
        same = (other for record in records for other in record.reports
                if (other.step, other.figures) == (report.step, report.figures))  # fmt: skip
        there = (other.checkpoint for other in same if other.checkpoint in folders)
        report.checkpoint = report.checkpoint if report.checkpoint in folders else next(there, None)
    return longest


def write_trial(store: Store, search: str, trial: Trial) -> None:
    """Write a trial's record of a search, by its key."""
    store.write_file(store.path(TRIALS, trial.key, f"trial_{flat(search)}.json"), trial_text(trial).encode())


def record_checkpoint(store: Store, search: str, trial: Trial, report: Report) -> None:
    """Add the checkpoint of a report that stands in a trial's record already."""
    known = read_trial(store, trial.key) or trial
    reports = [report if other.step == report.step else other for other in known.reports]
    write_trial(store, search, replace(known, reports=reports))


def flat(search: str) -> str:
    """A search's key as part of a file's name: the small models' search of another one has a slash."""
    return search.replace("/", "_")


def read_search(store: Store, key: str) -> Search | None:
    """The record of a search, finished or not; None if it never started."""
    [text] = store.read_texts([store.path("tune", key, SEARCH_FILE)])
    return None if text is None else _reader(Search).validate_json(text)


def searches_of(store: Store, family: str) -> list[Search]:
    """The records of all searches that differ only in their budget."""
    texts = store.read_texts(store.path("tune", info.base_name, SEARCH_FILE) for info in store.folders("tune"))
    contents = [json.loads(text) for text in texts if text]
    return [_reader(Search).validate_python(one) for one in contents if one.get("family") == family]


def write_search(store: Store, search: Search, trials: Iterable[str] | None = None) -> None:
    """Write the record of a search; `trials` are the texts of `trial_text` for its trials, where they are known."""
    content = content_of(replace(search, trials=[]))
    del content["trials"]
    rest = json.dumps(content, ensure_ascii=False)
    texts = ",\n".join(map(trial_text, search.trials) if trials is None else trials)
    whole = f'{rest[:-1]}, "trials": [\n{texts}\n]}}\n'
    store.write_file(store.path("tune", search.key, SEARCH_FILE), whole.encode())


def trial_text(trial: Trial) -> str:
    """A trial as `write_search` writes it."""
    return json.dumps(content_of(trial), ensure_ascii=False)


def content_of(kept: Trial | Search) -> dict[str, object]:
    """Its JSON content, as `dataclasses.asdict` has it, which is slow for thousands of reports."""
    reader: TypeAdapter[Any] = _reader(Trial) if isinstance(kept, Trial) else _reader(Search)
    content: dict[str, object] = reader.dump_python(kept, warnings=False)
    return content


@cache
def _reader(kind: type[Kept]) -> TypeAdapter[Kept]:
    """Reads what this build or another one has written: unknown keys are ignored, missing ones get defaults."""
    return TypeAdapter(kind)
