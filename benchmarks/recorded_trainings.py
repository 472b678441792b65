"""Searches replayed from recorded trainings: our searchers and schedulers, driven as Ray Tune drives them.

table = read_table(Path("benchmarks/search_table.json.gz"))
replayed = replay(table, RandomRows(Pool(table, seed=0)), scheduler, at_once=2, budget=16 * table.whole)
replayed.at(8 * table.whole), replayed.until(loss=2.3)
"""

import gzip
import heapq
import json
import math
import random
import statistics
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from models.training.report import Report
from workflows.search.tpe import TpeSearch
from workflows.search.trial import RESULT, TOGETHER, TrialEvent, values_of
from workflows.spec import TpeSpec
from workflows.spec.space import Choice, Dimension, Values, dimension_of

METRIC = "held_out_loss"


@dataclass(frozen=True)
class Row:
    """A recorded training."""

    values: Values
    steps: list[int]
    tokens: list[int]
    losses: list[float]


@dataclass(frozen=True)
class Table:
    """All recorded trainings."""

    dimensions: dict[str, Dimension]
    rows: list[Row]

    @cached_property
    def whole(self) -> float:
        """Tokens of a whole training."""
        return statistics.median(row.tokens[-1] for row in self.rows)

    @cached_property
    def points(self) -> list[list[float]]:
        return [self.point(row.values) for row in self.rows]

    def point(self, values: Values) -> list[float]:
        """Settings as numbers from 0 to 1."""
        return [_unit(dimension, values[name]) for name, dimension in self.dimensions.items()]


def _unit(dimension: Dimension, value: Any) -> float:
    if isinstance(dimension, Choice):
        return dimension.values.index(value) / max(1, len(dimension.values) - 1)
    low, high = dimension.low, dimension.high
    if dimension.is_log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def read_table(file: Path) -> Table:
    content = json.loads(gzip.decompress(file.read_bytes()))
    dimensions = {name: dimension_of(entry) for name, entry in content["space"].items()}
    rows = [
        Row(row["values"], row["steps"], row["tokens"], [math.inf if x is None else x for x in row["losses"]])
        for row in content["trials"]
        if row["tokens"] and not row["failed"]
    ]
    return Table(dimensions, rows)


class Pool:
    """The trainings that a search has not tried."""

    def __init__(self, table: Table, seed: int) -> None:
        order = [*range(len(table.rows))]
        random.Random(seed).shuffle(order)
        self._table, self._untried = table, dict.fromkeys(order)

    def take(self, wanted: Values | None = None) -> Values | None:
        """The nearest one to these settings, or any; None if there are no more."""
        if not self._untried:
            return None
        found = next(iter(self._untried))
        if wanted is not None:
            at = self._table.point(wanted)
            found = min(self._untried, key=lambda each: math.dist(self._table.points[each], at))
        del self._untried[found]
        return self._table.rows[found].values


class RandomRows(Searcher):
    """Random settings of the table."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self._pool = pool

    def suggest(self, trial_id: str) -> Any:
        values = self._pool.take()
        return Searcher.FINISHED if values is None else {TOGETHER: values}

    def on_trial_result(self, trial_id: str, result: Any) -> None: ...

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None: ...


class TpeOfRows(TpeSearch):
    """Our searcher `tpe`, whose settings become those of the nearest training."""

    def __init__(self, pool: Pool, table: Table, seed: int) -> None:
        super().__init__(TpeSpec(multivariate=True), seed, table.dimensions, [METRIC], {})
        self._pool = pool

    def _ask(self, number: int) -> Values | None:
        asked = super()._ask(number)
        return None if asked is None else self._pool.take(asked)

    def _drawn(self, number: int) -> Values | None:
        return self._pool.take()


@dataclass(eq=False)
class Trial:
    """What a scheduler sees of a trial."""

    number: int
    row: Row

    @property
    def trial_id(self) -> str:
        return str(self.number)

    def __str__(self) -> str:
        return str(self.number)

    def result(self, index: int) -> dict[str, Any]:
        row = self.row
        figures = {METRIC: row.losses[index], "num_tokens": float(row.tokens[index])}
        report = Report(row.steps[index], row.steps[-1], figures)
        event = TrialEvent(str(self.number), row.values, None, report)
        return {"step": row.steps[index], METRIC: row.losses[index], RESULT: event}


class Controller:
    """What a scheduler asks of Tune."""

    def get_live_trials(self) -> list[Any]:
        return []


@dataclass
class Replayed:
    """The course of a search."""

    spent: list[float] = field(default_factory=list)
    """tokens, at each report"""
    best: list[float] = field(default_factory=list)
    trials: int = 0

    def at(self, tokens: float) -> float:
        """The best loss after so many tokens."""
        return min(
            (best for spent, best in zip(self.spent, self.best, strict=True) if spent <= tokens), default=math.inf
        )

    def until(self, loss: float) -> float:
        """The tokens after which the best loss is this one or less."""
        both = zip(self.spent, self.best, strict=True)
        return next((spent for spent, best in both if best <= loss), math.inf)


def replay(table: Table, searcher: Any, scheduler: Any, at_once: int, budget: float) -> Replayed:
    """A search with trials at once, each as fast as the others in tokens, until so many tokens are spent."""
    scheduler.set_search_properties(METRIC, "min")
    rows = {repr(row.values): row for row in table.rows}
    found, spent, best, is_over = Replayed(), 0.0, math.inf, False
    coming: list[tuple[float, int, int, Trial]] = []  # the next report of each running trial: when, its number, index

    def start(now: float) -> None:
        nonlocal is_over
        asked = None if is_over else searcher.suggest(str(found.trials))
        if asked in (None, Searcher.FINISHED):
            is_over = True
            return
        trial = Trial(found.trials, rows[repr(values_of(asked))])
        found.trials += 1
        scheduler.on_trial_add(Controller(), trial)
        heapq.heappush(coming, (now + trial.row.tokens[0], trial.number, 0, trial))

    for _ in range(at_once):
        start(0.0)
    while coming and spent < budget:
        now, number, index, trial = heapq.heappop(coming)
        tokens, result = trial.row.tokens, trial.result(index)
        spent += tokens[index] - (tokens[index - 1] if index else 0)
        best = min(best, trial.row.losses[index])
        found.spent.append(spent)
        found.best.append(best)
        is_last = index + 1 == len(tokens)
        if not is_last and scheduler.on_trial_result(Controller(), trial, result) != TrialScheduler.STOP:
            searcher.on_trial_result(trial.trial_id, result)
            heapq.heappush(coming, (now + tokens[index + 1] - tokens[index], number, index + 1, trial))
            continue
        scheduler.on_trial_complete(Controller(), trial, result)
        searcher.on_trial_complete(trial.trial_id, result)
        start(now)
    return found
