"""The endpoint's side of families.py: how it renders requests and parses replies."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from family_list import Family

from models.chat import ChatTemplateError
from serve.parsing.form import learned_form
from serve.parsing.text import ReplyText
from serve.protocol.errors import ApiError
from serve.protocol.requests import TokenizeRequest
from serve.replies.prompt import PromptEncoder

Refusal = (ChatTemplateError, ApiError)


class Endpoint:
    """Renders requests and parses replies as the endpoint does, without a model."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        engine: Any = SimpleNamespace(vocab_size=len(tokenizer), max_positions=1 << 20)  # no prompt is longer
        self._encoder = PromptEncoder(tokenizer, engine, 256)
        self.form = learned_form(tokenizer)

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: Any) -> list[int]:
        """Token ids of a request's prompt; raises ApiError."""
        keys = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")
        sent = [{key: message[key] for key in keys if key in message} for message in messages]
        for message in sent:
            if "tool_calls" in message:
                calls = [(call, call["function"]) for call in message["tool_calls"]]
                message["tool_calls"] = [
                    {**call, "function": {**made, "arguments": json.dumps(made["arguments"])}} for call, made in calls
                ]
        request = TokenizeRequest.model_validate({"messages": sent, **({"tools": tools} if tools else {})})
        return asyncio.run(self._encoder.tokens(request))

    def read(self, prompt: Sequence[int], reply: Sequence[int], tools: Any) -> dict[str, Any]:
        """The message for a generated `reply`, whose last token ends it."""
        functions = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools or ()}
        reader = self.form.reader(functions, prompt)
        text = ReplyText(self._tokenizer, [], reader, self.form.marks)
        shown = [text.push(token) for token in reply[:-1]]
        shown.append(text.finish(is_cut=False))
        calls = reader.calls if reader is not None else []
        return {
            "content": "".join(part.said for part in shown).strip(),
            "reasoning_content": "".join(part.thought for part in shown).strip(),
            "calls": [(call.name, json.loads(call.arguments)) for call in calls],
        }


def meant(family: Family, message: Mapping[str, Any]) -> dict[str, Any]:
    """A reply as Endpoint.read should return it."""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    said, thought = message["content"].strip(), message.get("reasoning_content", "").strip()
    if calls and family.thinks_beside_calls:
        said, thought = "", thought or said
    return {
        "content": said,
        "reasoning_content": thought,
        "calls": [(call["name"], call["arguments"]) for call in calls],
    }
