"""The content of a message: its text, its parts, and the thinking before it."""

from typing import Any

from models.chat.form import Fault, check_text, is_blank, kind_of

NOT_TEXT = ("image", "images", "image_url", "audio", "audios", "audio_url", "input_audio", "video", "videos",
             "video_url", "file", "files", "attachments", "document", "documents")  # fmt: skip
ONLY_TEXT = "only text is supported; remove it, or the whole line"
_TEXT_PARTS = ("text", "input_text", "output_text")
_THINKING_PARTS = ("thinking", "reasoning")
# Anthropic's forms of calls and their results.
_ELSEWHERE = {
    **dict.fromkeys(("tool_use", "tool_call", "function_call"), "write a call into the message's `tool_calls`"),
    **dict.fromkeys(("tool_result", "function_call_output"), "write a tool's answer as a message with `role` tool"),
}
_OPEN, _CLOSE = "<think>", "</think>"


def opens_thinking(text: str) -> bool:
    """Whether a text starts with a thinking block, closed or not."""
    return text.lstrip().startswith(_OPEN)


def is_parts(content: Any) -> bool:
    """Whether a tool's result is a list of parts, not data that happens to be a list."""
    return isinstance(content, list) and content != [] and all(map(_looks_like_part, content))


def _looks_like_part(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    kind = part.get("type")
    if kind in _TEXT_PARTS:
        return isinstance(part.get("text"), str)
    # {"type": "file", "name": "a.txt"} is an entry of a file listing.
    is_named = kind in NOT_TEXT or kind in ("input_image", "input_video", "input_file")
    return is_named and (len(part) == 1 or "source" in part or any(key in part for key in NOT_TEXT))


def content_of(message: dict[str, Any]) -> tuple[str, str]:
    """The text, and the thinking parts before it."""
    content = message.get("content")
    if content is None:
        return "", ""
    if isinstance(content, str):
        check_text(content, "content")
        return content, ""
    if not isinstance(content, list):
        raise Fault("content", f"has `content` that is {kind_of(content)}; it must be text or a list of text parts")
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content:
        is_thought, text = _part(part)
        check_text(text, "content")
        if is_thought and not is_blank("".join(texts)):
            raise Fault("content", "has a thinking part after text in `content`; move it before the text")
        (thoughts if is_thought else texts).append(text)
    return "".join(texts), "\n\n".join(text for text in thoughts if not is_blank(text))


def _part(part: Any, is_inner: bool = False) -> tuple[bool, str]:
    """Whether it is thinking, and its text; `is_inner`: it is inside a thinking part."""
    if isinstance(part, str):
        return False, part
    if not isinstance(part, dict):
        raise Fault("content", f"has a part in `content` that is {kind_of(part)}; it must be an object or text")
    kind = part.get("type", "text")
    for key in NOT_TEXT:
        if kind in (key, f"input_{key}") or part.get(key):
            raise Fault("content", f"has a part of type {key!r} in `content`; {ONLY_TEXT}")
    if kind in _THINKING_PARTS and not is_inner:
        found = next((part[key] for key in (kind, "text", "content") if part.get(key)), "")
        text = "".join(_part(each, is_inner=True)[1] for each in found) if isinstance(found, list) else found
    elif kind in _TEXT_PARTS:
        text = part.get("text")
    else:
        fix = f"; {_ELSEWHERE[kind]}" if isinstance(kind, str) and kind in _ELSEWHERE else ""
        raise Fault("content", f"has a part of type {str(kind)[:40]!r} in `content`; only text is known{fix}")
    if not isinstance(text, str):
        raise Fault("content", f"has a part in `content` whose text is {kind_of(text)}")
    return kind in _THINKING_PARTS, text


def without_thinking(text: str, thinking: str) -> tuple[str, str]:
    """The text without its leading <think> blocks, and the thinking with theirs added."""
    while opens_thinking(text) and _CLOSE in text:
        block, _, text = text.partition(_CLOSE)
        inner = block.lstrip().removeprefix(_OPEN).strip()
        if inner and thinking and inner != thinking.strip():
            raise Fault(
                "content", f"starts with {_OPEN} in `content` and already has other thinking; remove one of them"
            )
        thinking, text = thinking or inner, text.lstrip()
    return text, thinking
