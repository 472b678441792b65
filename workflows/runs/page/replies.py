"""The replies of a scorecard side by side, as page.js shows them."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from workflows.judge.records import JudgedItem
from workflows.record import JsonObject
from workflows.scorecard.records import AskedQuestion, ComparedReply, Scorecard, ScoredItem

_QUESTIONS, _HELD_OUT = "facts", "held-out conversations"
_MODELS = {"base": "base", "service": "in service", "tuned": "checkpoint"}


class ShownItem(NamedTuple):
    """What was asked, with the replies and scores of each model."""

    suite: str
    asked: Sequence[str]
    """by turn"""
    replies: Mapping[str, Sequence[str]]
    """by model and turn"""
    id: str = ""
    place: str = ""
    tags: Sequence[str] = ()
    scores: Mapping[str, float] = {}
    failed: Sequence[str] = ()
    """models without a reply"""
    expected: str = ""
    judged: JsonObject | None = None

    def to_json(self) -> JsonObject:
        """As page.js reads it."""
        return {name: value for name, value in self._asdict().items() if name != "judged" or value is not None}


def replies_json(
    scorecard: Scorecard, items: Sequence[ScoredItem], judged: Sequence[JudgedItem] = ()
) -> JsonObject | None:
    """Everything that was asked, with the replies and scores of each model; None if nothing was."""
    shown = shown_items(scorecard, items, judged)
    if not shown:
        return None
    replied: set[str] = set().union(*(each.replies for each in shown))
    models = {model: title for model, title in _MODELS.items() if model in replied}
    return {
        "models": models,
        "before": [model for model in ("service", "base") if model in models],
        "now": ["tuned"],
        "suites": suite_units(scorecard, items),
        "items": [each.to_json() for each in shown],
        "left_out": 0,
    }


def shown_items(
    scorecard: Scorecard, items: Sequence[ScoredItem], judged: Sequence[JudgedItem] = ()
) -> list[ShownItem]:
    """The items of suites, the questions and the held-out conversations."""
    outcomes = {each.id: each for each in judged}
    return [
        *(_of_suite(item, outcomes.get(f"{item.suite}/{item.id}")) for item in items),
        *map(_of_question, scorecard.questions),
        *map(_of_conversation, scorecard.replies),
    ]


def suite_units(scorecard: Scorecard, items: Sequence[ScoredItem]) -> dict[str, JsonObject]:
    """How to show the points of each suite."""
    lower = {each.measure for each in scorecard.comparisons if each.lower_is_better}
    units = {suite.name: suite.unit for suite in scorecard.suites}
    names = dict.fromkeys(item.suite for item in items)
    found: dict[str, JsonObject] = {
        name: {"unit": units.get(name, "number"), "lower": name in lower} for name in names
    }
    if scorecard.questions:
        found[_QUESTIONS] = {"unit": "share", "lower": False}
    if scorecard.replies:
        found[_HELD_OUT] = {"unit": "number", "lower": False}
    return found


def _of_suite(item: ScoredItem, judged: JudgedItem | None) -> ShownItem:
    return ShownItem(
        suite=item.suite,
        asked=item.asked,
        replies=item.replies,
        id=item.id,
        place=item.place,
        tags=[f"{key}={value}" for key, value in item.tags.items()],
        scores=item.scores,
        failed=item.failed,
        judged={"outcome": judged.outcome, "reasons": judged.reasons} if judged else None,
    )


def _of_question(item: AskedQuestion) -> ShownItem:
    facts = len(item.facts)
    return ShownItem(
        suite=_QUESTIONS,
        asked=[item.question],
        replies={"base": [item.base], "tuned": [item.tuned]},
        scores={"base": item.base_facts / facts, "tuned": item.tuned_facts / facts} if facts else {},
        expected="; ".join(" or ".join(forms) for forms in item.facts),
    )


def _of_conversation(item: ComparedReply) -> ShownItem:
    replies = {"base": item.base, "tuned": item.tuned, "service": item.service}
    return ShownItem(
        suite=_HELD_OUT,
        asked=["\n".join(_message(message, len(item.messages) > 1) for message in item.messages)],
        replies={model: [reply] for model, reply in replies.items() if reply is not None},
        expected=item.reference,
    )


def _message(message: JsonObject, with_role: bool) -> str:
    content = message.get("content")
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return f"{message.get('role')}: {text}" if with_role else text
