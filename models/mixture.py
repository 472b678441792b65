"""How often an epoch reads each source of a corpus, and which of its rows.

mixture = Mixture.of(sources, num_tokens, MixtureSettings(weights={0: 3.0, 1: 1.0}))
mixture.rows(epoch=2, seed=0)           # (R,) row numbers, a row several times where its source is read several times

With weights or a temperature, an epoch reads as many tokens as the corpus has, of each source its share. The rows of
a source come in the order of a stream of permutations, so no row is read again before all others of its source; each
epoch continues where the one before it ended. The number of an epoch is enough to know its rows: a resumed training
reads what an undisturbed one would have read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import RayconteurError

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MixtureSettings:
    """What the pipeline file says; sources by number."""

    weights: Mapping[int, float] = field(default_factory=dict)
    """relative shares of the tokens of an epoch; if there are any, a source without one has 0"""

    repeats: Mapping[int, float] = field(default_factory=dict)
    """how often an epoch reads a source, 1 unless it is here; for a corpus without weights and temperature"""

    temperature: float | None = None
    """shares in proportion to tokens^(1/temperature): above 1 favours small sources (Arivazhagan et al. 2019,
    arXiv:1907.05019, section 3)"""

    def passes(self, tokens: Mapping[int, int]) -> dict[int, float]:
        """How often an epoch reads each source, by the tokens that it has; raises RayconteurError if none is read."""
        if not self.weights and self.temperature is None:
            return {source: self.repeats.get(source, 1.0) for source in tokens}
        if self.temperature is not None:
            sizes = {source: float(count) ** (1 / self.temperature) for source, count in tokens.items()}
        else:
            sizes = {source: float(self.weights.get(source, 0)) for source in tokens}
        whole = sum(sizes.values())
        if not whole:
            raise RayconteurError(
                "data.sources: every source that has conversations has weight 0; give one of them a larger weight"
            )
        total = sum(tokens.values())
        return {source: size / whole * total / tokens[source] for source, size in sizes.items()}


@dataclass(frozen=True)
class Mixture:
    """The rows of each source, and how many of them an epoch reads."""

    rows_of: Mapping[int, Rows]
    per_epoch: Mapping[int, int]

    @classmethod
    def of(cls, sources: Any, num_tokens: Any, settings: MixtureSettings) -> "Mixture":
        """`sources` and `num_tokens`: (N,) the source and the tokens of each row."""
        sources, num_tokens = np.asarray(sources), np.asarray(num_tokens)
        rows_of = {int(source): np.flatnonzero(sources == source) for source in np.unique(sources)}
        passes = settings.passes({source: int(num_tokens[rows].sum()) for source, rows in rows_of.items()})
        return cls(rows_of, {source: round(passes[source] * len(rows)) for source, rows in rows_of.items()})

    def rows(self, epoch: int, seed: int) -> Rows:
        """(R,) the rows of an epoch, source by source."""
        return np.concatenate([self._rows(source, epoch, seed) for source in self.rows_of])

    def _rows(self, source: int, epoch: int, seed: int) -> Rows:
        rows, count = self.rows_of[source], self.per_epoch[source]
        begin, end = epoch * count, (epoch + 1) * count
        first = begin // len(rows)
        stream = [
            np.random.default_rng([seed, source, number]).permutation(rows)
            for number in range(first, -(-end // len(rows)))
        ]
        drawn: Rows = np.concatenate([rows[:0], *stream])[begin - first * len(rows) : end - first * len(rows)]
        return drawn
