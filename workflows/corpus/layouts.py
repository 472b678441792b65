"""Layouts of records: the keys of the conversation, its system message and its tools, and conflicting keys.

`renamed` gives a record our key names. `turns_in` finds a whole conversation, `prompt_in` and `reply_in` find
separate parts, and `conversation_of` combines everything.
"""

import contextlib
import functools
from collections.abc import Mapping
from typing import Any, get_args

from models.chat.form import Conversation, Message, is_blank, kind_of
from models.chat.messages import SameRole, joined_messages, normal_messages, normal_tools
from models.chat.turn import role_of, squashed
from workflows.corpus.errors import UnusableLine
from workflows.corpus.raw import RawObject
from workflows.corpus.turns import turns_of, written_turns, written_value
from workflows.spec.data import FieldName

FIELDS: tuple[str, ...] = get_args(FieldName)
LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
PROMPTS = ("prompt", "instruction", "question", "query", "input", "inputs", "problem", "user", "human")
REPLIES = ("completion", "response", "output", "answer", "targets", "solution", "assistant")
# If another name is present too, these mean something else, such as a user's id.
_WEAK = ("user", "human", "assistant")
_SYSTEMS = ("system", "system_prompt", "system_message")
_OF_REPLY = ("reasoning_content", "reasoning", "thinking", "thought", "tool_calls")
# Values of `reasoning` and `thinking` that are modes, not the reasoning itself.
_SWITCHES = ("on", "off", "true", "false", "yes", "no", "none", "low", "medium", "high")
_NOT_TEXT = ("image", "images", "audio", "audios", "video", "videos")
_REFUSED = {
    **dict.fromkeys(_NOT_TEXT, "training uses only text; remove it, or the line"),
    **dict.fromkeys(("documents", "context", "instructions"), "it would be lost; write it into the messages, or "
                    "map it in data.fields, as in {{input: {0}}} beside a prompt or {{system: {0}}}"),
    **dict.fromkeys(("choices", "options"), "it would be lost; write it into the prompt"),
    "chat_template_kwargs": "set it for all lines, in data.chat_template_kwargs",
}  # fmt: skip
_STRONG_PROMPTS = tuple(name for name in PROMPTS if name not in _WEAK)
_BESIDE_LISTS = frozenset((*_STRONG_PROMPTS, *REPLIES, *_OF_REPLY, "history"))
_OUTER = frozenset((*_SYSTEMS, *_REFUSED, "weight", "tools", "functions"))
_COUNTING = frozenset((*_OUTER, "history", "input"))
_SPELLED = {squashed(key): key for key in _COUNTING if key != "weight"}


def renamed(record: RawObject, fields: Mapping[str, str]) -> RawObject:
    """The record with our key names: a key mapped in `data.fields` takes precedence over all others."""
    if not fields:
        return record
    if unknown := [name for name in fields if name not in FIELDS]:
        raise UnusableLine(f"data.fields has the unknown name {unknown[0]!r}; known here: {', '.join(FIELDS)}")
    mapped = [name for name in FIELDS if name in fields and fields[name] in record]
    dropped = {fields[name] for name in mapped} | {other for name in mapped for other in _kin(name)}
    kept = {key: value for key, value in record.items() if key not in dropped}
    return kept | {name: record[fields[name]] for name in mapped}


def _kin(name: str) -> tuple[str, ...]:
    if name in ("prompt", "completion"):
        return (*LISTS, *(PROMPTS if name == "prompt" else REPLIES))
    return {"messages": LISTS, "system": _SYSTEMS, "tools": ("tools", "functions")}.get(name, (name,))


def turns_in(record: RawObject, fields: Mapping[str, str]) -> list[Any] | None:
    """The whole conversation of a record; None if it has none; raises UnusableLine if it is ambiguous."""
    name = list_name(record, fields)
    if name is not None:
        turns = turns_of(record[name], name, fields)
        if "messages" not in fields and not _BESIDE_LISTS.isdisjoint(record):
            _check_beside(record, name, turns)
        return turns
    reply = _the_one(record, REPLIES, "completion", "reply")
    if reply is None and not record.get("tool_calls"):
        return None
    turns = reply_in(record, reply, fields)
    if is_whole(turns):
        check_prompt_is_in(record, reply or "tool_calls", turns)
        return turns
    prompt = prompt_in(record, fields)
    return None if prompt is None else answered(prompt, turns, reply or "tool_calls")


def prompt_in(record: RawObject, fields: Mapping[str, str]) -> list[Any] | None:
    """The turns before a reply: `history`, and a prompt as text or as turns; None if there is none."""
    name = _the_one(record, PROMPTS, "prompt", "prompt")
    if name is None:
        return None
    value = record[name]
    said = _texts_or_turns(value, name, "user", fields)
    if name != "input" and not _is_empty(more := record.get("input")):
        parts = [_text(part, key) for part, key in ((value, name), (more, "input"))]
        said = [{"role": "user", "content": "\n\n".join(part for part in parts if not is_blank(part))}]
    history = record.get("history")
    return said if _is_empty(history) else turns_of(history, "history", fields) + said


