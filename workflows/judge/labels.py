"""Pairs of replies that people have compared.

{"question": "How long may I return it?", "first": "45 days.", "second": "One day.", "prefers": "first"}
{"messages": [{"role": "user", ...}], "first": "...", "second": "...", "prefers": "tie"}
"""

import json
from dataclasses import dataclass
from typing import Any

from models.chat.form import Message
from models.chat.messages import check_messages, normal_messages
from models.errors import nearest
from workflows.judge.prompt import read_text
from workflows.stage import StageFailed
from workflows.store import without_secrets

_PREFERS = ("first", "second", "tie")
_FIELD = "evaluate.judge.labels"


@dataclass(frozen=True)
class Label:
    """A pair of replies, and which one people prefer."""

    messages: tuple[Message, ...]
    first: str
    second: str
    prefers: str
    """`first`, `second` or `tie`"""


def read_labels(uri: str) -> list[Label]:
    """The labelled pairs; raises StageFailed with file and line."""
    labels = []
    for number, line in enumerate(read_text(_FIELD, uri).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            labels.append(_label(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise StageFailed(f"{_FIELD}: {without_secrets(uri)}:{number}: {error}") from None
    if not labels:
        raise StageFailed(f"{_FIELD}: {without_secrets(uri)} has no pairs; add some, or leave the field out")
    return labels


def _label(record: Any) -> Label:
    if not isinstance(record, dict):
        raise ValueError("not a JSON object; write one a line")
    if ("question" in record) == ("messages" in record):
        raise ValueError("must have exactly one of `question` and `messages`")
    asked = record["messages"] if "messages" in record else [{"role": "user", "content": record["question"]}]
    check_messages(asked)
    for key in ("first", "second"):
        if not isinstance(record.get(key), str):
            raise ValueError(f"`{key}` must be a reply, as a text")
    prefers = record.get("prefers")
    if prefers not in _PREFERS:
        near = nearest(prefers, _PREFERS) if isinstance(prefers, str) else None
        hint = f"; did you mean {near}?" if near else ""
        raise ValueError(f"`prefers` is {prefers!r}; it must be one of {', '.join(_PREFERS)}{hint}")
    return Label(tuple(normal_messages(asked)), record["first"], record["second"], prefers)
