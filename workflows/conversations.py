"""Raw lines to messages: the layouts of conversation files that people have, recognised line by line."""

import json
from typing import Any

from models.chat import Message, check_messages

_SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "system": "system",
}  # fmt: skip


def parse_line(line: bytes) -> list[Message]:
    """The messages of one line of a conversation file; raises ValueError with the reason if it has none.

    Known layouts: `messages` ([{role, content}]), ShareGPT (`conversations`: [{from, value}]) and Alpaca
    (`instruction`, `input`, `output`).
    """
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
    messages = _messages_of(record)
    check_messages(messages)
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _messages_of(record: dict[str, Any]) -> Any:
    if "messages" in record:
        return record["messages"]
    if "conversations" in record:
        return _from_sharegpt(record)
    if "instruction" in record and "output" in record:
        return _from_alpaca(record)
    keys = ", ".join(sorted(map(str, record))[:8])
    raise ValueError(
        "unknown layout: none of `messages`, `conversations` (ShareGPT), `instruction` with `output` (Alpaca); "
        f"found {keys or 'no keys'}"
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
