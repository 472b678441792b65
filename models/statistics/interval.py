"""The interval of one model's mean score.

found = interval(scores, clusters=conversations)
found.mean, found.low, found.high
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.statistics.scores import ClusterSums, check_confidence, checked, cluster_sums
from models.statistics.sign_flip import SignFlips, fewest_clusters


@dataclass(frozen=True)
class Interval:
    """A weighted mean of N items, and its interval."""

    items: int
    """those with a weight above 0"""
    clusters: int
    mean: float
    low: float
    """-inf if there is one cluster, and the scores are not all 0 or 1"""
    high: float


def interval(
    values: Any, clusters: Any = None, weights: Any = None, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """The interval of the mean of scores (N,); `clusters` and `weights` as in `compare`. Raises UnusableScores.

    Of right and wrong (1 and 0), it is Wilson's (1927, JASA 22) for the number of independent items that would have
    the same standard error (Korn and Graubard 1998, Survey Methodology 24). Of other scores, it is that of the
    sign-flip test, and for too few clusters a t interval.
    """
    check_confidence(confidence)
    scores = checked("values", values)
    sums = cluster_sums(scores, clusters, weights)
    if np.isin(scores, (0, 1)).all():
        low, high = _wilson(sums, confidence)
    elif len(sums.sums) < fewest_clusters(confidence):
        low, high = sums.t_interval(confidence)
    else:
        low, high = SignFlips.of(sums, seed).interval(confidence)
    return Interval(sums.items, len(sums.sums), sums.mean, low, high)


def _wilson(sums: ClusterSums, confidence: float) -> tuple[float, float]:
    from scipy.special import stdtrit

    share, error = sums.mean, sums.standard_error
    if len(sums.sums) == 1:
        return 0.0, 1.0
    # Without any wrong item, nothing shows how alike the items of a cluster are: each cluster counts as one.
    count = share * (1 - share) / error**2 if error > 0 else len(sums.sums)
    squared = float(stdtrit(len(sums.sums) - 1, (1 + confidence) / 2)) ** 2 / min(count, sums.items)
    centre = (share + squared / 2) / (1 + squared)
    reach = math.sqrt(squared * share * (1 - share) + squared**2 / 4) / (1 + squared)
    return max(0.0, centre - reach), min(1.0, centre + reach)
