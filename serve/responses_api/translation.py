"""A Responses request as a chat request, so that both APIs share prompt encoding and generation.

chat = Translation(request)
chat.request                     # a ChatRequest; raises ApiError with the Responses request's field names
chat.explained(error)            # an error of the chat request, with those names too
"""

import re
from typing import Any

from pydantic import ValidationError

from serve.protocol import errors
from serve.protocol.errors import ApiError
from serve.protocol.requests import ChatRequest
from serve.responses_api.items import CallItem, CallOutputItem, MessageItem, ReasoningItem
from serve.responses_api.request import ResponsesRequest
from serve.responses_api.tools import chat_tools

_SAME = (
    "model", "temperature", "top_p", "parallel_tool_calls", "metadata", "stream", "top_k", "min_p",
    "seed", "stop", "stop_token_ids", "ignore_eos", "min_tokens", "chat_template_kwargs", "knowledge",
    "user", "service_tier",
)  # fmt: skip
# Chat fields with the names of the same Responses fields, the longest first.
_NAMES = {
    "response_format.json_schema.schema": "text.format.schema",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "messages": "input",
    "logprobs": "include",
}
_MESSAGE = re.compile(r"messages\[(\d+)\](?:\.tool_calls(?:\[(\d+)\](?:\.function)?)?)?")
_NUMBERED = re.compile(r"\bmessage (\d+)\b")


class Translation:
    """The chat request of a Responses request, and the input items of each message."""

    def __init__(self, asked: ResponsesRequest) -> None:
        self._asked = asked
        self._messages: list[dict[str, Any]] = []
        self._places: list[list[int]] = []  # for each message, the items that it consists of
        self._add_all()
        self.request = self._chat(self._messages)

    def later_turns(self) -> list[int]:
        """The messages that a shortened chat can start with."""
        return [number for number, message in enumerate(self._messages) if message["role"] == "user"][1:]

    def beginning_at(self, start: int) -> ChatRequest:
        """The same chat without the messages before `start`, except for system messages."""
        kept = [message for message in self._messages[:start] if message["role"] in ("system", "developer")]
        return self._chat(kept + self._messages[start:])

    def explained(self, error: ApiError) -> ApiError:
        """The same error with the Responses request's field names."""
        param, message = error.error.param, error.error.message
        if param is not None:
            renamed = self._renamed(param)
            if message.startswith(param):
                message = renamed + message[len(param) :]
            param = renamed
        for chats, own in (("max_completion_tokens", "max_output_tokens"), ("max_tokens", "max_output_tokens")):
            message = message.replace(chats, own)
        message = _NUMBERED.sub(lambda found: f"item {self._place(int(found[1]), 0)}", message)
        return ApiError(error.status, message, param, error.error.code, error.headers, error.error.type)

    def _renamed(self, param: str) -> str:
        if found := _MESSAGE.match(param):
            place = self._place(int(found[1]), int(found[2] or 0) + 1 if ".tool_calls" in found[0] else 0)
            where = "input" if isinstance(self._asked.input, str) else f"input[{place}]"
            where = "instructions" if place < 0 else where
            return where + param[found.end() :].replace(".tool_call_id", ".call_id")
        for name, own in _NAMES.items():
            if param == name or param.startswith((f"{name}.", f"{name}[")):
                return own + param[len(name) :]
        return re.sub(r"^(tools\[\d+\])\.function", r"\1", param)

    def _place(self, message: int, part: int) -> int:
        """The index of the item of a message's part; -1 for the instructions."""
        places = self._places[message] if message < len(self._places) else [message]
        calls = [place for place in places if place >= 0 and isinstance(self._item(place), CallItem)]
        if part and calls:
            return calls[min(part, len(calls)) - 1]
        return places[0]

    def _item(self, place: int) -> Any:
        return None if isinstance(self._asked.input, str) else self._asked.input[place]

    def _add_all(self) -> None:
        asked = self._asked
        if asked.instructions:
            self._add(-1, {"role": "system", "content": asked.instructions})
        if isinstance(asked.input, str):
            self._add(0, {"role": "user", "content": asked.input})
            return
        for place, item in enumerate(asked.input):
            if isinstance(item, MessageItem):
                self._add_message(place, item)
            elif isinstance(item, CallItem):
                call = {"name": item.name, "arguments": item.arguments}
                said = {"id": item.call_id, "type": "function", "function": call}
                self._assistant(place).setdefault("tool_calls", []).append(said)
            elif isinstance(item, CallOutputItem):
                answer = {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
                self._add(place, answer)
            elif isinstance(item, ReasoningItem) and (thought := item.thought()):
                self._assistant(place, "content", "tool_calls", "reasoning_content")["reasoning_content"] = thought

    def _add(self, place: int, message: dict[str, Any]) -> None:
        self._messages.append(message)
        self._places.append([place])

    def _add_message(self, place: int, item: MessageItem) -> None:
        if item.role == "assistant":
            self._assistant(place, "content", "tool_calls")["content"] = _text(item.content)
        else:
            self._add(place, {"role": item.role, "content": _text(item.content)})

    def _assistant(self, place: int, *ended_by: str) -> dict[str, Any]:
        """The assistant's turn that an item belongs to; a new one if the last turn has any key of `ended_by`."""
        last = self._messages[-1] if self._messages else {}
        if last.get("role") != "assistant" or any(name in last for name in ended_by):
            self._add(place, {"role": "assistant"})
        else:
            self._places[-1].append(place)
        return self._messages[-1]

    def _chat(self, messages: list[dict[str, Any]]) -> ChatRequest:
        asked = self._asked
        tools, choice = chat_tools(asked.tools, asked.tool_choice)
        fields = {name: getattr(asked, name) for name in _SAME} | {
            "messages": messages,
            "max_completion_tokens": asked.max_output_tokens,
            "tools": tools,
            "tool_choice": choice,
            "response_format": asked.text and asked.text.chat_format(),
            "reasoning_effort": asked.reasoning and asked.reasoning.effort,
            "logprobs": asked.has_logprobs() or None,
            "top_logprobs": (asked.top_logprobs or None) if asked.has_logprobs() else None,
        }
        try:
            return ChatRequest.model_validate({name: value for name, value in fields.items() if value is not None})
        except ValidationError as error:
            raise self.explained(errors.refusal(error, ChatRequest)) from error


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.said() for part in content)
