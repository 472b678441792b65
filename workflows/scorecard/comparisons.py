"""The checkpoint compared with other models: by the held-out loss, by each suite, and by slices of them.

measures = [held_out_measure(rows, names), ...]
compared = compare_all(measures, ["base", "service"], confidence=0.95)
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from models.statistics.comparison import Comparison, compare
from workflows.scorecard.records import AskedQuestion, Compared
from workflows.scorecard.worker import TUNED, ScoreRow

HELD_OUT_LOSS = "held-out loss"
PREFERENCE_ACCURACY = "preference accuracy"
FACTS = "facts"

Unit = Literal["share", "nats", "number"]

# Fewer items cannot show a difference at a confidence of 95 %, even if all of them differ.
_MIN_SLICE = 6


@dataclass(frozen=True)
class Measure:
    """Scores of the compared models on the same items; all lists are as long as there are items."""

    name: str
    unit: Unit
    scores: Mapping[str, Sequence[float]]
    """by model"""
    clusters: Sequence[str]
    """what belongs together: conversations of a user, items of a group"""
    tags: Sequence[Mapping[str, str]]
    """which slices an item belongs to"""
    weights: Sequence[float] | None = None
    lower_is_better: bool = False
    golden: bool = False


@dataclass(frozen=True)
class ModelComparison:
    """The checkpoint and another model, by one measure or by a slice of it."""

    measure: Measure
    against: str
    statistics: Comparison
    slice: str | None = None
    """such as `topic=returns`; None for all items"""

    @property
    def record(self) -> Compared:
        """As JSON has it; infinite numbers are left out."""
        found = self.statistics
        return Compared(
            measure=self.measure.name,
            slice=self.slice,
            against=self.against,
            unit=self.measure.unit,
            lower_is_better=self.measure.lower_is_better,
            golden=self.measure.golden,
            items=found.items,
            clusters=found.clusters,
            other=_rounded(found.first),
            tuned=_rounded(found.second),
            difference=_rounded(found.difference),
            low=finite(found.low),
            high=finite(found.high),
            p_value=found.p_value,
            smallest=finite(found.smallest),
            confidence=found.confidence,
        )


def held_out_measure(rows: Sequence[ScoreRow], names: Sequence[str] = ()) -> Measure:
    """The losses of the held-out conversations, in nats a token; `names` of the source of each file."""
    models = [model for model in rows[0]["losses"] if all(model in row["losses"] for row in rows)]
    return Measure(
        name=HELD_OUT_LOSS,
        unit="nats",
        scores={model: [row["losses"][model] / row["targets"] for row in rows] for model in models},
        clusters=[_cluster(row) for row in rows],
        tags=[_tags(row, names) for row in rows],
        weights=[row["targets"] for row in rows],
        lower_is_better=True,
    )


def preference_measure(pairs: Sequence[ScoreRow], names: Sequence[str] = ()) -> Measure:
    """Whether training favours the chosen reply of each held-out pair, where the base model stands for a coin."""
    return Measure(
        name=PREFERENCE_ACCURACY,
        unit="share",
        scores={"base": [0.5] * len(pairs), TUNED: [float((row["margin"] or 0.0) > 0) for row in pairs]},
        clusters=[_cluster(row) for row in pairs],
        tags=[_tags(row, names) for row in pairs],
    )


def facts_measure(questions: Sequence[AskedQuestion], service: Sequence[int] | None) -> Measure:
    """The facts of `evaluate.questions`; `service`: those that the release in service has right."""
    facts = [len(item.facts) for item in questions]
    right = {"base": [item.base_facts for item in questions], TUNED: [item.tuned_facts for item in questions]}
    if service is not None:
        right["service"] = [*service]
    return Measure(
        name=FACTS,
        unit="share",
        scores={
            model: [count / number for count, number in zip(counts, facts, strict=True)]
            for model, counts in right.items()
        },
        clusters=[str(place) for place in range(len(questions))],
        tags=[{}] * len(questions),
        weights=facts,
    )


def compare_all(measures: Sequence[Measure], others: Sequence[str], confidence: float) -> list[ModelComparison]:
    """Every measure and every slice, against each of the other models that has scores."""
    return [
        found
        for measure in measures
        for other in others
        if other in measure.scores
        for found in _compare(measure, other, confidence)
    ]


def _compare(measure: Measure, other: str, confidence: float) -> Iterator[ModelComparison]:
    everything = list(range(len(measure.clusters)))
    yield ModelComparison(measure, other, _statistics(measure, other, everything, confidence))
    for name, places in _slices(measure.tags).items():
        yield ModelComparison(measure, other, _statistics(measure, other, places, confidence), name)


def _statistics(measure: Measure, other: str, places: Sequence[int], confidence: float) -> Comparison:
    return compare(
        [measure.scores[other][place] for place in places],
        [measure.scores[TUNED][place] for place in places],
        [measure.clusters[place] for place in places],
        None if measure.weights is None else [measure.weights[place] for place in places],
        confidence,
        lower_is_better=measure.lower_is_better,
    )


def _slices(tags: Sequence[Mapping[str, str]]) -> dict[str, list[int]]:
    """The places of the items of each slice that has enough of them; a key that all items share is no slice."""
    found: dict[str, list[int]] = {}
    for place, each in enumerate(tags):
        for key, value in each.items():
            found.setdefault(f"{key}={value}", []).append(place)
    return {name: places for name, places in sorted(found.items()) if _MIN_SLICE <= len(places) < len(tags)}


def _cluster(row: ScoreRow) -> str:
    group = row.get("group")
    return f"group {group}" if group is not None else f"{row.get('source')}:{row.get('line')}"


def _tags(row: ScoreRow, names: Sequence[str]) -> dict[str, str]:
    tags = {"source": names[row["source"]]} if names else {}
    return {**tags, "language": str(row["language"])} if row.get("language") else tags


def _rounded(value: float) -> float:
    return round(value, 6)


def finite(value: float) -> float | None:
    """As JSON has it: None for an infinite number."""
    return round(value, 6) if math.isfinite(value) else None
