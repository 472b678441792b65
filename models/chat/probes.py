"""Properties of a chat template, found by rendering test messages: its forms of turns, and how it ends them."""

import copy
import json
import re
from functools import cached_property
from typing import Any

from models.chat.control import ControlTokens
from models.chat.template import ChatTemplate, ChatTemplateError

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"probe_argument": {"type": "string"}}},
    },
}
_ARGUMENTS = {"probe_argument": "probe_value"}
_CALL: dict[str, Any] = {
    "id": "probe0000",
    "type": "function",
    "function": {"name": "probe_tool", "arguments": _ARGUMENTS},
}
_THOUGHT = ("reasoning_content", "thinking")
_QUESTION = {"role": "user", "content": "probe_question"}
_SYSTEM = {"role": "system", "content": "probe_system"}
_ANSWER = {"role": "assistant", "content": "probe_answer"}
_RESULT = {"role": "tool", "content": "probe_result", "tool_call_id": "probe0000", "name": "probe_tool"}

OPENED = re.compile(r"<(\w+)>\s*$")
"""a thinking block that a prompt opens"""
CLOSED = re.compile(r"<(\w+)>\s*</\1>\s*$")
"""a thinking block that a prompt opens and closes"""

TEXT, REASONING, CALLS, ARGUMENTS = "the text", "the reasoning", "tool calls", "a tool call's arguments"
"""the parts of a reply that a template must write"""


