"""Messages of a conversation: their form, and the rules that every stage and the endpoint share."""

from dataclasses import dataclass
from typing import Any, Required, TypedDict

ROLES = ("system", "user", "assistant")


class Message(TypedDict, total=False):
    """One turn, as chat templates know it."""

    role: Required[str]
    """`system`, `developer`, `user`, `assistant` or `tool`"""
    content: Required[str]
    """its text; may be empty beside `tool_calls`"""
    reasoning_content: str
    """what an assistant thought before its text"""
    tool_calls: list[dict[str, Any]]
    """an assistant's calls: [{"type": "function", "id"?, "function": {"name", "arguments": an object}}]"""
    tool_call_id: str
    """of role `tool`: the call that it answers"""
    name: str
    """the speaker's name, or the tool's"""
    train: bool
    """of an assistant's turn: False where it is context and not learned from"""


@dataclass(frozen=True)
class Conversation:
    """Messages, and the tools that they may call."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    """functions in OpenAI's form: [{"type": "function", "function": {"name", "description", "parameters"}}]"""


def check_messages(messages: Any) -> None:
    """Raise ValueError unless `messages` is a conversation that every stage can use.

    The rules: a non-empty list of {role, content} with text content, a system message only at the start, and
    user and assistant in turns, beginning with either.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError("`messages` is not a non-empty list")
    previous_role = ""
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {index} has no role")
        role = message["role"]
        if role not in ROLES:
            raise ValueError(f"message {index} has the unknown role {role!r}; known are {', '.join(ROLES)}")
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            raise ValueError(f"message {index} ({role}) has no text in `content`")
        try:
            content.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"message {index} ({role}) has a character that is no text: {error.reason}") from None
        if role == "system" and index > 0:
            raise ValueError(f"message {index} is a system message; only the first may be one")
        if role == previous_role:
            raise ValueError(f"messages {index - 1} and {index} are both from {role!r}; roles must take turns")
        previous_role = role
