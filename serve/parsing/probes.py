"""Test conversations, rendered with a chat template to find its format.

probes = Probes(tokenizer)
probes.turn(ANSWER)           # the text of a conversation that ends with this turn
probes.reply(calling(CALL))   # the reply as a model generates it, without its end token
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from models.chat import ChatTemplateError
from models.chat.renderer import renderer_of
from serve.parsing.marks import Marks

TOOL, OTHER_TOOL = "probe_tool", "probe_other"
FIRST, SECOND = "probe_first", "probe_second"
VALUE, NUMBER = "probe_value", 7305
ARGUMENTS = {FIRST: VALUE, SECOND: NUMBER}
PARAMETERS = {
    "type": "object",
    "properties": {
        FIRST: {"type": "string", "description": "A text."},
        SECOND: {"type": "integer", "description": "A number."},
    },
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "A probe.", "parameters": PARAMETERS}}
    for name in (TOOL, OTHER_TOOL)
]
QUESTION = {"role": "user", "content": "probe_question"}
WORDS, THOUGHT = "probe_answer", "probe_thought"
ANSWER = {"role": "assistant", "content": WORDS}
SHORT_IDS = ("probe0000", "probe0001")

VARIABLES: list[dict[str, Any]] = [
    {}, *({name: value} for name in ("enable_thinking", "thinking") for value in (True, False))
]  # fmt: skip
"""names of template variables that turn thinking on or off"""


def calling(*arguments: Mapping[str, Any], text: str = "", thought: str = "") -> dict[str, Any]:
    """An assistant's turn that calls probe_tool, and then probe_other, with these arguments."""
    calls = [
        {"id": number, "type": "function", "function": {"name": name, "arguments": dict(given)}}
        for number, name, given in zip(SHORT_IDS, itertools.cycle((TOOL, OTHER_TOOL)), arguments, strict=False)
    ]
    message: dict[str, Any] = {"role": "assistant", "content": text, "tool_calls": calls}
    return {**message, "reasoning_content": thought} if thought else message


def common_start(texts: Sequence[str]) -> str:
    """The common prefix of all texts."""
    shortest = min(texts, key=len)
    length = next((n for n, letter in enumerate(shortest) if any(text[n] != letter for text in texts)), len(shortest))
    return shortest[:length]


class Probes:
    """Texts are marked (serve/parsing/marks.py); None if the template refuses the messages."""

    def __init__(self, tokenizer: Any) -> None:
        self.marks = Marks(tokenizer)
        self._renderer = renderer_of(tokenizer)

    def literals(self) -> str:
        """The string literals of the template."""
        return self._renderer.template.literals()

    def prompt(self, tools: Any = None, **variables: Any) -> str | None:
        """The prompt of a reply to the question."""
        prepared = self._renderer.prepared([QUESTION])
        try:
            return self.marks.of(self._renderer.prompt(prepared, tools, variables))
        except ChatTemplateError:
            return None

    def turn(
        self, message: Mapping[str, Any], later: Sequence[Mapping[str, Any]] = (), tools: Any = None
    ) -> str | None:
        """The text of the question, this turn, and later ones."""
        try:
            prepared = self._renderer.prepared([QUESTION, message, *later])
            return self.marks.of(self._renderer.text(prepared, tools))
        except ChatTemplateError:
            return None

    def reply(self, message: Mapping[str, Any], tools: Any = None) -> str | None:
        """This turn as a model generates it, without its end token."""
        try:
            reply = self._renderer.reply(self._renderer.prepared([QUESTION, message]), 1, tools)
        except ChatTemplateError:
            return None
        written = self.marks.of(reply.text).rstrip()
        if written and self.marks.token_id(written[-1]) in self._renderer.end_ids:
            return written[:-1]
        return written
