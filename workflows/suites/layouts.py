"""The layouts of an item: a question, messages, or turns.

{"question": "...", "facts": [["45 days"]]}
{"messages": [{"role": "system", ...}, {"role": "user", ...}], "tools": [...], "tool_calls": [...]}
{"turns": [{"user": "..."}, {"user": "...", "facts": [...]}], "id": "7", "tags": {"topic": "returns"}, "group": "a"}
{"question": "...", "facts": [...], "knowledge": [{"name": "rules.md", "text": "..."}]}
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from models.chat.calls import normal_tools
from models.chat.form import SYSTEM_ROLES, Message, kind_of
from models.chat.knowledge import passages_of, with_knowledge
from models.chat.messages import check_messages, normal_messages
from models.errors import nearest
from models.scorers.names import KEYS
from workflows.json_lines import JsonRecord, listed, one_key, rename_hint
from workflows.suites.suite import Item, Turn

_BEGINNINGS = ("question", "messages", "turns")
_EXPECTATIONS = tuple(dict.fromkeys(KEYS.values()))


class Reading(NamedTuple):
    """How a suite reads what its items expect."""

    key: str | None
    """of an item; None: the whole record is what a Python function gets"""
    read: Callable[[Any], Any]


def keys_in(record: JsonRecord) -> set[str]:
    """The keys of scorers that an item has, or its turns have."""
    turns = record.get("turns")
    parts = [record, *(turns if isinstance(turns, list) else ())]
    return {key for part in parts if isinstance(part, dict) for key in _EXPECTATIONS if key in part}


def item_of(record: JsonRecord, place: str, reading: Reading) -> Item:
    """The item in a record; raises ValueError with what is wrong."""
    beginning = one_key(record, _BEGINNINGS)
    turns = tuple(_turns(record, reading) if "turns" in record else [_turn(record, beginning, record, reading, True)])
    if all(turn.expected is None for turn in turns):
        lacks = "no turn has" if "turns" in record else "has no"
        raise ValueError(f"{lacks} `{reading.key}`{_hint(record, reading)}")
    number = record.get("id", _default_id(place))
    if not isinstance(number, str | int) or isinstance(number, bool) or not str(number):
        raise ValueError(f"`id` is {kind_of(number)}; it must be a text or a whole number")
    group = record.get("group", str(number))
    if not isinstance(group, str | int) or isinstance(group, bool):
        raise ValueError(f"`group` is {kind_of(group)}; it must be a text or a whole number")
    if "knowledge" in record:
        turns = _with_passages(turns, record["knowledge"])
    return Item(str(number), turns, _tags(record), str(group), place)


def _with_passages(turns: tuple[Turn, ...], knowledge: Any) -> tuple[Turn, ...]:
    """The turns with an item's passages in the prompts, in the form of training."""
    first, *later = turns
    messages = with_knowledge(first.messages, passages_of(knowledge, "knowledge"))
    return (replace(first, messages=tuple(messages), brings_knowledge=True), *later)


def _turns(record: JsonRecord, reading: Reading) -> list[Turn]:
    turns = record["turns"]
    if not isinstance(turns, list) or not turns:
        raise ValueError(f'`turns` is {kind_of(turns)}; it must be a list of turns, as in [{{"user": "Hello"}}]')
    if reading.key == KEYS["perplexity"]:
        raise ValueError(
            "has `turns`, but its replies are given; write the conversation before the reply as `messages`"
        )
    if reading.key is not None and reading.key in record:
        raise ValueError(f"`{reading.key}` stands beside `turns`; move it into the turn whose reply it is about")
    found = []
    shared = {key: value for key, value in record.items() if key != "turns"}
    for index, turn in enumerate(turns):
        try:
            if not isinstance(turn, dict):
                raise ValueError(f"is {kind_of(turn)}, not an object")
            beginning = one_key(turn, ("user", "messages"))
            found.append(_turn(turn, beginning, {**shared, **turn}, reading, index == len(turns) - 1, index > 0))
        except ValueError as error:
            raise ValueError(f"turn {index}: {error}") from None
    return found


