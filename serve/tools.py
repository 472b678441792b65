"""Tool calls: how a model writes them, and reading them out of a reply as it grows.

Every family writes them otherwise (Hermes and Qwen in <tool_call> tags, Llama 3 as a bare JSON object, Mistral after
[TOOL_CALLS]); the chat template says how.

style = call_style(tokenizer)          # None: the template has no place for tools
reader = CallReader(style, {"get_weather"})
reader.push(text), reader.finish()     # what may be shown; then reader.calls
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import jinja2

from serve.text import StopFilter

_TOOL, _ARGUMENT, _VALUE = "probe_tool", "probe_argument", "probe_value"
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": "A probe.",
            "parameters": {"type": "object", "properties": {_ARGUMENT: {"type": "string"}}},
        },
    }
]
_CALL = {"id": "probe0000", "type": "function", "function": {"name": _TOOL, "arguments": {_ARGUMENT: _VALUE}}}


@dataclass(frozen=True)
class CallStyle:
    """A call is `opening`, a JSON object with a name and arguments under these keys, and `closing`."""

    opening: str
    closing: str
    name_key: str
    arguments_key: str


@dataclass(frozen=True)
class ToolCall:
    """A call that a model has made; `arguments` is JSON."""

    id: str
    name: str
    arguments: str


def call_style(tokenizer: Any) -> CallStyle | None:
    """How this chat template writes a call; None where it has no place for tools, or writes none in JSON."""
    asked = [{"role": "user", "content": "a"}]
    called = [*asked, {"role": "assistant", "content": "", "tool_calls": [_CALL]}]
    try:
        before = tokenizer.apply_chat_template(asked, tools=_TOOLS, tokenize=False, add_generation_prompt=True)
        after = tokenizer.apply_chat_template(called, tools=_TOOLS, tokenize=False)
    except (jinja2.exceptions.TemplateError, TypeError, ValueError):
        return None
    if _TOOL not in before or not after.startswith(before):
        return None
    written = after[len(before) :]
    for start in (place for place, letter in enumerate(written) if letter == "{"):
        found, end = _json_at(written, start)
        keys = {_key_of(found, _TOOL), _key_of(found, {_ARGUMENT: _VALUE})}
        if None not in keys and len(keys) == 2:
            closing = written[end:].rstrip()
            for token in tokenizer.all_special_tokens:
                closing = closing.removesuffix(token)
            return CallStyle(
                opening=_shown(tokenizer, written[:start]),
                closing=_shown(tokenizer, closing).rstrip("\n"),
                name_key=str(_key_of(found, _TOOL)),
                arguments_key=str(_key_of(found, {_ARGUMENT: _VALUE})),
            )
    return None


class CallReader:
    """Keeps calls of the named tools out of a reply's text. What only looks like one is text again at the end."""

    def __init__(self, style: CallStyle, names: Collection[str], most: int | None = None) -> None:
        self._style = style
        self._names = names
        self._most = most
        self._mark = style.opening.strip()
        self._filter = StopFilter([self._mark] if self._mark else [])
        self._kept = ""
        self._keeps = not self._mark  # a bare object is told from text by its first letter
        self.calls: list[ToolCall] = []

    def push(self, text: str) -> str:
        """The text that may be shown now."""
        if self._keeps:
            self._kept += text
            if self._mark or self._kept.lstrip()[:1] in ("", "{"):
                return ""
            self._keeps = False
            return self._kept
        shown = self._filter.push(text)
        if self._filter.is_stopped:
            self._keeps, self._kept = True, self._filter.rest
        return shown

    def finish(self) -> str:
        """The rest of the text, when no more comes; from then on `calls` are known."""
        text = left = self._kept if self._keeps else self._filter.finish()
        while left:
            start = 0 if left.startswith("{") else left.find(self._mark)
            call, end = self._call_at(left, left.find("{", start)) if start >= 0 else (None, 0)
            if call is None:
                break
            if self._most is None or len(self.calls) < self._most:
                self.calls.append(call)
            left = left[end:].lstrip().removeprefix(self._style.closing.strip()).lstrip(" \n,;")
        return left if self.calls else text

    def _call_at(self, text: str, start: int) -> tuple[ToolCall | None, int]:
        if start < 0:
            return None, 0
        found, end = _json_at(text, start)
        if not isinstance(found, dict) or found.get(self._style.name_key) not in self._names:
            return None, 0
        arguments = found.get(self._style.arguments_key, {})
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return ToolCall(f"call_{uuid4().hex[:24]}", found[self._style.name_key], written), end


def _shown(tokenizer: Any, text: str) -> str:
    """Without special tokens: what a reader of the reply gets to see."""
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _json_at(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins there, and where it ends; None for none."""
    try:
        return json.JSONDecoder().raw_decode(text, start)
    except ValueError:
        return None, 0


def _key_of(found: Any, wanted: Any) -> str | None:
    if not isinstance(found, dict):
        return None
    return next((key for key, value in found.items() if value == wanted), None)
