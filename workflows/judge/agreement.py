"""How far a judge can be trusted: its agreement with people, its consistency, its preference for a place."""

from collections import Counter
from collections.abc import Sequence

from workflows.judge.records import AgreementFigures

Winners = tuple[str, str]
"""of a pair, `first`, `second` or `tie`: with the first reply in first place, and with the second there"""


def agreement_of(pairs: Sequence[tuple[str, str]]) -> AgreementFigures | None:
    """The agreement of (what people prefer, what the judge prefers); None without pairs."""
    if not pairs:
        return None
    from scipy.stats import binomtest

    agreed = sum(people == judge for people, judge in pairs)
    interval = binomtest(agreed, len(pairs)).proportion_ci(method="wilson")
    kappa = kappa_of(pairs)
    return AgreementFigures(
        labels=len(pairs),
        share=round(agreed / len(pairs), 4),
        low=round(float(interval.low), 4),
        high=round(float(interval.high), 4),
        kappa=None if kappa is None else round(kappa, 4),
    )


def kappa_of(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Agreement beyond chance: (observed - expected) / (1 - expected), with the agreement expected of two raters who
    choose independently, each as often as here (Cohen 1960, Educ. Psychol. Meas. 20). None if that is certain.
    """
    count = len(pairs)
    observed = sum(people == judge for people, judge in pairs) / count
    first, second = (Counter(side) for side in zip(*pairs, strict=True))
    expected = sum(first[name] * second[name] for name in first) / count**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def consistency_of(pairs: Sequence[Winners]) -> float | None:
    """The share of pairs with the same winner in both orders; None without pairs."""
    return round(sum(one == other for one, other in pairs) / len(pairs), 4) if pairs else None


def first_place_share_of(pairs: Sequence[Winners]) -> float | None:
    """The share of answers that name the reply in first place, of those that name a winner; None without any.

    Each pair is judged in both orders, so it is 0.5 for a judge to whom the place means nothing.
    """
    at_first = sum((one == "first") + (other == "second") for one, other in pairs)
    named = sum((one != "tie") + (other != "tie") for one, other in pairs)
    return round(at_first / named, 4) if named else None
