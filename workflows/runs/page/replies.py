"""The replies of a scorecard side by side, as page.js shows them."""

import json
from collections.abc import Iterator, Mapping, Sequence

from workflows.judge.records import JudgedItem
from workflows.record import JsonObject
from workflows.scorecard.records import AskedQuestion, ComparedReply, Scorecard, ScoredItem

_QUESTIONS, _HELD_OUT = "facts", "held-out conversations"
_MODELS = {"base": "base", "service": "in service", "tuned": "checkpoint"}


def replies_json(
    scorecard: Scorecard, items: Sequence[ScoredItem], judged: Sequence[JudgedItem] = ()
) -> JsonObject | None:
    """Everything that was asked, with the replies and scores of each model; None if nothing was."""
    outcomes = {each.id: each for each in judged}
    shown = [
        *(_of_suite(item, outcomes.get(f"{item.suite}/{item.id}")) for item in items),
        *map(_of_question, scorecard.questions),
        *map(_of_conversation, scorecard.replies),
    ]
    if not shown:
        return None
    replied: set[str] = set().union(*(each["replies"] for each in shown))  # type: ignore[arg-type]
    return {
        "models": {model: title for model, title in _MODELS.items() if model in replied},
        "suites": dict(_suites(scorecard, items)),
        "items": shown,
    }


def _suites(scorecard: Scorecard, items: Sequence[ScoredItem]) -> Iterator[tuple[str, Mapping[str, object]]]:
    """How to show the points of each suite."""
    lower = {each.measure for each in scorecard.comparisons if each.lower_is_better}
    units = {suite.name: suite.unit for suite in scorecard.suites}
    for name in dict.fromkeys(item.suite for item in items):
        yield name, {"unit": units.get(name, "number"), "lower": name in lower}
    if scorecard.questions:
        yield _QUESTIONS, {"unit": "share", "lower": False}
    if scorecard.replies:
        yield _HELD_OUT, {"unit": "number", "lower": False}


def _of_suite(item: ScoredItem, judged: JudgedItem | None) -> dict[str, object]:
    found = {"judged": {"outcome": judged.outcome, "reasons": judged.reasons}} if judged else {}
    return {
        **found,
        "suite": item.suite,
        "id": item.id,
        "place": item.place,
        "tags": [f"{key}={value}" for key, value in item.tags.items()],
        "asked": item.asked,
        "replies": item.replies,
        "scores": item.scores,
        "failed": item.failed,
    }


def _of_question(item: AskedQuestion) -> dict[str, object]:
    facts = len(item.facts)
    return {
        "suite": _QUESTIONS,
        "id": "",
        "place": "",
        "tags": [],
        "asked": [item.question],
        "replies": {"base": [item.base], "tuned": [item.tuned]},
        "scores": {"base": item.base_facts / facts, "tuned": item.tuned_facts / facts} if facts else {},
        "failed": [],
        "expected": "; ".join(" or ".join(forms) for forms in item.facts),
    }


def _of_conversation(item: ComparedReply) -> dict[str, object]:
    replies = {"base": item.base, "tuned": item.tuned, "service": item.service}
    return {
        "suite": _HELD_OUT,
        "id": "",
        "place": "",
        "tags": [],
        "asked": ["\n".join(_message(message, len(item.messages) > 1) for message in item.messages)],
        "replies": {model: [reply] for model, reply in replies.items() if reply is not None},
        "scores": {},
        "failed": [],
        "expected": item.reference,
    }


def _message(message: JsonObject, with_role: bool) -> str:
    content = message.get("content")
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return f"{message.get('role')}: {text}" if with_role else text
