"""Compare two models by their scores on the same items.

comparison = compare(base_scores, tuned_scores, clusters=conversations)
comparison.difference, comparison.low, comparison.high, comparison.p_value, comparison.smallest

The p-value and the interval are of one test (`models/statistics/sign_flip.py`), so they never contradict each other.
docs/verdict.md says how often the interval covers the true difference, beside others.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.statistics.scores import ClusterSums, Numbers, check_confidence, checked, cluster_sums
from models.statistics.sign_flip import SignFlips, fewest_clusters

_POWER = 0.8
_ROUNDING = 1e-13


@dataclass(frozen=True)
class Comparison:
    """The difference between two models on the same items, in the unit of the scores."""

    items: int
    """those with a weight above 0"""
    clusters: int
    first: float
    """the first model's weighted mean"""
    second: float
    difference: float
    """second - first"""
    low: float
    """the lower end of the difference's interval; -inf if there is one cluster"""
    high: float
    p_value: float
    """two-sided, of no difference; 0 is outside the interval if and only if it is at most 1 - `confidence`"""
    smallest: float
    """the smallest difference that this many items show with a probability of 80 %, given how much the items'
    differences vary here; inf if there are too few clusters to show any
    """
    confidence: float
    lower_is_better: bool
    method: str
    """the test's name, in words"""

    @property
    def gain(self) -> float:
        """The difference, above 0 if the second model is better."""
        return -self.difference if self.lower_is_better else self.difference

    @property
    def gain_interval(self) -> tuple[float, float]:
        """Low and high of the gain."""
        return (-self.high, -self.low) if self.lower_is_better else (self.low, self.high)


def compare(
    first: Any,
    second: Any,
    clusters: Any = None,
    weights: Any = None,
    confidence: float = 0.95,
    seed: int = 0,
    lower_is_better: bool = False,
) -> Comparison:
    """Compare scores (N,) of two models on the same N items; 0 and 1 for wrong and right, or any numbers.

    `clusters` (N,) are labels of what belongs together (conversation, document, user); without them each item is
    its own. The means are sum(w x) / sum(w) with `weights` (N,) of at least 0. For a loss in nats per token, give
    each item's mean, its tokens as weights, and `lower_is_better`. Raises UnusableScores.
    """
    check_confidence(confidence)
    one = checked("first", first)
    other = checked("second", second, len(one))
    means = [cluster_sums(scores, clusters, weights).mean for scores in (one, other)]
    differences = _without_rounding(cluster_sums(other - one, clusters, weights), one, other)
    size = _size(differences, one, other)
    p_value, low, high, method = _tested(differences, size, confidence, seed)
    return Comparison(
        items=differences.items,
        clusters=len(differences.sums),
        first=means[0],
        second=means[1],
        difference=differences.mean,
        low=low + 0.0,  # never -0.0
        high=high + 0.0,
        p_value=p_value,
        smallest=_smallest(differences, size, confidence),
        confidence=confidence,
        lower_is_better=lower_is_better,
        method=method,
    )


def _without_rounding(differences: ClusterSums, first: Numbers, second: Numbers) -> ClusterSums:
    """Sums of 0 where they differ from it by rounding alone, as 0.3 - 0.1 differs from 0.2."""
    rounding = _ROUNDING * max(np.abs(first).max(), np.abs(second).max()) * differences.weights
    sums = np.where(np.abs(differences.sums) > rounding, differences.sums, 0.0)
    return replace(differences, sums=sums)


def _tested(differences: ClusterSums, size: float, confidence: float, seed: int) -> tuple[float, float, float, str]:
    """The p-value, both ends of the interval, and the method."""
    if len(differences.sums) == 1:
        return 1.0, -math.inf, math.inf, "none: one cluster does not tell how much clusters vary"
    flips = SignFlips.of(differences, seed)
    if np.count_nonzero(differences.sums) >= fewest_clusters(confidence):
        low, high = flips.interval(confidence)
        return flips.p_value, low, high, f"{flips.method}; interval of the differences that it does not reject"
    # The test can reject nothing here, and models that hardly differ on few items may differ on others.
    ends = [differences.t_interval(confidence), _adjusted(differences, size).t_interval(confidence), (0.0, 0.0)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    return flips.p_value, low, high, f"{flips.method}; adjusted t interval, because few clusters differ"


def _size(differences: ClusterSums, first: Numbers, second: Numbers) -> float:
    """The mean size of the sums that are not 0; if none is, the largest that the scores suggest."""
    sizes = np.abs(differences.sums)
    if sizes.any():
        return float(sizes[sizes > 0].mean())
    scores = np.concatenate([first, second])
    largest = 1.0 if np.isin(scores, (0, 1)).all() else float(np.ptp(scores))
    return largest * float(differences.weights.mean())


def _adjusted(differences: ClusterSums, size: float) -> ClusterSums:
    """The clusters, and one more in favour of each model, with the typical `size` of a sum and a typical weight.

    Bonett and Price 2012 (J. Educ. Behav. Stat. 37), who add 1 to both counts of items that differ.
    """
    typical = differences.weights.mean()
    return ClusterSums(
        np.append(differences.sums, [size, -size]), np.append(differences.weights, [typical] * 2), differences.items
    )


def _smallest(differences: ClusterSums, size: float, confidence: float) -> float:
    """The smallest difference that the test finds with a probability of 80 %.

    The t test's, with the standard error as it is; but at least so large that enough clusters differ for the test to
    reject at all, all in favour of one model.
    """
    from scipy.special import betaincinv, ndtri, stdtrit

    count, fewest = len(differences.sums), fewest_clusters(confidence)
    if count < fewest:
        return math.inf
    quantiles = stdtrit(count - 1, (1 + confidence) / 2) + ndtri(_POWER)
    # The share of clusters that differ for at least `fewest` of `count` to do so with this probability.
    share = betaincinv(fewest, count - fewest + 1, _POWER)
    by_count = share * count * size / differences.weights.sum()
    return float(max(quantiles * differences.standard_error, by_count))
