"""Scores of items, checked and added up by cluster: what belongs together, such as the turns of one conversation.

sums = cluster_sums(checked("first", scores), clusters=conversations, weights=tokens)
sums.mean                                # sum(w x) / sum(w)

Items of one cluster are alike, so they say less than as many unrelated ones: every statistic of this package is of
the clusters' sums (Miller 2024, arXiv:2411.00640, section 2.2).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import RayconteurError

Numbers = npt.NDArray[np.float64]


class UnusableScores(RayconteurError):
    """Scores, weights or clusters from which nothing can be computed."""


@dataclass(frozen=True)
class ClusterSums:
    """The items by cluster; items without weight are left out."""

    sums: Numbers
    """(G,) the weighted sum of each cluster's scores"""

    weights: Numbers
    """(G,) the sum of its weights, above 0"""

    items: int

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.weights.sum())

    @property
    def standard_error(self) -> float:
        """Of the mean; infinite for one cluster.

        The jackknife's, from the means without each cluster: of the standard errors that allow for clusters, it is
        the one that suits few and unequal ones (MacKinnon, Nielsen and Webb 2023, J. Appl. Econometrics 38).
        """
        count = len(self.sums)
        if count == 1:
            return math.inf
        without = (self.sums.sum() - self.sums) / (self.weights.sum() - self.weights)
        return float(np.sqrt((count - 1) / count * ((without - self.mean) ** 2).sum()))

    def t_interval(self, confidence: float) -> tuple[float, float]:
        """The interval of the mean by the t distribution; infinite for one cluster."""
        from scipy.special import stdtrit

        if len(self.sums) == 1:
            return -math.inf, math.inf
        reach = float(stdtrit(len(self.sums) - 1, (1 + confidence) / 2)) * self.standard_error
        return self.mean - reach, self.mean + reach


def checked(name: str, values: Any, length: int | None = None) -> Numbers:
    """`values` as (N,) floats; UnusableScores if there are none, not `length` of them, or one is not finite."""
    try:
        found: Numbers = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise UnusableScores(f"{name}: not a list of numbers; give one number for each item") from None
    if found.ndim != 1:
        raise UnusableScores(f"{name}: {found.ndim} dimensions; give one number for each item")
    check_length(name, len(found), length)
    odd = np.flatnonzero(~np.isfinite(found))
    if len(odd):
        raise UnusableScores(f"{name}: item {odd[0]} (from 0) is {found[odd[0]]}; a score must be a finite number")
    return found


def check_length(name: str, found: int, length: int | None) -> None:
    """UnusableScores if there is no item or not one for each of `length`."""
    if not found:
        raise UnusableScores(f"{name}: no item; a comparison needs at least one")
    if length is not None and found != length:
        raise UnusableScores(f"{name}: {found} items, and {length} scores; give one for each item, in the same order")


def check_confidence(confidence: float) -> None:
    if not 0.5 <= confidence <= 0.999:
        raise UnusableScores(f"confidence: {confidence}; it must be from 0.5 to 0.999, such as 0.95")


def checked_weights(weights: Any, length: int) -> Numbers:
    """(N,) weights, 1 without any; UnusableScores for a negative one, or if all are 0."""
    if weights is None:
        return np.ones(length)
    found = checked("weights", weights, length)
    if (found < 0).any():
        item = int(np.flatnonzero(found < 0)[0])
        raise UnusableScores(f"weights: item {item} (from 0) has {found[item]}; a weight must be at least 0")
    if not found.any():
        raise UnusableScores("weights: all are 0; at least one item needs a weight")
    return found


def cluster_sums(values: Numbers, clusters: Any = None, weights: Any = None) -> ClusterSums:
    """Sums of `values` (N,), checked before, by the labels `clusters` (N,); without them each item is its own."""
    heavy = checked_weights(weights, len(values))
    kept = heavy > 0
    if clusters is None:
        return ClusterSums((heavy * values)[kept], heavy[kept], int(kept.sum()))
    numbers = _numbers(clusters, len(values))[kept]
    sums: Numbers = np.bincount(numbers, (heavy * values)[kept]).astype(np.float64)
    total: Numbers = np.bincount(numbers, heavy[kept]).astype(np.float64)
    there = total > 0
    return ClusterSums(sums[there], total[there], int(kept.sum()))


def _numbers(clusters: Any, length: int) -> npt.NDArray[np.intp]:
    """(N,) a number from 0 for each label; equal labels have the same one."""
    labels = list(clusters)
    check_length("clusters", len(labels), length)
    known: dict[Any, int] = {}
    try:
        numbers = [known.setdefault(label, len(known)) for label in labels]
    except TypeError:
        raise UnusableScores("clusters: a label is a list or mapping; give a name or number for each item") from None
    if None in known:
        raise UnusableScores(f"clusters: item {labels.index(None)} (from 0) has no label; give one for each item")
    return np.array(numbers, np.intp)
