"""Convert records of a file to conversations in one form; detects common layouts line by line.

conversation = parse_conversation(line)
chosen, rejected = parse_pair(line)
conversation, desirable = parse_judged(line)

`fields` (data.fields) maps our key names to the file's, `same_role` (data.same_role) decides about consecutive turns
of one role, `knowledge` (data.knowledge) is the key with passages for the prompt. Everything in a line is used or
refused; docs/data.md lists both.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from models.chat.form import Conversation, Message
from models.chat.knowledge import Passage, passages_of, with_knowledge
from models.chat.messages import SameRole
from workflows.corpus.errors import UnusableLine
from workflows.corpus.layouts import (
    LISTS,
    PROMPTS,
    REPLIES,
    answered,
    check_prompt_is_in,
    conversation_of,
    is_whole,
    list_name,
    prompt_in,
    renamed,
    reply_in,
    turns_in,
)
from workflows.corpus.raw import RawObject
from workflows.corpus.turns import turns_of

_NO_FIELDS: Mapping[str, str] = {}
Given = ParamSpec("Given")
Found = TypeVar("Found")


def _as_value_error(parse: Callable[Given, Found]) -> Callable[Given, Found]:
    """Turn the RecursionError for a deeply nested record into its reason, so that it does not end the worker."""

    @functools.wraps(parse)
    def parse_or_refuse(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        try:
            return parse(*args, **kwargs)
        except RecursionError:
            raise UnusableLine("nested too deeply to be read") from None

    return parse_or_refuse


@_as_value_error
def parse_conversation(
    line: bytes, fields: Mapping[str, str] = _NO_FIELDS, same_role: SameRole = "merge", knowledge: str | None = None
) -> Conversation:
    """The conversation in one line of a file; raises RayconteurError with the reason if there is none."""
    record, passages = _taken(_record_of(line), knowledge)
    record = renamed(record, fields)
    judged = _judged_layout(record)
    if judged == _JUDGED and _label_of(record) is None:
        judged = None  # a label of another kind
    if judged and not any(record.get(name) for name in LISTS):
        raise UnusableLine(f"{judged}, not a conversation; train.objective {_FOR[judged]} uses it")
    turns = turns_in(record, fields)
    if turns is None:
        turns = _unknown(record, fields)
    found = conversation_of(record, turns, same_role)
    if judged and found.messages[-1]["role"] != "assistant":
        raise UnusableLine(f"{judged}, not a conversation with a reply; train.objective {_FOR[judged]} uses it")
    return _grounded(found, passages)


@_as_value_error
def parse_pair(
    line: bytes, fields: Mapping[str, str] = _NO_FIELDS, same_role: SameRole = "merge", knowledge: str | None = None
) -> tuple[Conversation, Conversation]:
    """The prompt with its chosen and with its rejected reply; raises RayconteurError with the reason if there is no
    pair.

    Supported layouts: `chosen` and `rejected`, each a text, a message or a list of messages. They reply to a prompt
    (as in a conversation) or a list of messages; or they are whole conversations that differ only in the last
    message.
    """
    record, passages = _taken(_record_of(line), knowledge)
    record = _as_pair(renamed(record, fields))
    if _judged_layout(record) != _PAIR:
        raise UnusableLine(f"not {_PAIR}, which this train.objective needs; found {_keys(record)}")
    first, second = (_with_prompt(record, name, fields, same_role) for name in ("chosen", "rejected"))
    chosen, rejected = first.messages, second.messages
    for index, (one, other) in enumerate(zip(chosen[:-1], rejected[:-1], strict=False)):
        if one != other:
            raise UnusableLine(f"`chosen` and `rejected` differ in message {index}, before the last reply")
    if len(chosen) != len(rejected):
        raise UnusableLine(
            f"`chosen` ends with message {len(chosen) - 1}, `rejected` with message {len(rejected) - 1}"
        )
    if _stripped(chosen[-1]) == _stripped(rejected[-1]):
        raise UnusableLine("`chosen` and `rejected` are the same reply")
    return _grounded(first, passages), _grounded(second, passages)


@_as_value_error
def parse_judged(
    line: bytes, fields: Mapping[str, str] = _NO_FIELDS, same_role: SameRole = "merge", knowledge: str | None = None
) -> tuple[Conversation, bool]:
    """A conversation that ends in a reply, and whether that is desirable; raises RayconteurError with the reason.

    Supported layouts: `label` (true or false) with `completion` (a text, a message or a list of messages) and its
    prompt, as in a pair; or with a whole conversation.
    """
    record, passages = _taken(_record_of(line), knowledge)
    record = renamed(record, fields)
    if _judged_layout(record) != _JUDGED and not ("label" in record and any(record.get(name) for name in LISTS)):
        raise UnusableLine(f"not {_JUDGED}, which train.objective kto needs; found {_keys(record)}")
    label = _label_of(record)
    if label is None:
        raise UnusableLine(f"`label` is {record['label']!r}; it must be true or false")
    name = "completion" if "completion" in record else None
    return _grounded(_with_prompt(record, name, fields, same_role), passages), label


def mismatched_replies(
    lines: list[bytes],
    fields: Mapping[str, str] = _NO_FIELDS,
    same_role: SameRole = "merge",
    knowledge: str | None = None,
) -> list[Message | None]:
    """For each line with a labelled reply, a reply to another prompt; None if the lines have none.

    It is the reply of the first line, starting half the lines away and wrapping around (lines with the same prompt
    are often adjacent), that has another prompt and another reply, and whose reply is text alone.
    """
    parsed: list[list[Message] | None] = []
    for line in lines:
        try:
            parsed.append(parse_judged(line, fields, same_role, knowledge)[0].messages)
        except ValueError:
            parsed.append(None)
    found: list[Message | None] = []
    for index, own in enumerate(parsed):
        start = index + len(parsed) // 2
        around = (parsed[(start + step) % len(parsed)] for step in range(len(parsed)))
        others = (it[-1] for it in around if own and it and it[:-1] != own[:-1] and it[-1] != own[-1])
        others = (reply for reply in others if "tool_calls" not in reply)
        found.append(next(others, None))
    return found


_PAIR = "a preference pair (`chosen` and `rejected`)"
_JUDGED = "a labelled reply (`completion` and `label`)"
_FOR = {_PAIR: "dpo, orpo or simpo", _JUDGED: "kto"}


def _judged_layout(record: RawObject) -> str | None:
    if "chosen" in record and "rejected" in record:
        return _PAIR
    return _JUDGED if "completion" in record and "label" in record else None


def _label_of(record: RawObject) -> bool | None:
    label = record["label"]
    if isinstance(label, str) and label.strip().lower() in ("true", "false"):  # of a CSV file
        return label.strip().lower() == "true"
    return label if isinstance(label, bool) else None


def _as_pair(record: RawObject) -> RawObject:
    """Convert OpenAI's and ms-swift's layouts of a pair to ours."""
    given = record.get("input")
    if "preferred_output" in record and "non_preferred_output" in record and isinstance(given, dict):
        used = ("input", "preferred_output", "non_preferred_output")
        rest = {key: value for key, value in record.items() if key not in used}
        asked = {key: value for key, value in given.items() if key != "messages"}
        chosen, rejected = record["preferred_output"], record["non_preferred_output"]
        return {**rest, **asked, "prompt": given.get("messages"), "chosen": chosen, "rejected": rejected}
    messages = record.get("messages")
    if "rejected_response" in record and "rejected" not in record and isinstance(messages, list):
        rest = {key: value for key, value in record.items() if key not in ("messages", "rejected_response")}
        *prompt, chosen = messages or [None]
        return {**rest, "prompt": prompt, "chosen": [chosen], "rejected": record["rejected_response"]}
    return record


def _with_prompt(record: RawObject, name: str | None, fields: Mapping[str, str], same_role: SameRole) -> Conversation:
    """The reply in the key `name` (None: at the end of the conversation) after its prompt, in any layout."""
    listed = list_name(record, fields)
    if name is None:
        turns = turns_of(record[listed], listed, fields) if listed else []
    elif is_whole(turns := reply_in(record, name, fields)):
        check_prompt_is_in(record, name, turns)
    else:
        prompt = prompt_in(record, fields)
        if prompt is None and listed is not None:
            prompt = turns_of(record[listed], listed, fields)
        turns = answered(prompt, turns, name)
    found = conversation_of(record, turns, same_role)
    last = found.messages[-1]
    if last["role"] != "assistant" or len(found.messages) == 1:
        raise UnusableLine(f"`{name or listed}` does not end with an assistant's reply to another turn")
    if last.get("train") is False:
        raise UnusableLine(f"`{name or listed}` ends with a reply that is excluded from training (`weight`, `train`)")
    return found


def _unknown(record: RawObject, fields: Mapping[str, str]) -> list[Any]:
    """The turns of a record without known keys; raises UnusableLine with the reason."""
    listed = next((name for name in LISTS if name in record), None)
    if listed is not None:
        return turns_of(record[listed], listed, fields)
    if "text" in record and not any(name in record for name in (*PROMPTS, *REPLIES)):
        raise UnusableLine(
            "unknown layout: `text` does not show which part is the reply; write `prompt` and `completion`, or "
            f"`messages`; found {_keys(record)}"
        )
    raise UnusableLine(
        f"unknown layout: neither a list of messages (`messages`, `conversations`, ...) nor both a prompt "
        f"(`prompt`, `instruction`, ...) and a reply (`completion`, `output`, ...); found {_keys(record)}; "
        "map your keys in data.fields, as in {prompt: your_key, completion: your_other_key}"
    )


def _taken(record: RawObject, knowledge: str | None) -> tuple[RawObject, list[Passage]]:
    """The record without its key `knowledge`, and the passages there."""
    if knowledge is None or knowledge not in record:
        return record, []
    rest = {key: value for key, value in record.items() if key != knowledge}
    return rest, passages_of(record[knowledge], knowledge)


def _grounded(conversation: Conversation, passages: list[Passage]) -> Conversation:
    if not passages:
        return conversation
    return Conversation(with_knowledge(conversation.messages, passages), conversation.tools)


def group_of(line: bytes, field: str) -> str | None:
    """The value of a record's key, or of a key within another (`metadata.user`), as JSON; None if it has none."""
    value: object = _record_of(line)
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return None if value is None else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _record_of(line: bytes) -> RawObject:
    try:
        # Decoded first: given bytes, json guesses the encoding, and reads truncated UTF-16 as UTF-8.
        record = json.loads(line.decode().removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        raise UnusableLine(f"not UTF-8: {error}") from None
    except ValueError as error:  # also for a number that is too long for Python
        raise UnusableLine(f"not JSON: {error}") from None
    if isinstance(record, list):
        raise UnusableLine("a JSON array; write one conversation as an object on each line")
    if not isinstance(record, dict):
        raise UnusableLine("not a JSON object")
    return record


def _stripped(message: Message) -> dict[str, object]:
    return {key: value.strip() if isinstance(value, str) else value for key, value in message.items()}


def _keys(record: RawObject) -> str:
    return ", ".join(sorted(map(str, record))[:8]) or "no keys"
