"""What a search has spent and what further trials are expected to gain, as text. Imports neither Ray nor torch."""

from workflows.search.records import Search


def price_lines(search: Search) -> list[str]:
    """What the search has spent and what further trials were expected to gain, and whether that has ended it."""
    return [line for line in (_cost_line(search), _gain_line(search)) if line]


def _cost_line(search: Search) -> str:
    if search.spent is None:
        return ""
    of = "" if search.max_cost is None else f" of tune.max_cost, ${search.max_cost:,.2f}"
    spent = f"spent ${search.spent:,.2f}{of}, at ${search.price_per_hour:,.2f} an hour"
    if search.cost_with_another is not None:
        with_another = f"${search.cost_with_another:,.2f}"
        return f"{spent}; the search ended, because another trial would have ended at {with_another}"
    return f"{spent}; running trials were stopped" if search.stopped_by_cost else spent


def _gain_line(search: Search) -> str:
    if search.expected_gain is None:
        return ""
    expected = f"{search.expected_gain:.4g} is expected of further trials for the tokens of a whole training"
    if search.min_gain is None:
        return f"an improvement by {expected}"
    return f"the search ended, because an improvement by {expected}, less than tune.min_gain, {search.min_gain:.4g}"