def _turn(
    own: JsonRecord, beginning: str, whole: JsonRecord, reading: Reading, is_last: bool, continues: bool = False
) -> Turn:
    """`own` has the turn's keys, `whole` also those that all turns share."""
    value = own[beginning]
    given = value if beginning == "messages" else [{"role": "user", "content": value}]
    messages = _later_messages(given) if continues else _messages(given)
    tools = normal_tools(whole.get("tools"))
    if reading.key is None:
        is_scored = is_last or own.keys() - {"user", "messages", "tools"}
        return Turn(messages, tools, whole if is_scored else None)
    if own.get(reading.key) is None:
        return Turn(messages, tools)
    expected = reading.read(own[reading.key])
    if reading.key == "tool_calls":
        _check_named(expected, tools)
    return Turn(messages, tools, expected)


def _messages(given: Any) -> tuple[Message, ...]:
    """Messages in normal form, up to one to which an assistant replies."""
    check_messages(given)
    messages = tuple(normal_messages(given))
    if messages[-1]["role"] not in ("user", "tool"):
        raise ValueError(f"the last message is of role {messages[-1]['role']!r}; a model replies to a user or a tool")
    return messages


def _later_messages(given: Any) -> tuple[Message, ...]:
    """Those after an earlier reply: results of the calls in that reply, or a user's message, or both.

    Results lose their ids, since the model gives its calls others: they answer the calls in their order.
    """
    if not isinstance(given, list) or not given:
        raise ValueError("`messages` is not a non-empty list")
    given_results = list(itertools.takewhile(_is_result, given))
    results = [{key: value for key, value in each.items() if key != "tool_call_id"} for each in given_results]
    rest = given[len(results) :]
    messages: tuple[Message, ...] = ()
    if results:
        # normal_messages takes results after calls alone: these stand for the model's.
        calls: list[JsonRecord] = [{"name": each.get("name") or "function", "arguments": {}} for each in results]
        before = [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": calls}]
        messages = tuple(normal_messages([*before, *results])[len(before) :])
    if rest and isinstance(rest[0], dict) and rest[0].get("role") in ("assistant", *SYSTEM_ROLES):
        raise ValueError(
            f"begins with a message of role {rest[0]['role']!r}; a reply comes before, so it must be a user's"
        )
    return (*messages, *(_messages(rest) if rest else ()))


def _is_result(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "tool"


def _check_named(calls: list[JsonRecord], tools: list[JsonRecord] | None) -> None:
    """Raise ValueError if a call is expected of a function that is not among the tools."""
    known = [tool["function"]["name"] for tool in tools or ()]
    for call in calls:
        if call["name"] not in known:
            near = nearest(call["name"], known)
            hint = f"; did you mean {near}?" if near else f"; `tools` has {', '.join(known) or 'none'}"
            raise ValueError(f"`tool_calls` expects a call of {call['name']!r}, which is not among `tools`{hint}")


def _hint(record: JsonRecord, reading: Reading) -> str:
    """The fix for an item without the suite's key."""
    if others := keys_in(record):
        return f", but {listed(sorted(others))}; a suite has one scorer, so move the item into another suite"
    turns = record.get("turns")
    parts = [record, *(turns if isinstance(turns, list) else ())]
    keys = {str(key) for part in parts if isinstance(part, dict) for key in part}
    return rename_hint(reading.key or "", keys) or "; without, nothing is scored"


def _tags(record: JsonRecord) -> Mapping[str, str]:
    tags = record.get("tags", {})
    if not isinstance(tags, dict) or not all(isinstance(value, str) and value for value in tags.values()):
        raise ValueError('`tags` must be an object of texts, as in {"topic": "returns", "language": "de"}')
    return tags


def _default_id(place: str) -> str:
    return PurePosixPath(place).name