def reply_in(record: RawObject, name: str | None, fields: Mapping[str, str]) -> list[Any]:
    """The turns of the reply in the key `name`, with the keys that belong to it; None for a reply of calls alone."""
    reply = _texts_or_turns(record[name] if name else None, name or "tool_calls", "assistant", fields)
    added = {key: record[key] for key in _OF_REPLY if record.get(key) and not _is_switch(record[key])}
    if not added:
        return reply
    if len(reply) > 1 or name in ("chosen", "rejected"):
        raise UnusableLine(f"`{next(iter(added))}` is beside `{name}`; write it into its message")
    return [{**added, **reply[0]}]


def is_whole(reply: list[Any]) -> bool:
    """Whether a reply is a whole conversation that includes its prompt."""
    return role_of(reply[0]) in ("system", "developer", "user")


def check_prompt_is_in(record: RawObject, name: str, turns: list[Any]) -> None:
    """Raise UnusableLine if there is a prompt beside a whole conversation that does not contain it."""
    said = ""
    for key in _STRONG_PROMPTS:
        if _is_empty(value := record.get(key)) or _is_switch(value):
            continue
        said = said or "\n".join(" ".join(text.split()) for text in _texts_in(turns))
        asked = written_turns(value) if isinstance(value, str) else None
        asked = asked or (value if isinstance(value, list) else [value])
        spoken = [turn.get("content", turn.get("value")) if isinstance(turn, dict) else turn for turn in asked]
        if not all(" ".join(text.split()) in said for text in _texts_in(spoken)):
            raise UnusableLine(
                f"`{key}` is beside `{name}`, which does not contain it; write it into a message, map it in "
                f"data.fields, as in {{system: {key}}}, or use only `{name}`: {{messages: {name}}}"
            )


def _texts_in(value: Any) -> list[str]:
    """All strings in a value at any depth, without the names of keys."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [text for each in inner for text in _texts_in(each)]


def answered(prompt: list[Any] | None, reply: list[Any], name: str) -> list[Any]:
    """The reply with its prompt before it."""
    if prompt is None:
        raise UnusableLine(f"`{name}` has no prompt; give `prompt` (text or messages) or `messages`")
    if prompt and role_of(prompt[-1]) == role_of(reply[0]) == "assistant":
        raise UnusableLine(
            f"`{name}` has no user turn to reply to: its prompt ends with message {len(prompt) - 1}, by the assistant"
        )
    return [*prompt, *reply]


def conversation_of(record: RawObject, turns: list[Any], same_role: SameRole) -> Conversation:
    """The turns in normal form, with the record's system message and tools."""
    messages = normal_messages(turns, same_role)
    if len(record) > 1:
        _check_spelling(record)
    if _OUTER.isdisjoint(record):
        return Conversation(messages)
    _check_outer(record, messages)
    return Conversation(_with_system(record, messages, same_role), _tools(record))


def list_name(record: RawObject, fields: Mapping[str, str]) -> str | None:
    """The key with the list of turns; raises UnusableLine if several keys have different ones."""
    if "messages" in record and len(record) == 1:
        return "messages"
    names = [name for name in LISTS if _may_be_turns(record.get(name))]
    if len(names) > 1:
        first, *others = [_turns_or_none(record[name], name, fields) for name in names]
        for name, turns in zip(names[1:], others, strict=True):
            if first is None or turns is None or not _are_alike(first, turns):
                raise UnusableLine(
                    f"`{names[0]}` and `{name}` could both be the conversation; choose one in data.fields, as in "
                    f"{{messages: {names[0]}}}"
                )
    return names[0] if names else None


def _may_be_turns(value: Any) -> bool:
    """Whether a key such as `turns` may contain the turns, and not their number."""
    return bool(value) and (isinstance(value, list | dict) or (isinstance(value, str) and value.lstrip()[:1] == "["))


def _turns_or_none(value: Any, name: str, fields: Mapping[str, str]) -> list[Any] | None:
    try:
        return turns_of(value, name, fields)
    except ValueError:
        return None


def _are_alike(one: list[Any], other: list[Any]) -> bool:
    try:
        return normal_messages(one) == normal_messages(other)
    except ValueError:
        return one == other


