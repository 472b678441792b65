"""What a gate decides of comparisons: better, worse, no worse by a margin; over several suites.

decision = decide(comparisons)               # one comparison for each suite, of the same two models
decision.passed, decision.better, decision.worse
is_no_worse(comparison, margin=0.02)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.statistics.comparison import Comparison
from models.statistics.scores import Numbers, UnusableScores


@dataclass(frozen=True)
class Decision:
    """Whether the second model is better than the first, over all suites together."""

    passed: bool
    """better in at least one suite, and worse in none"""
    adjusted: tuple[float, ...]
    """each suite's p-value, corrected for the number of suites"""
    better: tuple[bool, ...]
    """the second model is better in this suite, after the correction"""
    worse: tuple[bool, ...]


def holm(p_values: Any) -> Numbers:
    """(S,) p-values corrected for their number, in the same order (Holm 1979, Scand. J. Statist. 6).

    Whoever rejects those of at most 5 % rejects a true hypothesis in at most 5 % of such families.
    """
    found: Numbers = np.asarray(p_values, np.float64)
    if found.ndim != 1 or not ((found >= 0) & (found <= 1)).all():
        raise UnusableScores(f"p_values: {p_values}; give a list of numbers from 0 to 1")
    order = np.argsort(found, kind="stable")
    adjusted = np.empty_like(found)
    adjusted[order] = np.maximum.accumulate(found[order] * np.arange(len(found), 0, -1)).clip(max=1)
    return adjusted


def decide(comparisons: Sequence[Comparison]) -> Decision:
    """Compare two models over several suites, of which each has one comparison, all of the same confidence.

    Better and worse are two-sided tests at 1 - confidence, corrected together by `holm`. So of equal models, at most
    2.5 % are found better in any suite.
    """
    levels = {1 - each.confidence for each in comparisons}
    if len(levels) != 1:
        raise UnusableScores(f"comparisons: {len(levels)} confidences; give comparisons, all of the same confidence")
    adjusted = holm([each.p_value for each in comparisons])
    shown = adjusted <= levels.pop()
    gains = np.array([each.gain for each in comparisons])
    better, worse = shown & (gains > 0), shown & (gains < 0)
    return Decision(
        passed=bool(better.any() and not worse.any()),
        adjusted=tuple(adjusted.tolist()),
        better=tuple(better.tolist()),
        worse=tuple(worse.tolist()),
    )


def is_no_worse(comparison: Comparison, margin: float) -> bool:
    """Whether the whole interval lies above a loss of `margin`, in the unit of the scores.

    A model that is worse by `margin` passes in at most 2.5 % of cases, at a confidence of 95 %. If each of several
    suites must pass, no correction is needed (Berger 1982, Technometrics 24).
    """
    if not margin >= 0:
        raise UnusableScores(f"margin: {margin}; it must be at least 0, in the unit of the scores")
    return comparison.gain_interval[0] >= -margin
