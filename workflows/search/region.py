"""The region of a search's best trials, as a space for another base model (`tune.proxy`).

found = for_width(region_of(search, best_share=0.25), spec.train, ratio=4096 / 2048)
found.space, found.best, found.rate_factor
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workflows.search.records import Search, ranking
from workflows.spec import TrainSpec
from workflows.spec.space import Choice, Dimension, Range, dimension_of, entry_of
from workflows.stage import StageFailed

RATE, METHOD = "train.learning_rate", "train.adapter.method"

_MIN_BEST = 3
"""trials that span a region at least"""


@dataclass(frozen=True)
class Region:
    """Where the best trials of a search were."""

    space: dict[str, Any]
    """entries as in `tune.space`"""
    best: dict[str, Any]
    """the settings of the best trial"""
    num_best: int
    """number of trials that span the region"""
    rate_factor: float = 1.0
    """what its learning rates were multiplied by"""


def region_of(search: Search, best_share: float) -> Region:
    """The region of the best share of the trials that have reported; raises StageFailed if none has."""
    ranked = [trial for trial, _ in ranking(search.trials, search.metrics[0])]
    if not ranked:
        raise StageFailed("tune.proxy: no trial of the small model has reported a result, so there is no region")
    kept = ranked[: max(_MIN_BEST, math.ceil(best_share * len(ranked)))]
    space = {}
    for field, entry in search.space.items():
        dimension = dimension_of(entry)
        values = [trial.values[field] for trial in kept if field in trial.values]
        space[field] = entry_of(_narrowed(dimension, values, len(ranked)) if values else dimension)
    return Region(_without_lost_conditions(space), ranked[0].values, len(kept))


def for_width(region: Region, train: TrainSpec, ratio: float) -> Region:
    """The region for a model that is `ratio` times as wide: learning rates fall like 1 / width with all weights or
    `mua`, and like 1 / sqrt(width) with other adapters (arXiv:2602.06204).
    """
    if RATE not in region.space:
        return region
    method = region.best.get(METHOD, train.adapter and train.adapter.method)
    factor = float(f"{ratio ** (-1.0 if method in (None, 'mua') else -0.5):.3g}")

    def scaled(rate: float) -> float:
        return min(1.0, rate * factor)

    dimension = dimension_of(region.space[RATE])
    if isinstance(dimension, Choice):
        moved: Dimension = replace(dimension, values=tuple(map(scaled, dimension.values)))
    else:
        moved = replace(dimension, low=scaled(dimension.low), high=scaled(dimension.high))
    best = {**region.best, RATE: scaled(region.best[RATE])} if RATE in region.best else region.best
    return replace(region, space={**region.space, RATE: entry_of(moved)}, best=best, rate_factor=factor)


def _narrowed(dimension: Dimension, values: Sequence[Any], num_trials: int) -> Dimension:
    if isinstance(dimension, Choice):
        return replace(dimension, values=tuple(value for value in dimension.values if value in values))
    return _narrowed_range(dimension, min(values), max(values), num_trials)


def _narrowed_range(dimension: Range, lowest: float, highest: float, num_trials: int) -> Range:
    """From `lowest` to `highest`, moved outwards by the mean distance between trials, on the range's own scale."""
    to, back = (math.log, math.exp) if dimension.is_log else (float, float)
    margin = (to(dimension.high) - to(dimension.low)) / (num_trials + 1)
    low, high = back(to(lowest) - margin), back(to(highest) + margin)
    if dimension.is_whole:  # the integers outside
        low = dimension.low + math.floor((low - dimension.low) / dimension.step) * dimension.step
        high = dimension.low + math.ceil((high - dimension.low) / dimension.step) * dimension.step
    return replace(dimension, low=max(low, dimension.low), high=min(high, dimension.high))


def _without_lost_conditions(space: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields whose conditions no choice of the region fulfils."""
    kept = {field: dimension_of(entry) for field, entry in space.items()}
    while lost := [field for field, dimension in kept.items() if not _may_hold(dimension, kept)]:
        kept = {field: dimension for field, dimension in kept.items() if field not in lost}
    return {field: space[field] for field in kept}


def _may_hold(dimension: Dimension, kept: Mapping[str, Dimension]) -> bool:
    return all(
        name in kept and any(choice in kept[name].ends for choice in choices)
        for name, choices in dimension.when.items()
    )
