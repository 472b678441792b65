"""Comparisons as a forest plot: for each measure and slice, the difference between two models with its interval.

forest = forest_of(scorecard.comparisons, "base")
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from workflows.scorecard.records import Compared
from workflows.scorecard.words import items_of, percent, smallest, value

# Slices of more comparisons are folded, except for those with a slice that is worse.
_MAX_OPEN_ROWS = 40

Outcome = Literal["better", "worse", "unclear"]


@dataclass(frozen=True)
class ForestRow:
    """A measure or a slice of it. Places are in percent of the plot's width; the middle is no difference."""

    name: str
    items: str
    other: str
    tuned: str
    difference: str
    interval: str
    """empty if the items cannot say"""
    smallest: str
    outcome: Outcome
    point: float
    low: float | None
    """the left end; right of the middle is better, also where a lower value is"""
    high: float | None

    @property
    def width(self) -> float:
        """Of the interval."""
        return 0.0 if self.low is None or self.high is None else round(self.high - self.low, 2)


@dataclass(frozen=True)
class ForestGroup:
    """A measure and its slices."""

    name: str
    whole: ForestRow | None
    """None if there are rows of slices alone"""
    slices: list[ForestRow]
    golden: bool
    lower_is_better: bool
    scale: str
    """what the right end of the plot stands for; empty for a share"""
    is_open: bool


@dataclass(frozen=True)
class Forest:
    """All comparisons with one other model."""

    groups: list[ForestGroup]
    share_scale: str
    """what the right end stands for, in all rows of shares"""
    confidence: str


def forest_of(comparisons: Sequence[Compared], against: str) -> Forest | None:
    """The comparisons with the model `against`; None if there are none."""
    found = [each for each in comparisons if each.against == against]
    if not found:
        return None
    measures = dict.fromkeys(each.measure for each in found)
    groups = [[each for each in found if each.measure == measure] for measure in measures]
    share_reach = _reach(each for each in found if each.unit == "share")
    return Forest(
        groups=[
            _group(group, share_reach if group[0].unit == "share" else _reach(group), len(found) <= _MAX_OPEN_ROWS)
            for group in groups
        ],
        share_scale=_signed(share_reach, "share") + _OF_DIFFERENCES["share"],
        confidence=percent(found[0].confidence),
    )


def _group(compared: Sequence[Compared], reach: float, is_short: bool) -> ForestGroup:
    first = compared[0]
    whole = next((each for each in compared if each.slice is None), None)
    slices = [each for each in compared if each.slice is not None]
    return ForestGroup(
        name=first.measure,
        whole=_row(whole, whole.measure, reach) if whole else None,
        slices=[_row(each, each.slice or "", reach) for each in slices],
        golden=first.golden,
        lower_is_better=first.lower_is_better,
        scale="" if first.unit == "share" else _signed(reach, first.unit) + _OF_DIFFERENCES[first.unit],
        is_open=is_short or whole is None or any(each.is_worse for each in slices),
    )


def _reach(compared: Iterable[Compared]) -> float:
    """The largest distance from no difference."""
    ends = [abs(end) for each in compared for end in (each.low, each.high, each.difference) if end is not None]
    return max(ends, default=0.0) or 1.0


def _row(compared: Compared, name: str, reach: float) -> ForestRow:
    sign = -1 if compared.lower_is_better else 1
    has_interval = compared.low is not None and compared.high is not None
    ends = sorted(_place(sign * end, reach) for end in (compared.low, compared.high) if end is not None)
    unit = compared.unit
    return ForestRow(
        name=name,
        items=items_of(compared),
        other=value(compared.other, unit),
        tuned=value(compared.tuned, unit),
        difference=_signed(compared.difference, unit) + _OF_DIFFERENCES[unit],
        interval=f"{_signed(compared.low, unit)} to {_signed(compared.high, unit)}"
        if compared.low is not None and compared.high is not None
        else "",
        smallest=smallest(compared),
        outcome="worse" if compared.is_worse else "better" if compared.is_shown else "unclear",
        point=_place(sign * compared.difference, reach),
        low=ends[0] if has_interval else None,
        high=ends[1] if has_interval else None,
    )


_OF_DIFFERENCES = {"share": " points", "nats": " nats", "number": ""}


def _place(gain: float, reach: float) -> float:
    return round(50 + 48 * gain / reach, 2)


def _signed(number: float, unit: str) -> str:
    return ("-" if number < 0 else "+") + value(abs(number), unit).removesuffix(" %")
