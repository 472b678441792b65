"""What several runs' checkpoints replied to the same items, side by side, as page.js shows them."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from workflows.record import JsonObject
from workflows.runs.page.replies import ShownItem, shown_items, suite_units
from workflows.scorecard.records import Scorecard, ScoredItem

_TUNED = "tuned"
# With three replies of 300 characters each, a page of 5,000 items has 4.5 MB (benchmarks/page_speed.py).
_MAX_REPLIES = 15_000


class Evaluated(NamedTuple):
    """A run's evaluation."""

    run: str
    card: Scorecard
    items: Sequence[ScoredItem]


def compared_replies_json(first: Evaluated, others: Sequence[Evaluated]) -> JsonObject | None:
    """Everything that the first run and at least one other were both asked; None if there is nothing.

    An item is the same if it has the same id and text, and its suite the same scorer; a question, if it has the same
    facts. If there are too many for a page, those stay whose points differ most.
    """
    found = {run.run: _by_identity(run) for run in (first, *others)}
    later = [run.run for run in others if not found[run.run].keys().isdisjoint(found[first.run])]
    if not later:
        return None
    shared = [key for key in found[first.run] if any(key in found[run] for run in later)]
    items = [_together({run: found[run][key] for run in (first.run, *later) if key in found[run]}) for key in shared]
    kept = sorted(items, key=_spread, reverse=True)[: _MAX_REPLIES // (1 + len(later))]
    units = suite_units(first.card, first.items)
    return {
        "models": {run: run for run in (first.run, *later)},
        "before": [first.run],
        "now": later,
        "suites": {name: units[name] for name in dict.fromkeys(item.suite for item in items)},
        "items": [item.to_json() for item in kept],
        "left_out": len(items) - len(kept),
    }


def _by_identity(run: Evaluated) -> dict[tuple[str, ...], ShownItem]:
    """The run's items by what makes them the same in another run."""
    scorers = {suite.name: (suite.scorer, suite.unit) for suite in run.card.suites}
    return {
        (item.suite, *scorers.get(item.suite, ()), item.id, item.expected, *item.asked): item
        for item in shown_items(run.card, run.items)
    }


def _together(by_run: Mapping[str, ShownItem]) -> ShownItem:
    """One item with each run's checkpoint as a model."""
    *_, latest = by_run.values()
    return latest._replace(
        replies={run: item.replies[_TUNED] for run, item in by_run.items() if _TUNED in item.replies},
        scores={run: item.scores[_TUNED] for run, item in by_run.items() if _TUNED in item.scores},
        failed=[run for run, item in by_run.items() if _TUNED in item.failed],
    )


def _spread(item: ShownItem) -> float:
    """How far apart the runs' points are; below that, items with different replies come first."""
    scores = item.scores.values()
    differs = len({json.dumps(replies) for replies in item.replies.values()}) > 1
    return max(scores) - min(scores) if len(set(scores)) > 1 else 0.0 if differs else -1.0
