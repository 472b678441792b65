"""A judge's figures as text, for the terminal."""

from workflows.judge.records import JudgeFigures


def judge_text(figures: JudgeFigures) -> str:
    """The figures in a few lines, indented as the scorecard's."""
    lines = [f"  judge {figures.judge} ({figures.mode}): {_outcomes(figures)}"]
    trust = [
        f"same winner in both orders in {figures.consistency:.0%} of pairs"
        if figures.consistency is not None
        else "",
        f"names the first place in {figures.first_place_share:.0%} of its choices"
        if figures.first_place_share is not None
        else "",
        _agreement(figures),
    ]
    if any(trust):
        lines.append(f"    {'; '.join(part for part in trust if part)}")
    tokens = f"{figures.input_tokens:,} + {figures.output_tokens:,} tokens"
    cost = "" if figures.cost is None else f", cost {figures.cost:,.4g}"
    kept = f"; {figures.cached:,} answers from the store" if figures.cached else ""
    lines.append(f"    {figures.requests:,} requests, {tokens}{cost}{kept}")
    if figures.refused:
        lines.append(f"    refused, its answers do not count: {figures.refused}")
    return "\n".join(lines)


def _outcomes(figures: JudgeFigures) -> str:
    if not figures.wins + figures.ties + figures.losses + figures.no_answers:
        return f"none of {figures.items:,} items judged"
    identical = f" ({figures.identical:,} with identical replies)" if figures.identical else ""
    none = f", {figures.no_answers:,} without an answer" if figures.no_answers else ""
    return (
        f"{figures.items:,} items, tuned wins {figures.wins:,}, ties {figures.ties:,}{identical}, "
        f"loses {figures.losses:,}{none}"
    )


def _agreement(figures: JudgeFigures) -> str:
    found = figures.agreement
    if found is None:
        return ""
    kappa = "" if found.kappa is None else f", kappa {found.kappa:.2f}"
    interval = f"{found.low:.0%} to {found.high:.0%}"
    return f"agrees with people in {found.share:.0%} of {found.labels} pairs ({interval}{kappa})"
