"""Messages as plain text, for people, judges and scorers of text; prompts of models come from the renderer."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from models.chat.form import Message


def said_text(message: Mapping[str, Any]) -> str:
    """What a message says: its text, then a line for each call, as `calls price({"item": "lamp"})`."""
    calls = [
        f"calls {call['function']['name']}({json.dumps(call['function']['arguments'], ensure_ascii=False)})"
        for call in message.get("tool_calls") or ()
    ]
    return "\n".join(text for text in (message["content"], *calls) if text)


def transcript(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> str:
    """Of each message a line with its role, then what it says; before them the tools, each as a line of JSON."""
    functions = [json.dumps(tool["function"], ensure_ascii=False, separators=(",", ":")) for tool in tools or ()]
    parts = ["\n".join(["[tools]", *functions])] if functions else []
    return "\n".join([*parts, *(f"[{message['role']}]\n{said_text(message)}" for message in messages)])
