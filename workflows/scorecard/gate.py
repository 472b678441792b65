"""The gate: whether a checkpoint may be deployed, and why, in a sentence.

passed, verdict = gate_verdict(figures, comparisons, gate, against="service")
"""

from collections.abc import Sequence

from models.statistics.gate import decide, holm, is_no_worse
from workflows.figures import EvaluateFigures
from workflows.scorecard.comparisons import HELD_OUT_LOSS, ModelComparison
from workflows.scorecard.words import MODEL_NAMES, amount, describe, items_of, percent, smallest
from workflows.spec import GateSpec


def gate_verdict(
    figures: EvaluateFigures, comparisons: Sequence[ModelComparison], gate: GateSpec, against: str = "base"
) -> tuple[bool, str]:
    """Whether the checkpoint passes, and why, compared with the model `against`.

    Golden suites and the minimum values that are set count under every rule.
    """
    compared = [each for each in comparisons if each.against == against]
    refusal = _below_a_minimum(figures, gate) or _worse_in_a_golden_suite(compared, against)
    if refusal:
        return False, f"failed: {refusal}"
    if gate.rule == "thresholds":
        return True, f"passed: {_reason(figures, comparisons)}"
    whole = [each for each in compared if each.slice is None]
    other = MODEL_NAMES[against]
    if not whole:
        return (
            False,
            f"failed: nothing to compare with {other}; add evaluate.suites, or take another evaluate.gate.rule",
        )
    passed, words = _better(whole, other) if gate.rule == "better" else _no_worse(whole, gate.margin, other)
    return passed, f"passed: {words}" if passed else f"failed: {words} (evaluate.gate.rule: {gate.rule})"


def _below_a_minimum(figures: EvaluateFigures, gate: GateSpec) -> str | None:
    """What is below a minimum that is set, or by default with the rule `thresholds`."""
    accuracy, least = figures.preference_accuracy, gate.min_loss_reduction
    if least is None and accuracy is None and gate.rule == "thresholds":
        least = 0.0
    if least is not None and not figures.loss_reduction > least:
        return (
            f"the tuned held-out loss {figures.tuned_loss:.4f} is not below the base's {figures.base_loss:.4f} by "
            f"more than {least:g} nats (evaluate.gate.min_loss_reduction)"
        )
    if accuracy is not None and not accuracy > gate.min_preference_accuracy:
        return (
            f"the chosen reply favoured in {accuracy:.1%} of the held-out pairs, more than "
            f"{gate.min_preference_accuracy:.1%} asked for (evaluate.gate.min_preference_accuracy)"
        )
    share = figures.tuned_fact_share
    if share is not None and share < gate.min_fact_share:
        return f"{share:.0%} of the facts right, {gate.min_fact_share:.0%} asked for (evaluate.gate)"
    return None


def _worse_in_a_golden_suite(compared: Sequence[ModelComparison], against: str) -> str | None:
    """The first golden suite that is worse by more than chance explains, as a whole or in a slice."""
    for name in dict.fromkeys(each.measure.name for each in compared if each.measure.golden):
        parts = [each for each in compared if each.measure.name == name]
        adjusted = holm([each.statistics.p_value for each in parts])
        worse = [
            (p_value, part.statistics.gain, part.record)
            for p_value, part in zip(adjusted, parts, strict=True)
            if p_value <= 1 - part.statistics.confidence and part.statistics.gain < 0
        ]
        if worse:
            *_, clearest = min(worse, key=lambda each: each[:2])
            return f"a golden suite is worse than with {MODEL_NAMES[against]}: {describe(clearest)}"
    return None


def _better(compared: Sequence[ModelComparison], other: str) -> tuple[bool, str]:
    decision = decide([each.statistics for each in compared])
    worse = [each for each, is_worse in zip(compared, decision.worse, strict=True) if is_worse]
    if worse:
        return False, f"worse than {other}: {_all(worse)}"
    better = [each for each, is_better in zip(compared, decision.better, strict=True) if is_better]
    if better:
        return True, f"better than {other}: {_all(better)}"
    p_value, clearest = min(zip(decision.adjusted, compared, strict=True), key=lambda each: each[0])
    of_several = f" among {len(compared)} measures" if len(compared) > 1 else ""
    return False, (
        f"not shown to be better than {other}; the clearest difference is in {describe(clearest.record)}, which "
        f"chance can explain (p = {p_value:.2g}{of_several}); {smallest(clearest.record)}"
    )


def _no_worse(compared: Sequence[ModelComparison], margin: float, other: str) -> tuple[bool, str]:
    worse = [each for each in compared if not is_no_worse(each.statistics, margin)]
    by = f"{other} by more than {amount(margin, (worse or compared)[0].measure.unit)}"
    if worse:
        return False, f"not shown to be no worse than {by}: {_all(worse)}"
    return True, f"no worse than {by}: {_all(compared)}"


def _all(compared: Sequence[ModelComparison]) -> str:
    return "; ".join(describe(each.record) for each in compared)


def _reason(figures: EvaluateFigures, comparisons: Sequence[ModelComparison]) -> str:
    """Why a checkpoint passes the minimum values."""
    accuracy = figures.preference_accuracy
    if accuracy is not None:
        return f"the chosen reply favoured in {accuracy:.1%} of the held-out pairs"
    words = f"held-out loss lower by {figures.loss_reduction:.4f} nats a token"
    for each in comparisons:
        found = each.statistics
        if (each.measure.name, each.against, each.slice) == (HELD_OUT_LOSS, "base", None) and found.clusters > 1:
            low, high = found.gain_interval
            words += f" ({percent(found.confidence)} interval {low:.4f} to {high:.4f}; {items_of(each.record)})"
    return words
