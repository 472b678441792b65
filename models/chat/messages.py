"""Messages of a conversation in normal form: the rules that all stages and the endpoint share.

messages = normal_messages([{"role": "Human", "content": [{"type": "text", "text": "Hi"}]}])
tools = normal_tools([{"name": "price_of", "parameters": {...}}])
"""

from typing import Any, Literal, cast

from models.chat.calls import normal_tools
from models.chat.form import ROLES, Conversation, Fault, Message, MessageError, check_text, is_blank
from models.chat.parts import opens_thinking
from models.chat.turn import normal_message

__all__ = [
    "ROLES", "Conversation", "Message", "MessageError", "check_messages", "joined_messages", "normal_messages",
    "normal_tools",
]  # fmt: skip

SameRole = Literal["merge", "refuse"]
_PLAIN = ("user", "assistant", "system", "developer")


def normal_messages(messages: Any, same_role: SameRole = "merge", is_asked: bool = False) -> list[Message]:
    """The messages in normal form (`models.chat.form.Message`), the same objects where nothing changes.

    Raises MessageError with the message and the key that no stage can use. Two consecutive turns of one role are
    merged (`merge`) or raise; results of tools may follow each other. Each call must be answered before the next
    turn, except for calls at the end, and each result needs a call. The position of a system text is the template's
    decision.

    With `is_asked` they are from a request, not from training data: turns may be empty, calls may stay unanswered,
    and turns of one role that cannot be merged stay separate.
    """
    if not isinstance(messages, list) or not messages:
        raise MessageError(None, "messages", "`messages` is not a non-empty list")
    turns: list[Message] = []
    calls = _Calls()
    previous, place = "", 0
    for index, message in enumerate(messages):
        turn = message if _is_normal(message) else normal_message(index, message, may_be_empty=is_asked)
        if turn is None:
            continue
        role = turn["role"]
        if role == "tool":
            calls.answer(index, turn)
        else:
            if calls.waiting and not is_asked:
                calls.refuse_rest(index)
            calls.waiting = []
            if role == previous and (not is_asked or joined_messages(turns[-1], turn) is not None):
                turns[-1] = _one_turn(turns[-1], turn, place, index, same_role)
                place = index
                continue
            if "tool_calls" in turn:
                calls.ask(index, turn)
        turns.append(turn)
        previous, place = role, index
    if not turns:
        raise MessageError(None, "messages", "all texts in `messages` are empty")
    return turns


def joined_messages(first: Message, second: Message) -> Message | None:
    """Two turns of one role merged, an empty line between their texts; None if that would lose or move anything."""
    if "tool_calls" in first or "tool_calls" in second or "reasoning_content" in second:
        return None
    if first.get("train") != second.get("train") or first.get("name") != second.get("name"):
        return None
    if first["role"] == "assistant" and opens_thinking(first["content"]):
        return None  # the second text might close the block
    joined = first.copy()
    joined["content"] = "\n\n".join(text for text in (first["content"], second["content"]) if text)
    return joined


def check_messages(messages: Any) -> None:
    """Raise MessageError unless `messages` is a conversation as the endpoint takes it.

    Stricter than `normal_messages`: no empty text, a system message only at the start, user and assistant alternate.
    """
    normal_messages(messages, same_role="refuse")
    for index, message in enumerate(messages):
        role, content = message["role"], message.get("content")
        words = ""
        if not isinstance(content, str | None):
            words = "has `content` that is not a single text"
        elif is_blank(content or "") and not message.get("tool_calls"):
            words = "has no text in `content`"
        if words:
            raise Fault("content", words).at(index, role)
        if role == "system" and index > 0:
            raise MessageError(index, "role", f"message {index} is a system message; only the first has that `role`")


def _is_normal(message: Any) -> bool:
    """Whether it is just a role and a text in normal form already, as nearly all are: a check of a microsecond."""
    if type(message) is not dict or len(message) != 2:
        return False
    content = message.get("content")
    if type(content) is not str or is_blank(content):
        return False
    role = message.get("role")
    if role not in _PLAIN or (role == "assistant" and "<think>" in content):
        return False
    if content.isascii():
        return True
    try:
        check_text(content, "content")
    except Fault:
        return False
    return True


def _one_turn(first: Message, second: Message, place: int, index: int, same_role: str) -> Message:
    words = f"messages {place} and {index} both have the `role` {second['role']!r}"
    if same_role != "merge":
        raise MessageError(index, "role", f"{words}; roles must alternate")
    joined = joined_messages(first, second)
    if joined is None:
        raise MessageError(
            index, "role",
            f"{words} and cannot be merged: one has calls, reasoning, or another name or weight; write one message",
        )  # fmt: skip
    return joined


class _Calls:
    """The calls that wait for an answer."""

    def __init__(self) -> None:
        self.waiting: list[dict[str, Any]] = []
        self._place = 0

    def ask(self, index: int, turn: Message) -> None:
        self.waiting, self._place = list(turn["tool_calls"]), index

    def refuse_rest(self, index: int) -> None:
        name = self.waiting[0]["function"]["name"]
        words = f"has a call of {name!r} in `tool_calls` that no message of role tool answers before message {index}"
        raise Fault("tool_calls", words).at(self._place, "assistant")

    def answer(self, index: int, turn: Message) -> None:
        """Remove the call that `turn` answers: the one with its id, else with its name, else the first."""
        number, name = turn.get("tool_call_id"), turn.get("name")
        if not self.waiting:
            field = "role" if number is None else "tool_call_id"
            said = f"`tool_call_id` {number!r}" if number is not None else "the `role` of a tool"
            words = f"has {said}, but no call of an assistant is unanswered; calls belong into its `tool_calls`"
            raise Fault(field, words).at(index, "tool")
        found = self.waiting[0] if number is None and name is None else None
        if number is not None:
            found = next((call for call in self.waiting if call.get("id") == number), None)
            found = found or next((call for call in self.waiting if "id" not in call), None)
        elif name is not None:
            found = next((call for call in self.waiting if call["function"]["name"] == name), None)
        if found is None:
            field = "name" if number is None else "tool_call_id"
            names = ", ".join(str(call.get("id", call["function"]["name"])) for call in self.waiting)
            words = f"has `{field}` {cast(dict[str, Any], turn)[field]!r}; unanswered calls are: {names}"
            raise Fault(field, words).at(index, "tool")
        self.waiting = [call for call in self.waiting if call is not found]
