"""The normal form of a conversation, which all stages and the endpoint use."""

import json
from dataclasses import dataclass
from typing import Any, NoReturn, Required, TypedDict

from models.errors import RayconteurError

MAX_LEVELS = 100
"""levels of nesting in calls, tools and results"""
SYSTEM_ROLES = ("system", "developer")
ROLES = (*SYSTEM_ROLES, "user", "assistant", "tool")


class Message(TypedDict, total=False):
    """One turn, in the form that chat templates take."""

    role: Required[str]
    """`system`, `developer`, `user`, `assistant` or `tool`"""
    content: Required[str]
    """its text; may be empty beside `tool_calls`, and in a tool's message"""
    reasoning_content: str
    """an assistant's reasoning before its text"""
    tool_calls: list[dict[str, Any]]
    """an assistant's calls: [{"type": "function", "id"?, "function": {"name", "arguments": an object}}]"""
    tool_call_id: str
    """in a message of role `tool`: the id of the call that it answers"""
    name: str
    """the speaker's name, or the tool's"""
    train: bool
    """in an assistant's turn: False if it is only context and not trained on, else absent"""


@dataclass(frozen=True)
class Conversation:
    """Messages, and the tools that the assistant may call."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    """functions in OpenAI's form: [{"type": "function", "function": {"name", "description", "parameters"}}]"""


class MessageError(RayconteurError):
    """A message that no stage can use; `index` is its number (None: not about a single message), `field` the key."""

    def __init__(self, index: int | None, field: str, text: str) -> None:
        super().__init__(text)
        self.index = index
        self.field = field
        self.text = text


class Fault(Exception):
    """What is wrong with a key of a message whose number is not known yet; `words` continue "message 3"."""

    def __init__(self, field: str, words: str) -> None:
        super().__init__(field, words)
        self.field = field
        self.words = words

    def at(self, index: int, role: str) -> MessageError:
        """The error for message `index`."""
        return MessageError(index, self.field, f"message {index} ({role}) {self.words}")


def is_blank(text: str) -> bool:
    """Whether a text is empty or only white space."""
    return not text or text.isspace()


def check_text(text: str, field: str) -> None:
    """Raise Fault for a lone surrogate, which JSON can contain and no tokenizer can read."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Fault(field, f"has an invalid character in `{field}`: {error.reason}") from None


def read_json(text: str) -> Any:
    """The value of a JSON text; raises ValueError, whose text completes "arguments are ..."."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos})") from None
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def write_json(value: Any) -> str:
    """A value as JSON text; raises ValueError if it is not JSON, or nested too deeply for templates."""
    if _is_deep(value, MAX_LEVELS):
        raise ValueError(f"nested deeper than {MAX_LEVELS} levels")
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"not JSON ({error})") from None


def _is_deep(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deep(each, levels - 1) for each in inner)


def kind_of(value: Any) -> str:
    """A short description of a value, for errors."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else type(value).__name__


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"not JSON ({name} is not a JSON number)")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
