"""Pairs of replies that people have compared.

{"question": "How long may I return it?", "first": "45 days.", "second": "One day.", "prefers": "first"}
{"messages": [{"role": "user", ...}], "first": "...", "second": "...", "prefers": "tie"}
"""

from dataclasses import dataclass

from models.chat.calls import normal_tools
from models.chat.form import Conversation, kind_of
from models.chat.messages import check_messages, normal_messages
from models.errors import nearest
from workflows.json_lines import JsonRecord, json_lines_at, one_key, value_of
from workflows.stage import StageFailed
from workflows.store import without_secrets

_PREFERS = ("first", "second", "tie")
_FIELD = "evaluate.judge.labels"


@dataclass(frozen=True)
class Label:
    """A pair of replies, and which one people prefer."""

    asked: Conversation
    first: str
    second: str
    prefers: str
    """`first`, `second` or `tie`"""


def read_labels(uri: str) -> list[Label]:
    """The labelled pairs; raises StageFailed with file and line."""
    labels = [line.read(_label) for line in json_lines_at(_FIELD, uri)]
    if not labels:
        raise StageFailed(f"{_FIELD}: {without_secrets(uri)} has no pairs; add some, or leave the field out")
    return labels


def _label(record: JsonRecord) -> Label:
    beginning = one_key(record, ("question", "messages"))
    asked = record["messages"] if beginning == "messages" else [{"role": "user", "content": record["question"]}]
    check_messages(asked)
    first, second = (_reply(record, key) for key in ("first", "second"))
    prefers = value_of(record, "prefers")
    if prefers not in _PREFERS:
        near = nearest(prefers, _PREFERS) if isinstance(prefers, str) else None
        hint = f"; did you mean {near}?" if near else ""
        raise ValueError(f"`prefers` is {prefers!r}; it must be one of {', '.join(_PREFERS)}{hint}")
    conversation = Conversation(normal_messages(asked), normal_tools(record.get("tools")))
    return Label(conversation, first, second, prefers)


def _reply(record: JsonRecord, key: str) -> str:
    reply = value_of(record, key)
    if not isinstance(reply, str):
        raise ValueError(f"`{key}` is {kind_of(reply)}; it must be a reply, as a text")
    return reply
