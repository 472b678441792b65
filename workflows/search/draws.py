"""The settings of a search drawn at random: the same for the same seed and number of the trial.

draws = Draws({"train.learning_rate": Range(1e-5, 1e-3, is_log=True, is_whole=False)}, seed=0)
values = draws[7]       # of trial 7, however many trials there are and in whatever order they are asked for
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from workflows.spec.space import Choice, Dimension, Values, active, all_settings

# After this many draws in a row that found nothing new, the rest of the space is listed instead.
_MAX_REPEATS = 1000


class Draws:
    """A sequence of settings. Without `may_repeat`, none comes twice, and it ends when the space is used up."""

    def __init__(self, dimensions: Mapping[str, Dimension], seed: int, may_repeat: bool = False) -> None:
        self._dimensions = dict(dimensions)
        self._generator = np.random.default_rng(seed)
        self._may_repeat = may_repeat
        self._drawn: list[Values] = []
        self._seen: set[str] = set()

    def __getstate__(self) -> dict[str, object]:
        """Keep no state for Tune's restore: our searches resume from their own records."""
        return {}

    def __getitem__(self, number: int) -> Values:
        """The settings of a trial; raises IndexError if the space is used up before."""
        while len(self._drawn) <= number:
            self._drawn.append(self._next())
        return self._drawn[number]

    def __iter__(self) -> Iterator[Values]:
        """All of them, from the first."""
        for number in itertools.count():
            try:
                yield self[number]
            except IndexError:
                return

    def _next(self) -> Values:
        # No space with numbers between numbers repeats itself so often.
        for values in itertools.chain((self._draw() for _ in range(_MAX_REPEATS)), all_settings(self._dimensions)):
            if self._may_repeat or repr(values) not in self._seen:
                self._seen.add(repr(values))
                return values
        raise IndexError("every setting of the space has been drawn")

    def _draw(self) -> Values:
        drawn = {field: _drawn(dimension, self._generator) for field, dimension in self._dimensions.items()}
        return active(self._dimensions, drawn)


def _drawn(dimension: Dimension, generator: np.random.Generator) -> Any:
    """A value, drawn as Ray Tune's BasicVariantGenerator draws it, so that trials in a store are found again."""
    if isinstance(dimension, Choice):
        return dimension.values[generator.choice(np.arange(len(dimension.values)), size=1)[0]]
    low, high = dimension.low, dimension.high
    if dimension.is_log:
        ends = np.log(low), np.log(high + 1 if dimension.is_whole else high)
        found = np.exp(generator.uniform(*ends, size=1))
        return dimension.nearest(int(found[0]) if dimension.is_whole else float(found[0]))
    if dimension.is_whole:
        return dimension.integers[int(generator.integers(0, len(dimension.integers), size=1)[0])]
    return float(generator.uniform(low, high, size=1)[0])
