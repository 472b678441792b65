"""The sign-flip test of no difference, and the interval of the differences that it does not reject.

flips = SignFlips.of(sums, seed=0)
flips.p_value, flips.interval(0.95)

If two models are equally good, each cluster's difference could as well have the opposite sign. The p-value is the
share of all patterns of signs whose total is at least as far from 0 as the observed one. It is exact for any number
of clusters and any values (Fisher 1935, section 21; for clusters: Canay, Romano and Shaikh 2017, Econometrica 85).
Where all differences that are not 0 have the same size, as for right and wrong of independent items, it is McNemar's
exact test (McNemar 1947, Psychometrika 12), and is computed as that.

The interval has the differences that the same test, with the same patterns, does not reject. Its ends can be read
off: a pattern splits the clusters in two, and a difference lies between the means of both parts if and only if the
pattern is at least as far from that difference as the observed total (Hartigan 1969, JASA 64: typical values).
So 0 is outside the interval if and only if the p-value is at most 1 - confidence.
"""

import math
from dataclasses import dataclass

import numpy as np

from models.statistics.scores import ClusterSums, Numbers

DRAWS = 9_999
# With up to so many clusters, all patterns are fewer than the draws.
MAX_ENUMERATED = 13
# Sums that differ by less, relative to the sum of all sizes, are equal.
_TIE = 1e-12


@dataclass(frozen=True)
class SignFlips:
    """The test that the mean of some clusters is 0."""

    p_value: float
    """two-sided"""
    method: str
    """the test's name, in words"""
    lows: Numbers
    """(B,) of each pattern, the lower mean of both parts, in ascending order"""
    highs: Numbers
    """(B,) the higher one, in descending order"""
    sign: float
    """-1 if the mean is below 0: the means of the parts are then those of the opposite sums"""

    @classmethod
    def of(cls, clusters: ClusterSums, seed: int) -> "SignFlips":
        """The test of at least two clusters; `seed` draws the patterns, if they are too many to try all."""
        sign = -1.0 if clusters.sums.sum() < 0 else 1.0
        sums, weights = sign * clusters.sums, clusters.weights
        # In an order of their own, so that neither the order of the items nor that of the models matters.
        order = np.lexsort((sums, weights, np.abs(sums)))
        pairs = np.column_stack([sums, weights])[order]
        total = pairs.sum(axis=0)
        part = _parts(pairs, seed)
        means = _means(part, total), _means(total - part, total)
        lows, highs = np.minimum(*means), np.maximum(*means)
        empty = np.isnan(lows)  # a part without clusters: the pattern is the observed one
        lows[empty], highs[empty] = -np.inf, np.inf
        p_value, method = _mcnemar(sums), "exact binomial test (McNemar)"
        if p_value is None:
            slack = _TIE * np.abs(sums).sum()
            far = np.abs(total[0] - 2 * part[:, 0]) >= total[0] - slack
            # The observed pattern is one of them, so p is never 0 (Phipson and Smyth 2010).
            p_value = float((1 + far.sum()) / (1 + len(far)))
            method = "exact sign-flip test" if len(sums) <= MAX_ENUMERATED else f"sign-flip test, {DRAWS:,} patterns"
        return cls(p_value, method, np.sort(lows), -np.sort(-highs), sign)

    def interval(self, confidence: float) -> tuple[float, float]:
        """The means that are not rejected at `confidence`; infinite if the patterns are too few to reject any."""
        alpha = 1 - confidence
        rank = int(alpha * (1 + len(self.lows)) + 1e-9)
        if not rank:
            return -np.inf, np.inf
        low, high = float(self.lows[rank - 1]), float(self.highs[rank - 1])
        # Next to 0, the drawn patterns and an exact p-value may disagree: the p-value decides.
        if self.p_value > alpha:
            low = min(low, 0.0)
        elif low <= 0:
            low = float(self.lows[self.lows > 0][0])
        return (low, high) if self.sign > 0 else (-high, -low)


def fewest_clusters(confidence: float) -> int:
    """The fewest clusters that can show a difference: if n differ, all in favour of one model, p is 2^(1 - n)."""
    return 1 + math.ceil(-math.log2(1 - confidence) - 1e-9)


def _mcnemar(sums: Numbers) -> float | None:
    """McNemar's exact p-value, if all sums that are not 0 have the same size."""
    from scipy.stats import binomtest

    different = sums[sums != 0]
    sizes = np.abs(different)
    if not len(different):
        return 1.0
    if np.ptp(sizes) > _TIE * sizes.max():
        return None
    return float(binomtest(int((different > 0).sum()), len(different)).pvalue)


def _parts(pairs: Numbers, seed: int) -> Numbers:
    """(B, 2) the sums of one part of the clusters, in each pattern; `pairs` (G, 2) are those of the clusters."""
    count = len(pairs)
    if count <= MAX_ENUMERATED:
        # The last cluster stays in the other part: a pattern and its opposite split the clusters alike.
        numbers = np.arange(1, 2 ** (count - 1))
        found: Numbers = (numbers[:, None] >> np.arange(count) & 1) @ pairs
        return found
    # A random byte decides for eight clusters: the sums of all 256 subsets of each eight are computed once.
    padded = np.concatenate([pairs, np.zeros((-count % 8, 2))]).reshape(-1, 8, 2)
    subsets = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float64) @ padded
    drawn = np.random.default_rng(seed).integers(0, 256, (len(padded), DRAWS), dtype=np.uint8)
    parts = np.zeros((DRAWS, 2))
    for sums, numbers in zip(subsets, drawn, strict=True):
        parts += sums.take(numbers, axis=0)
    return parts


def _means(part: Numbers, total: Numbers) -> Numbers:
    """(B,) the mean of each part; nan of one without clusters."""
    there = part[:, 1] > _TIE * total[1]
    means: Numbers = np.divide(part[:, 0], part[:, 1], out=np.full(len(part), np.nan), where=there)
    return means
