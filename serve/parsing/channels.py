"""Parses replies with channels, whose messages have headers, as gpt-oss writes them (OpenAI's Harmony format):

<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Paris.
<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Paris"}
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from serve.parsing.call_reader import Call, as_written
from serve.parsing.marks import Marks
from serve.parsing.reader import Part, Reader

START, CHANNEL, MESSAGE, END = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"
_OTHER_ENDS = ("<|call|>", "<|return|>")
_RECIPIENT = re.compile(r"to=([\w.-]+)")
_WORD = re.compile(r"\s*(\w+)")
_LONGEST_HEADER = 300


def writes_channels(turn: str, marks: Marks) -> bool:
    """Whether a template writes an assistant's turn in this format."""
    names = [marks.of(name) for name in (START, CHANNEL, MESSAGE, END)]
    return all(len(name) == 1 for name in names) and names[1] in turn and names[2] in turn


class ChannelReader(Reader):
    """The channel `analysis` is thinking, messages to a function are calls, and all others are text."""

    def __init__(self, marks: Marks, functions: Mapping[str, Any]) -> None:
        super().__init__(functions)
        self._start, self._channel, self._message = map(marks.of, (START, CHANNEL, MESSAGE))
        self._ends = "".join(mark for mark in map(marks.of, (START, END, *_OTHER_ENDS)) if len(mark) == 1)
        self._state = "header"
        self._function = ""
        self._body = ""
        self._given: set[str] = set()

    def finish(self, is_cut: bool) -> list[Part]:
        parts: list[Part] = []
        if self._state == "call":
            self._body += self._held
            self._drop(len(self._held))
            self._end_call(parts, is_cut)
        elif self._state == "header" and not self._is_header():
            self._give(parts, "said", len(self._held))
        self._drop(len(self._held))
        self._extend()
        return parts

    def begun_call(self) -> Call | None:
        return Call(self._function, self._body.strip(), is_cut=True) if self._state == "call" else None

    def _step(self, parts: list[Part]) -> bool:
        return bool(self._held) and (self._read_header() if self._state == "header" else self._read_body(parts))

    def _is_header(self) -> bool:
        """Whether the held text can be a header."""
        text = self._held.lstrip()
        begins = (self._start, self._channel, "to=")
        return len(text) < _LONGEST_HEADER and any(text.startswith(each) or each.startswith(text) for each in begins)

    def _read_header(self) -> bool:
        if not self._is_header():
            self._state = "said"
            return True
        header, found, _ = self._held.partition(self._message)
        if not found:
            return False
        begin = self._at
        self._drop(len(header) + 1)
        recipient = _RECIPIENT.search(header)
        function = recipient[1].removeprefix("functions.") if recipient else ""
        channel = _WORD.match(header.partition(self._channel)[2])
        if function in self._functions:
            self._state, self._function, self._body = "call", function, ""
        elif function or (channel and channel[1] == "analysis"):
            self._state = "thought"
            self.thought.append((begin, self._at))
            return True
        else:
            self._state = "said"
        self.headers.append((begin, self._at))
        return True

    def _read_body(self, parts: list[Part]) -> bool:
        ends = [place for place, letter in enumerate(self._held) if letter in self._ends]
        count = ends[0] if ends else len(self._held)
        if self._state == "call":
            self._body += self._held[:count]
            self._drop(count)
            body = self._body.strip()
            self.pending = [Call(self._function, body, True, body if body[:1] == "{" else "")]
        elif count:
            kind: Any = self._state
            if kind in self._given and self._is_new_body:
                parts.append(Part(kind, "\n", self._at))
            self._given.add(kind)
            self._is_new_body = False
            self._give(parts, kind, count)
        self._extend()
        if not ends:
            return False
        if self._state == "call":
            self._end_call(parts, is_cut=False)
        if self._held[0] != self._start:
            self._drop(1)
            self._extend()
        self._state, self._is_new_body = "header", True
        return True

    _is_new_body = True

    def _extend(self) -> None:
        if self._state == "thought":
            self.thought[-1] = (self.thought[-1][0], self._at)

    def _end_call(self, parts: list[Part], is_cut: bool) -> None:
        self.pending = []
        body = self._body.strip()
        try:
            arguments = json.loads(body or "{}", strict=False)
        except (ValueError, RecursionError):
            arguments = None
        if isinstance(arguments, dict) and (body or not is_cut):
            self.calls.append(Call(self._function, as_written(body, arguments)))
        elif is_cut:
            self.calls.append(Call(self._function, body, is_cut=True))
        else:
            parts.append(Part("said", self._body, self._at - len(self._body)))
        self._state = "header"
