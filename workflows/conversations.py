"""Raw lines to messages: the layouts of conversation files that people have, recognised line by line.

messages = parse_conversation(line)
chosen, rejected = parse_pair(line)
messages, desirable = parse_judged(line)
"""

import json
from typing import Any

from models.chat import Message, check_messages

_SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "system": "system",
}  # fmt: skip


def parse_conversation(line: bytes) -> list[Message]:
    """The messages of one line of a conversation file; raises ValueError with the reason if it has none.

    Known layouts: `messages` ([{role, content}]), ShareGPT (`conversations`: [{from, value}]) and Alpaca
    (`instruction`, `input`, `output`).
    """
    record = _record_of(line)
    messages = _checked(_messages_of(record))
    if messages[-1]["role"] != "assistant" and (judged := _judged_layout(record)):
        raise ValueError(f"{judged}, and no conversation with a reply; train.objective {_FOR[judged]} learns from it")
    return messages


def parse_pair(line: bytes) -> tuple[list[Message], list[Message]]:
    """The same prompt with its chosen and with its rejected reply; raises ValueError with the reason.

    Known layouts: `chosen` and `rejected`, each a text or a list of messages. They answer `prompt` (a text or a list
    of messages) or `messages`; or they are whole conversations that differ in the last message alone.
    """
    record = _record_of(line)
    if _judged_layout(record) != _PAIR:
        raise ValueError(f"not {_PAIR}, which this train.objective learns from; found {_keys(record)}")
    chosen, rejected = (_with_prompt(record, name) for name in ("chosen", "rejected"))
    for index, (one, other) in enumerate(zip(chosen[:-1], rejected[:-1], strict=False)):
        if one != other:
            raise ValueError(f"`chosen` and `rejected` differ in message {index}, before the last reply")
    if len(chosen) != len(rejected):
        raise ValueError(f"`chosen` ends with message {len(chosen) - 1}, `rejected` with message {len(rejected) - 1}")
    if chosen[-1]["content"].strip() == rejected[-1]["content"].strip():
        raise ValueError("`chosen` and `rejected` are the same reply")
    return chosen, rejected


def parse_judged(line: bytes) -> tuple[list[Message], bool]:
    """A conversation that ends in a reply, and whether this reply is desirable; raises ValueError with the reason.

    Known layout: `completion` (a text or a list of messages), `label` (true or false), and the prompt as in a pair.
    """
    record = _record_of(line)
    if _judged_layout(record) != _JUDGED:
        raise ValueError(f"not {_JUDGED}, which train.objective kto learns from; found {_keys(record)}")
    if not isinstance(record["label"], bool):
        raise ValueError(f"`label` is {record['label']!r}; it must be true or false")
    return _with_prompt(record, "completion"), record["label"]


def mismatched_replies(lines: list[bytes]) -> list[Message | None]:
    """For each line of judged replies a reply to another prompt; None where the lines hold none.

    It is that of the first line from half way around on (lines about one prompt often stand together) whose prompt
    and reply are both other ones.
    """
    parsed: list[list[Message] | None] = []
    for line in lines:
        try:
            parsed.append(parse_judged(line)[0])
        except ValueError:
            parsed.append(None)
    found: list[Message | None] = []
    for index, own in enumerate(parsed):
        start = index + len(parsed) // 2
        around = (parsed[(start + step) % len(parsed)] for step in range(len(parsed)))
        others = (it[-1] for it in around if own and it and it[:-1] != own[:-1] and it[-1] != own[-1])
        found.append(next(others, None))
    return found


_PAIR = "a preference pair (`chosen` and `rejected`)"
_JUDGED = "a judged reply (`completion` and `label`)"
_FOR = {_PAIR: "dpo, orpo or simpo", _JUDGED: "kto"}


def _judged_layout(record: dict[str, Any]) -> str | None:
    if "chosen" in record and "rejected" in record:
        return _PAIR
    return _JUDGED if "completion" in record and "label" in record else None


def _with_prompt(record: dict[str, Any], name: str) -> list[Message]:
    """The reply in the field `name` after its prompt, from wherever that stands."""
    reply = record[name]
    if isinstance(reply, str):
        reply = [{"role": "assistant", "content": reply}]
    if not isinstance(reply, list) or not reply or not isinstance(reply[0], dict):
        raise ValueError(f"`{name}` is neither text nor a list of messages")
    if reply[0].get("role") != "assistant":  # a whole conversation
        messages = reply
    elif isinstance(prompt := record.get("prompt"), str):
        messages = [{"role": "user", "content": prompt}, *reply]
    elif isinstance(prompt, list) or isinstance(prompt := record.get("messages"), list):
        messages = [*prompt, *reply]
    else:
        raise ValueError(f"`{name}` has no prompt; give `prompt` (text or messages) or `messages`")
    checked = _checked(messages)
    if checked[-1]["role"] != "assistant" or len(checked) == 1:
        raise ValueError(f"`{name}` does not end in an assistant's reply to somebody")
    return checked


def _record_of(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deeply") from None
    if isinstance(record, list):
        raise ValueError("a JSON array; write one conversation as an object on each line")
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def _checked(messages: Any) -> list[Message]:
    check_messages(messages)
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _keys(record: dict[str, Any]) -> str:
    return ", ".join(sorted(map(str, record))[:8]) or "no keys"


def _messages_of(record: dict[str, Any]) -> Any:
    if "messages" in record:
        return record["messages"]
    if "conversations" in record:
        return _from_sharegpt(record)
    if "instruction" in record and "output" in record:
        return _from_alpaca(record)
    if judged := _judged_layout(record):
        raise ValueError(f"{judged}, and no conversation; train.objective {_FOR[judged]} learns from it")
    raise ValueError(
        "unknown layout: none of `messages`, `conversations` (ShareGPT), `instruction` with `output` (Alpaca); "
        f"found {_keys(record)}"
    )


def _from_sharegpt(record: dict[str, Any]) -> list[dict[str, Any]]:
    turns = record["conversations"]
    if not isinstance(turns, list):
        raise ValueError("`conversations` is not a list")
    messages = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    for index, turn in enumerate(turns):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
            raise ValueError(f"turn {index} has the unknown role {speaker!r}; known are {', '.join(_SHAREGPT_ROLES)}")
        messages.append({"role": _SHAREGPT_ROLES[speaker], "content": turn.get("value")})
    return messages


def _from_alpaca(record: dict[str, Any]) -> list[dict[str, Any]]:
    parts = [record["instruction"], record.get("input") or ""]
    if not all(isinstance(part, str) for part in parts):
        raise ValueError("`instruction` or `input` is not text")
    system = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    question = "\n\n".join(part for part in parts if part.strip())
    return [*system, {"role": "user", "content": question}, {"role": "assistant", "content": record["output"]}]
