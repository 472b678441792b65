"""An example of a corpus before it is encoded: its messages, and every text in them.

example = Example(conversation)
example.with_texts(text.lower() for text in example.texts())
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from models.chat import Conversation, Message
from models.chat.form import SYSTEM_ROLES

_KEYS = ("content", "reasoning_content")


@dataclass(frozen=True)
class Example:
    """A conversation; for a pair or a labelled reply, another one with the same prompt."""

    conversation: Conversation
    other: Conversation | None = None
    """the prompt with the rejected reply, or with a reply to another prompt"""
    desirable: bool | None = None
    """of a labelled reply"""

    def texts(self) -> Iterator[str]:
        """Every text in the messages: contents, reasoning, arguments of calls; of the other one its reply's alone."""
        for message in self._messages():
            yield from (message[key] for key in _KEYS if key in message)  # type: ignore[literal-required]
            for call in message.get("tool_calls", []):
                yield from _strings(call["function"]["arguments"])

    def with_texts(self, texts: Iterable[str]) -> "Example":
        """The same with these in place of `texts()`."""
        left = iter(texts)
        messages = [_with_texts(message, left) for message in self._messages()]
        length = len(self.conversation.messages)
        other = self.other
        if other is not None:
            other = Conversation([*messages[: length - 1], *messages[length:]], other.tools)
        return Example(Conversation(messages[:length], self.conversation.tools), other, self.desirable)

    def turns(self) -> list[str]:
        """The content of each message but the system's, in which conversations of one source are alike."""
        return [message["content"] for message in self._messages() if message["role"] not in SYSTEM_ROLES]

    def _messages(self) -> list[Message]:
        other = [] if self.other is None else self.other.messages[-1:]
        return [*self.conversation.messages, *other]


def _strings(value: Any) -> Iterator[str]:
    """The strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _with_strings(value: Any, texts: Iterator[str]) -> Any:
    if isinstance(value, str):
        return next(texts)
    if isinstance(value, dict):
        return {name: _with_strings(inner, texts) for name, inner in value.items()}
    return [_with_strings(inner, texts) for inner in value] if isinstance(value, list) else value


def _with_texts(message: Message, texts: Iterator[str]) -> Message:
    changed: Any = {**message, **{key: next(texts) for key in _KEYS if key in message}}
    if "tool_calls" in message:
        changed["tool_calls"] = [_with_arguments(call, texts) for call in message["tool_calls"]]
    return changed  # type: ignore[no-any-return]


def _with_arguments(call: dict[str, Any], texts: Iterator[str]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": _with_strings(function["arguments"], texts)}}
