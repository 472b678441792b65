"""One message, in any of many spellings, to the normal form. Nothing is dropped silently: a key is used, or known to
be irrelevant for training, or refused by name.
"""

from typing import Any, cast

from models.chat.calls import normal_calls
from models.chat.form import Fault, Message, MessageError, check_text, is_blank, kind_of, write_json
from models.chat.parts import NOT_TEXT, ONLY_TEXT, content_of, is_parts, without_thinking

_CALLS = "function_call"
_ROLES = {
    "system": "system",
    "developer": "developer",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai", "llm"), "assistant"),
    # In ShareGPT's format, turns whose whole text is an assistant's call.
    **dict.fromkeys((_CALLS, "function_calls", "tool_call", "tool_calls"), _CALLS),
    **dict.fromkeys(("tool", "observation", "ipython", "function", "tool_response", "tool_result", "tool_results",
                     "tool_output", "function_response", "function_result"), "tool"),
}  # fmt: skip

SPEAKERS = {spoken: role for spoken, role in _ROLES.items() if role != _CALLS}
"""roles by their other names, in lower case; without those of turns that are calls"""

_REASONING = ("reasoning_content", "reasoning", "thinking", "thought")
_LEARNED = ("weight", "train", "training", "loss", "loss_mask")
_ANYONE = {"role", "content", "name"}
_ASSISTANT = {"tool_calls", "function_call", *_REASONING, *_LEARNED}
_USED = {
    "system": _ANYONE, "developer": _ANYONE, "user": _ANYONE, "assistant": _ANYONE | _ASSISTANT,
    "tool": _ANYONE | {"tool_call_id"},
}  # fmt: skip
_OF_ONE_ROLE = {**dict.fromkeys(_ASSISTANT, "an assistant"), "tool_call_id": "a tool's answer"}

_REFUSED = {
    **dict.fromkeys(NOT_TEXT, ONLY_TEXT),
    **dict.fromkeys(("tools", "functions"), "tools belong beside the messages, not into one; move it there"),
    **dict.fromkeys(("tool_use_id", "call_id"), "call it `tool_call_id`"),
    "tool_name": "call it `name`",
    **dict.fromkeys(("thoughts", "think", "thinking_content", "reasoning_text", "reasoning_details", "analysis",
                     "thinking_blocks", "reasoning_trace", "chain_of_thought", "cot"),
                    "rename it to `reasoning_content` if it is the assistant's reasoning, or remove it"),
    **dict.fromkeys(("mask", "masked", "loss_weight", "loss_scale", "train_on_turn", "trainable"),
                    "set `train`: false for a reply that should not be trained on"),
    **dict.fromkeys(("tool_plan", "tool_responses", "tool_results", "refusal", "prefix", "channel", "recipient",
                     "citations", "candidates", "choices", "history", "system"),
                    "no stage uses it; remove it, or write it into `content`"),
}  # fmt: skip


def squashed(key: str) -> str:
    """A key without the characters in which its spellings differ."""
    return key.lower().replace("_", "").replace("-", "").replace(" ", "")


_SPELLED = {
    squashed(key): key
    for key in ("role", "content", "name", "tool_calls", "tool_call_id", "function_call", *_REASONING, *_LEARNED)
} | {"toolcall": "tool_calls", "functioncalls": "tool_calls", "toolcallsid": "tool_call_id"}


def normal_message(index: int, message: Any, may_be_empty: bool = False) -> Message | None:
    """The message in normal form, the same object if nothing changes; None if it is empty (an empty system text);
    raises MessageError. `may_be_empty` allows empty texts of users and assistants.
    """
    if not isinstance(message, dict):
        raise MessageError(index, "role", f"message {index} has no role: it is {kind_of(message)}, not an object")
    spoken = message.get("role")
    if not isinstance(spoken, str):
        hint = _other_spelling(message)
        raise MessageError(index, "role", f"message {index} has no role: `role` is {kind_of(spoken)}{hint}")
    role = _role(spoken)
    if role is None:
        known = ", ".join(_ROLES)
        raise MessageError(index, "role", f"message {index} has the unknown role {spoken[:40]!r}; known are {known}")
    says_calls, role = role == _CALLS, "assistant" if role == _CALLS else role
    try:
        _check_keys(role, message)
        made = _read(role, message, says_calls, may_be_empty)
        if made is None:
            return None
        if (name := _name(message)) is not None:
            made["name"] = name
    except Fault as fault:
        raise fault.at(index, role) from None
    is_same = len(made) == len(message) and all(message.get(key) is value for key, value in made.items())
    return cast(Message, message) if is_same else made


def role_of(message: Any) -> str | None:
    """The normal name of a message's role; None if it is unknown."""
    spoken = message.get("role") if isinstance(message, dict) else None
    role = _role(spoken) if isinstance(spoken, str) else None
    return "assistant" if role == _CALLS else role


def _role(spoken: str) -> str | None:
    return _ROLES.get(spoken) or _ROLES.get(spoken.strip().lower().replace(" ", "_").replace("-", "_"))