class Probes:
    """`given_ends` are the names of the model's own end tokens; `templates` the template without and the one with
    tools."""

    def __init__(
        self, templates: tuple[ChatTemplate, ChatTemplate], control: ControlTokens, special: set[str],
        given_ends: set[str],
    ) -> None:  # fmt: skip
        self._templates = templates
        self._control = control
        self._special = special
        self._given_ends = given_ends

    def end_in(self, written: str, text: str) -> int | None:
        """The end of a reply whose last words are `text`, or that ends with a call; None if nothing ends it."""
        if text and (end := self.end_of_words(written, text)):
            return end
        found = list(self._control.name.finditer(written))
        if text:
            begin = written.rfind(text) + len(text)
            found = [token for token in found if token.start() >= begin]
        known = {*self._given_ends, *self._ends_of(self._text_tail)}
        ends = [token.end() for token in found if token[0] in known]
        if not ends:
            special = [token.end() for token in found if token[0] in self._special]
            ends = special[:1] if text else special[-1:]
        return ends[0] if ends else None

    def end_of_words(self, written: str, text: str) -> int:
        """The end position of a reply that ends like the test reply; 0 if it does not."""
        place = written.rfind(text + self._text_tail) if self._text_tail else -1
        return place + len(text) + len(self._text_tail) if place >= 0 else 0

    def _ends_of(self, tail: str) -> list[str]:
        """The last control token in the end of a reply."""
        return [match[0] for match in self._control.name.finditer(tail)][-1:]

    @cached_property
    def _text_tail(self) -> str:
        """The end of a text reply as the template writes it: white space and special tokens.

        A token that it writes only if no message follows ends the text, not the turn (Phi-3.5), unless it is the
        first one (gpt-oss).
        """
        try:
            last = self._probe([_QUESTION, _ANSWER])
            middle, begins = self._templates[0].marked_text(self._given([_QUESTION, _ANSWER, _QUESTION]))
        except ChatTemplateError:
            return ""
        tails = []
        # Templates that always open the next turn write its first token in both.
        for text in (last, middle[: begins[2]] if "probe_answer" in middle[: begins[2]] else middle):
            tail = text[text.rfind("probe_answer") + len("probe_answer") :]
            end = 0
            while (token := self._control.name.match(tail, end + _blank(tail[end:]))) and token[0] in self._special:
                end = token.end()
            tails.append(tail[:end])
        common = _common(*tails)
        tokens = [match.end() for match in self._control.name.finditer(tails[0])]
        closed = [end for end in tokens if end <= len(common)] or tokens[:1]
        return tails[0][: closed[-1]] if closed else ""

    @cached_property
    def _call_end(self) -> list[str]:
        """The token that ends a reply with a tool call; none if the template writes no calls."""
        messages = [_QUESTION, calling_by(*self.calling)]
        try:
            written, before = self._probe(messages, [TOOL]), self._probe(messages[:1], [TOOL], generates=True)
        except ChatTemplateError:
            return []
        written = written[len(_common(written, before)) :]
        end = self.end_in(written, "") if "probe_value" in written else None
        return self._ends_of(written[:end]) if end else []

    @cached_property
    def implicit_ends(self) -> dict[bool, str | None]:
        """The first token of the next turn, if it follows a reply without an end of its own.

        GLM-4's replies end this way: the opening of the user's turn, or of a tool's, is among the model's end tokens.
        """
        talks: dict[bool, Any] = {
            False: ("probe_answer", [_QUESTION, _ANSWER, _QUESTION], None),
            True: ("probe_value", [_QUESTION, calling_by(*self.calling), _RESULT], [TOOL]),
        }
        found: dict[bool, str | None] = {}
        for is_call, (anchor, messages, tools) in talks.items():
            found[is_call] = None
            try:
                until, whole = self._probe(messages[:2], tools), self._probe(messages, tools)
            except ChatTemplateError:
                continue
            own = until[until.rfind(anchor) :] if anchor in until else ""
            if not own or self.end_in(own, "" if is_call else anchor) is not None or not whole.startswith(until):
                continue
            after = whole[len(until) :]
            token = self._control.name.match(after, _blank(after))
            if token and (token[0] in self._given_ends or token[0] in self._special):
                found[is_call] = after[: token.end()]
        return found

    @cached_property
    def ends(self) -> set[str]:
        """The names of the tokens that the template writes at the end of a reply or of a call.

        Raises ChatTemplateError for a template that writes none.
        """
        implicit = self.implicit_ends
        if not self._text_tail and implicit[False] is None and not self._given_end_is_written():
            raise self.no_end(False)
        names = [*self._ends_of(self._text_tail), *self._call_end]
        return {*names, *(end.strip() for end in implicit.values() if end)}

    def _given_end_is_written(self) -> bool:
        """Whether the template writes one of the model's end tokens after a reply."""
        written = self._probe([_QUESTION, _ANSWER])  # raises ChatTemplateError if the template refuses it
        return self.end_in(written[written.rfind("probe_answer") :], "probe_answer") is not None

    def no_end(self, is_call: bool) -> ChatTemplateError:
        what = "call of a tool" if is_call else "reply"
        ends = ", ".join(self._given_ends) or "none"
        return ChatTemplateError(
            f"the chat template writes no token at the end of a {what}, so a model would never learn to stop (the "
            f"tokenizer's end tokens: {ends}); give a template that does (data.chat_template)"
        )

    def _probe(self, messages: Any, tools: Any = None, generates: bool = False) -> str:
        return self._templates[bool(tools)].text(self._given(messages), tools, generates)

    def _given(self, messages: Any) -> Any:
        if self.wants_parts:
            messages = [
                {**message, "content": [{"type": "text", "text": message["content"]}]}
                if isinstance(message.get("content"), str)
                else message
                for message in messages
            ]
        return [copy.deepcopy(message) for message in messages]

    def _writes(self, messages: Any, *words: str, tools: Any = None) -> bool:
        try:
            text = self._probe(messages, tools)
        except ChatTemplateError:
            return False
        return all(word in text for word in words)

    @cached_property
    def wants_parts(self) -> bool:
        """Whether texts must be lists of parts: some templates write a plain text letter by letter, or not at all."""
        parts = [{"role": "user", "content": [{"type": "text", "text": "probe_part"}]}]
        try:
            if "probe_question" in self._templates[0].text([_QUESTION]):
                return False
            text = self._templates[0].text(parts)
        except ChatTemplateError:
            return False
        return "probe_part" in text and "'type'" not in text

    @cached_property
    def knows_developers(self) -> bool:
        """Whether the template supports role `developer`; otherwise it becomes a system message."""
        return self._writes([{"role": "developer", "content": "probe_developer"}, _QUESTION], "probe_developer")

    @cached_property
    def knows_systems(self) -> bool:
        """Whether the template supports role `system`; Gemma 2's refuses it."""
        return self._writes([_SYSTEM, _QUESTION], "probe_system")

    @cached_property
    def knows_tools(self) -> bool:
        """Whether it writes the available tools into a prompt."""
        return self._writes([_QUESTION], "probe_tool", tools=[TOOL])

    @cached_property
    def never_read(self) -> set[str]:
        """Roles that it omits from a prompt: `tool`, and `system` after the beginning."""
        talks = {
            "tool": ("probe_result", [_QUESTION, calling_by(*self.calling), _RESULT], [TOOL]),
            "system": ("probe_system", [_QUESTION, _ANSWER, _SYSTEM, _QUESTION], None),
        }
        return {
            role for role, (words, messages, tools) in talks.items() if not self._writes(messages, words, tools=tools)
        }

    @cached_property
    def loses_system_behind(self) -> set[str]:
        """Roles of a prompt's last message with which the first system text is omitted: Mistral's templates put it
        before the last question, and only if that is the last message.
        """
        talks = {
            "user": ([_SYSTEM, _QUESTION, _ANSWER, _QUESTION], None),
            "tool": ([_SYSTEM, _QUESTION, calling_by(*self.calling), _RESULT], [TOOL]),
        }
        return {role for role, (talk, tools) in talks.items() if not self._writes(talk, "probe_system", tools=tools)}

    @cached_property
    def has_short_ids(self) -> bool:
        """Whether the template only accepts call ids of nine letters and digits (Mistral)."""
        return not self._takes_id("call_" + 24 * "0") and self._takes_id("probe0001")

    def _takes_id(self, call_id: str) -> bool:
        call = calling_by(*self.calling)
        call["tool_calls"] = [{**call["tool_calls"][0], "id": call_id}]
        return self._writes([_QUESTION, call, {**_RESULT, "tool_call_id": call_id}], "probe_value", tools=[TOOL])

    @cached_property
    def takes_several_calls(self) -> bool:
        """Whether the template writes more than one call in a turn."""
        call = calling_by(*self.calling)
        first = call["tool_calls"][0]
        second = {**first, "id": "probe0001", "function": {**first["function"], "name": "probe_second"}}
        call["tool_calls"] = [first, second]
        answers = [_RESULT, {**_RESULT, "tool_call_id": "probe0001", "name": "probe_second"}]
        return self._writes([_QUESTION, call, *answers], "probe_value", "probe_second", tools=[TOOL])

    @cached_property
    def never_written(self) -> set[tuple[str, bool]]:
        """The parts that the template omits from a text reply (False), or from one with a call (True). The test uses
        unique words, since a short text may occur in another part of the reply by chance.
        """
        call, thought = calling_by({}, self.calling[1]), dict.fromkeys(_THOUGHT, "probe_thought")
        said = {**call, "content": "probe_answer"}
        found = set() if self._writes([_QUESTION, said], "probe_answer", tools=[TOOL]) else {(TEXT, True)}
        if not self._writes([_QUESTION, calling_by(*self.calling)], "probe_tool", "probe_value", tools=[TOOL]):
            found.add((CALLS, True))
        if self._opens_thinking:
            return found
        if not self._writes([_QUESTION, {**_ANSWER, **thought}], "probe_thought"):
            found.add((REASONING, False))
        if not self._writes([_QUESTION, {**call, **self.calling[0], **thought}], "probe_thought", tools=[TOOL]):
            found.add((REASONING, True))
        return found

    @cached_property
    def _opens_thinking(self) -> bool:
        try:
            return OPENED.search(self._probe([_QUESTION], generates=True)) is not None
        except ChatTemplateError:
            return False

    @cached_property
    def calling(self) -> tuple[dict[str, Any], bool]:
        """The `content` of a call without text, and whether a call's arguments are JSON text.

        Templates need an empty text, None, or no key; and an object, or its JSON text.
        """
        variants: list[dict[str, Any]] = [{"content": ""}, {"content": None}, {}]
        for is_text in (False, True):
            for content in variants:
                if self._writes([_QUESTION, calling_by(content, is_text)], "probe_tool", "probe_value", tools=[TOOL]):
                    return content, is_text
        return variants[0], False


def calling_by(content: dict[str, Any], is_text: bool) -> dict[str, Any]:
    """A test message with a call (`Renderer._calling`)."""
    function: dict[str, Any] = dict(_CALL["function"])
    if is_text:
        function["arguments"] = json.dumps(function["arguments"])
    return {"role": "assistant", **content, "tool_calls": [{**_CALL, "function": function}]}


def _common(one: str, other: str) -> str:
    """The common prefix of two texts."""
    place = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:place]


def _blank(text: str) -> int:
    """The number of white space characters at the start of a text."""
    return len(text) - len(text.lstrip())
