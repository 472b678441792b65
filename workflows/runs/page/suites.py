"""The suites of a scorecard as a table: each model's points, as a whole and by slice."""

from collections.abc import Iterator
from dataclasses import dataclass

from workflows.scorecard.records import Compared, ModelScore, Scorecard, SuiteFigures
from workflows.scorecard.words import value

_TITLES = {"base": "base", "service": "in service", "tuned": "checkpoint"}
_MAX_OPEN_ROWS = 40


@dataclass(frozen=True)
class SuiteCell:
    """A model's points."""

    mean: str
    interval: str
    """empty where there is none"""
    failed: int


@dataclass(frozen=True)
class SuiteRow:
    """A suite or a slice of it."""

    name: str
    items: int
    cells: list[SuiteCell | None]
    """a cell for each model of the table"""


@dataclass(frozen=True)
class SuiteRows:
    """A suite with its slices."""

    whole: SuiteRow
    slices: list[SuiteRow]
    scorer: str
    golden: bool
    leaked: int
    """items that stand in the conversations trained on"""


@dataclass(frozen=True)
class SuiteTable:
    """All suites."""

    models: list[str]
    suites: list[SuiteRows]
    is_open: bool
    """whether slices are shown at first"""


def suite_table(card: Scorecard) -> SuiteTable | None:
    """The table of a scorecard; None if it has no suites."""
    if not card.suites:
        return None
    scored = {score.model for suite in card.suites for score in suite.scores}
    models = [model for model in _TITLES if model in scored]
    suites = [
        SuiteRows(_whole(suite, models), list(_slices(card, suite, models)), suite.scorer, suite.golden, suite.leaked)
        for suite in card.suites
    ]
    rows = sum(1 + len(suite.slices) for suite in suites)
    return SuiteTable([_TITLES[model] for model in models], suites, rows <= _MAX_OPEN_ROWS)


def _whole(suite: SuiteFigures, models: list[str]) -> SuiteRow:
    scores = {score.model: score for score in suite.scores}
    cells = [_cell(scores[model], suite.unit) if model in scores else None for model in models]
    return SuiteRow(suite.name, suite.items, cells)


def _cell(score: ModelScore, unit: str) -> SuiteCell:
    has_interval = score.low is not None and score.high is not None
    ends = f"{value(score.low or 0.0, unit)} to {value(score.high or 0.0, unit)}" if has_interval else ""
    return SuiteCell(value(score.mean, unit), ends, score.failed)


def _slices(card: Scorecard, suite: SuiteFigures, models: list[str]) -> Iterator[SuiteRow]:
    """The slices, from the comparisons: they have no intervals of one model alone."""
    found = [each for each in card.comparisons if each.measure == suite.name and each.slice is not None]
    for name in dict.fromkeys(each.slice or "" for each in found):
        means: dict[str, Compared] = {each.against: each for each in found if each.slice == name}
        first = next(iter(means.values()))
        values = {**{model: each.other for model, each in means.items()}, "tuned": first.tuned}
        cells = [SuiteCell(value(values[model], suite.unit), "", 0) if model in values else None for model in models]
        yield SuiteRow(name, first.items, cells)