def _check_keys(role: str, message: dict[str, Any]) -> None:
    used = _USED[role]
    for key, value in message.items():
        if key in used or not value:
            continue
        if key in _OF_ONE_ROLE:
            raise Fault(key, f"has `{key}`, which only {_OF_ONE_ROLE[key]} can have; remove it")
        if key in _REFUSED:
            raise Fault(key, f"has `{key}`: {_REFUSED[key]}")
        if (meant := _SPELLED.get(squashed(str(key)))) is not None:
            raise Fault(key, f"has `{key}`; rename it to `{meant}`, or map it in data.fields")


def _other_spelling(message: dict[str, Any]) -> str:
    found = [key for key in message if squashed(str(key)) == "role" and key != "role"]
    return f"; rename `{found[0]}` to `role`, or map it in data.fields" if found else ""


def _read(role: str, message: dict[str, Any], says_calls: bool, may_be_empty: bool) -> Message | None:
    if role == "assistant":
        return _assistant(message, says_calls, may_be_empty)
    return _tool(message) if role == "tool" else _said(role, message, may_be_empty)


def _said(role: str, message: dict[str, Any], may_be_empty: bool) -> Message | None:
    text, thinking = content_of(message)
    if thinking:
        raise Fault("content", "has a thinking part in `content`, which only an assistant can have")
    if is_blank(text):
        if role != "user":
            return None
        if not may_be_empty:
            raise _no_text()
        text = ""
    return {"role": role, "content": text}


def _assistant(message: dict[str, Any], says_calls: bool, may_be_empty: bool) -> Message:
    text, thinking = content_of(message) if not says_calls or _is_text(message) else ("", "")
    text, thinking = without_thinking(text, _reasoning(message, thinking))
    calls: list[dict[str, Any]] = []
    if says_calls:
        calls, text = normal_calls(text if _is_text(message) else message.get("content"), "content"), ""
    for key in ("tool_calls", "function_call"):
        if message.get(key):
            if calls:
                raise Fault(key, f"has `{key}` in addition to other calls; write them all into `tool_calls`")
            calls = normal_calls(message[key], key)
    if is_blank(text):
        if not calls and not may_be_empty:
            raise _no_text(", only reasoning before it" if thinking else "")
        text = ""
    made: Message = {"role": "assistant", "content": text}
    if thinking:
        made["reasoning_content"] = thinking
    if calls:
        given = message.get("tool_calls")
        is_same = isinstance(given, list) and len(given) == len(calls) and all(map(_is, given, calls))
        made["tool_calls"] = given if is_same and isinstance(given, list) else calls
    if not _is_learned(message):
        made["train"] = False
    return made


def _is(one: Any, other: Any) -> bool:
    return one is other


def _is_text(message: dict[str, Any]) -> bool:
    return isinstance(message.get("content"), str)


def _tool(message: dict[str, Any]) -> Message:
    content = message.get("content")
    if content is None or isinstance(content, str) or is_parts(content):
        text, thinking = content_of(message)
        if thinking:
            raise Fault("content", "has a thinking part in `content`, which only an assistant can have")
    else:
        try:
            text = write_json(content)
        except ValueError as error:
            raise Fault("content", f"has `content` that is {error}") from None
        check_text(text, "content")
    made: Message = {"role": "tool", "content": text}
    number = message.get("tool_call_id")
    if number is not None and not isinstance(number, str | int):
        raise Fault("tool_call_id", f"has `tool_call_id` that is {kind_of(number)}, not text")
    if number is not None and number != "":
        made["tool_call_id"] = number if isinstance(number, str) else str(number)
    return made


def _name(message: dict[str, Any]) -> str | None:
    name = message.get("name")
    if name is None or name == "":
        return None
    if not isinstance(name, str):
        raise Fault("name", f"has `name` that is {kind_of(name)}, not text")
    check_text(name, "name")
    return name


def _no_text(more: str = "") -> Fault:
    return Fault("content", f"has no text in `content`{more}")


def _reasoning(message: dict[str, Any], thinking: str) -> str:
    """The reasoning as one text, "" for none."""
    found = {"content": thinking} if thinking else {}
    for key in _REASONING:
        if value := message.get(key):
            if not isinstance(value, str):
                raise Fault(key, f"has `{key}` that is {kind_of(value)}, not text")
            check_text(value, key)
            if not value.isspace():
                found[key] = value
    if len({text.strip() for text in found.values()}) > 1:
        raise Fault(next(iter(found)), f"has different reasoning in {' and '.join(f'`{key}`' for key in found)}")
    return found.get("reasoning_content") or next(iter(found.values()), "")


def _is_learned(message: dict[str, Any]) -> bool:
    said: dict[str, bool] = {}
    for key in _LEARNED:
        if (value := message.get(key)) is not None:
            if not isinstance(value, bool | int | float) or value not in (0, 1):
                raise Fault(key, f"has `{key}` that is {kind_of(value)}; it must be 0 or false, 1 or true")
            said[key] = bool(value)
    if len(set(said.values())) > 1:
        key = next(key for key, value in said.items() if not value)
        raise Fault(key, f"has `{key}` that contradicts {' and '.join(f'`{it}`' for it in said if it != key)}")
    return all(said.values())