def _the_one(record: RawObject, names: tuple[str, ...], ours: str, what: str) -> str | None:
    """The only one of `names` that the record has; prefers one that is not empty."""
    found = [name for name in names if not _is_empty(record.get(name))]
    if len(found) > 1 and ours == "prompt" and "input" in found:
        found.remove("input")  # it is a part of the other one
    if len(found) > 1:
        found = [name for name in found if name not in _WEAK] or found
    if len(found) > 1:
        raise UnusableLine(
            f"{' and '.join(f'`{name}`' for name in found)} could be the {what}; choose one in data.fields, as in "
            f"{{{ours}: {found[0]}}}"
        )
    return found[0] if found else next((name for name in names if name in record), None)


def _texts_or_turns(value: Any, name: str, role: str, fields: Mapping[str, str]) -> list[Any]:
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        if not value or not all(isinstance(it, dict) for it in value):
            raise UnusableLine(f"`{name}` is neither text nor a list of messages")
        return turns_of(value, name, fields)
    text = _text(value, name)
    if (turns := written_turns(text)) is not None:
        return turns_of(turns, name, fields)
    return [{"role": role, "content": text}]


def _text(value: Any, name: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    words = "; write it as text: its digits, or the meaning of an index, are unknown" if _is_number(value) else ""
    raise UnusableLine(f"`{name}` is {kind_of(value)}, neither text nor a list of messages{words}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_empty(value: Any) -> bool:
    return value is None or value in ([], {}) or (isinstance(value, str) and is_blank(value))


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in _SWITCHES)


def _check_beside(record: RawObject, name: str, turns: list[Any]) -> None:
    """Raise UnusableLine for a key beside a whole conversation that may belong to one of its turns."""
    said = [str(value) for turn in turns if isinstance(turn, dict) for value in turn.values()]
    for key in (*_OF_REPLY, "history"):
        value = record.get(key)
        if not _is_empty(value) and not _is_switch(value) and not any(str(value).strip() in text for text in said):
            raise UnusableLine(
                f"`{key}` is beside `{name}`; write it into the turn to which it belongs, or use only `{name}` "
                f"with data.fields, as in {{messages: {name}}}"
            )
    check_prompt_is_in(record, name, turns)
    reply = next((key for key in REPLIES if not _is_empty(record.get(key))), None)
    if reply and turns and role_of(turns[-1]) != "assistant":
        raise UnusableLine(
            f"`{name}` ends without a reply, and `{reply}` is beside it; if that is the reply, set data.fields to "
            f"{{prompt: {name}, completion: {reply}}}"
        )


def _check_spelling(record: RawObject) -> None:
    for key, value in record.items():
        meant = _meant(key)
        if meant is not None and key not in _COUNTING and not _is_empty(value):
            raise UnusableLine(f"`{key}` of the record is unknown; rename it to `{meant}`, or map it in data.fields")


@functools.lru_cache(maxsize=1024)
def _meant(key: str) -> str | None:
    """The known key of which this is another spelling, as `system` for `System`."""
    return _SPELLED.get(squashed(key))


def _check_outer(record: RawObject, messages: list[Message]) -> None:
    for key, words in _REFUSED.items():
        value = record.get(key)
        if isinstance(value, str) and any(value.strip() in message["content"] for message in messages):
            continue  # already in the messages, or blank
        if not _is_empty(value):
            raise UnusableLine(f"`{key}` of the record is not empty: {words.format(key)}")
    weight = record.get("weight")
    if weight is not None and str(weight) not in ("1", "1.0", "True"):
        raise UnusableLine(
            f"`weight` of the record is {kind_of(weight)}; it must be 1, or remove the record from the file; to "
            "exclude one reply, set `weight` or `train` of its message"
        )


def _with_system(record: RawObject, messages: list[Message], same_role: SameRole) -> list[Message]:
    found = [(name, record[name]) for name in _SYSTEMS if not _is_empty(record.get(name))]
    if not found:
        return messages
    name, value = found[0]
    if any(other != value for _, other in found):
        raise UnusableLine(f"{' and '.join(f'`{it}`' for it, _ in found)} are different texts; remove one")
    try:
        [system] = normal_messages([{"role": "system", "content": value}])
    except ValueError as error:
        raise UnusableLine(f"`{name}` of the record: {error}") from None
    first = messages[0]
    if first["role"] != "system":
        return [system, *messages]
    if first["content"].strip() == system["content"].strip():
        return messages
    joined = joined_messages(system, first) if same_role == "merge" else None
    if joined is None:
        raise UnusableLine(f"`{name}` of the record and message 0 are different system messages; remove one")
    return [joined, *messages[1:]]


def _tools(record: RawObject) -> list[dict[str, Any]] | None:
    tools, functions = (normal_tools(_listed(record.get(key))) for key in ("tools", "functions"))
    if tools and functions and tools != functions:
        raise UnusableLine("`tools` and `functions` of the record are different; remove one")
    return tools or functions


def _listed(value: Any) -> Any:
    """The list in a string of Python syntax; any other value unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        with contextlib.suppress(ValueError):
            return written_value(value)
    return value
