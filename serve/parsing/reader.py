"""A growing reply, parsed into thinking, text and tool calls.

reader = ReplyReader(thinking, words, style, functions={"weather": schema}, is_thinking=False)
reader.push(text), reader.finish(is_cut=False)     # Parts; then reader.calls
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from serve.parsing.call_reader import Call, Scan, names_one, scan_calls
from serve.parsing.call_style import CallStyle
from serve.parsing.decoder import overlap
from serve.parsing.thinking import Thinking

# A call longer than this is parsed again only after it has grown by this much.
_READ_AGAIN, _GROWN = 400, 1.05


class Part(NamedTuple):
    """A marked text, and its start in the reply."""

    kind: Literal["thought", "said"]
    text: str
    start: int


class Reader(ABC):
    """Texts are marked (serve/parsing/marks.py), and positions count marked characters. Text that only looks like a
    call stays text.
    """

    def __init__(self, functions: Mapping[str, Any]) -> None:
        """`functions` are the callable functions: the schemas of their parameters by name."""
        self._functions = functions
        self._held = ""
        self._at = 0  # the start of `held` in the reply
        self.calls: list[Call] = []
        self.pending: list[Call] = []
        """further calls while they are written, once they are certain to be calls"""
        self.thought: list[tuple[int, int]] = []
        """start and end of thinking, including its opening and closing"""
        self.headers: list[tuple[int, int]] = []
        """other spans that are neither text nor calls"""

    @property
    def settled(self) -> int:
        """The position up to which the reply is parsed for certain."""
        return self._at

    def push(self, text: str) -> list[Part]:
        """The parts that are certain now."""
        self._held += text
        parts: list[Part] = []
        while self._step(parts):
            pass
        return parts

    @abstractmethod
    def finish(self, is_cut: bool) -> list[Part]:
        """The rest, when no more text comes; `is_cut`: the reply reached its maximum length instead of ending."""

    @abstractmethod
    def _step(self, parts: list[Part]) -> bool:
        """Parse more; False if it needs more text."""

    @abstractmethod
    def begun_call(self) -> Call | None:
        """The incomplete call that is being written."""

    def stop_in_call(self, stops: Sequence[str]) -> bool:
        """Whether the last call's arguments contain a stop string; they are then cut before it."""
        begun = self.begun_call()
        call = begun or (self.calls[-1] if self.calls else None)
        places = [place for stop in stops if call and (place := call.arguments.find(stop)) >= 0]
        if not call or not places:
            return False
        cut = replace(call, arguments=call.arguments[: min(places)], is_cut=True)
        self.pending = []
        self.calls = [*self.calls, cut] if begun else [*self.calls[:-1], cut]
        self._drop(len(self._held))
        return True

    def _give(self, parts: list[Part], kind: Literal["thought", "said"], count: int) -> None:
        if count > 0:
            parts.append(Part(kind, self._held[:count], self._at))
            self._drop(count)

    def _drop(self, count: int) -> None:
        self._held = self._held[count:]
        self._at += count

    def _drop_space(self) -> None:
        self._drop(len(self._held) - len(self._held.lstrip()))


class ReplyReader(Reader):
    """Reads thinking between an opening and a closing, then text, then calls."""

    def __init__(
        self,
        thinking: Thinking | None,
        words: str,
        style: CallStyle | None,
        functions: Mapping[str, Any],
        is_thinking: bool = False,
        must_call: bool = False,
        lead: str = "",
    ) -> None:
        """`words` is the template's text before a reply's text, and the white space `lead` comes before everything;
        with `is_thinking` the prompt has opened the thinking; with `must_call` the reply must be a call."""
        super().__init__(functions)
        self._thinking = thinking
        self._words = words.strip()
        self._lead = lead
        self._style = style if functions else None
        self._marks = list(self._style.marks) if self._style else []
        self._state: Literal["start", "thought", "said", "call"] = "thought" if is_thinking else "start"
        self._is_new = True  # this state has given no part yet
        self._may_open = self._style is not None and self._style.is_bare
        self._next_scan = 0
        self._must_call = must_call
        if is_thinking:
            self.thought.append((0, 0))

    def finish(self, is_cut: bool) -> list[Part]:
        parts: list[Part] = []
        if self._state == "call":
            self._end_call(is_cut)
        if self._state == "thought":
            self._give(parts, "thought", len(self._held.rstrip()))
            self._drop(len(self._held))
            self._extend_thought()
        elif self._state != "start" or not self.thought or self._held.strip():
            self._give(parts, "said", len(self._held))
        self._drop(len(self._held))
        return parts

    def begun_call(self) -> Call | None:
        return self._scan(is_final=False).cut if self._state == "call" else None

    def _step(self, parts: list[Part]) -> bool:
        if self._state == "start":
            return self._start()
        if self._state == "thought":
            return self._think(parts)
        return self._say(parts) if self._state == "said" else self._call(parts)

    def _go_to(self, state: Literal["start", "thought", "said", "call"]) -> bool:
        self._state, self._is_new, self._next_scan = state, True, 0
        return True

    def _start(self) -> bool:
        if not self._at and self._lead:
            if self._lead.startswith(self._held):
                return False
            self._drop(len(self._lead) if self._held.startswith(self._lead) else 0)
            self._lead = ""
        opening = self._thinking.opening if self._thinking else ""
        openings = [each for each in (opening, self._words) if each]
        text = self._held.lstrip()
        if not openings and not self.thought:
            return self._go_to("said")
        found = next((each for each in openings if text.startswith(each)), None)
        if found is None:
            if not text or any(each.startswith(text) for each in openings):
                return False
            if self.thought:
                self._drop_space()
            return self._go_to("said")
        begin = self._at
        self._drop_space()
        self._drop(len(found))
        if found == opening:
            self.thought.append((begin, self._at))
            return self._go_to("thought")
        self.headers.append((begin, self._at))
        return self._go_to("said")

    def _think(self, parts: list[Part]) -> bool:
        assert self._thinking is not None
        if self._is_new:
            self._drop_space()
        closing = self._thinking.closing
        end = self._held.find(closing)
        if end >= 0:
            said = len(self._held[:end].rstrip())
            self._give(parts, "thought", said)
            self._drop(end - said + len(closing))
            self._extend_thought()
            return self._go_to("start")
        self._is_new = self._is_new and not self._held
        self._give(parts, "thought", len(self._held) - _held_back(self._held, [closing]))
        self._extend_thought()
        return False

    def _extend_thought(self) -> None:
        self.thought[-1] = (self.thought[-1][0], self._at)

    def _say(self, parts: list[Part]) -> bool:
        if self._may_open and self._held.strip():
            self._may_open = False
            scan = self._scan(is_final=False)
            if scan.calls or scan.is_open:
                return self._go_to("call")
        elif self._may_open:
            return False
        starts = [start for mark in self._marks if (start := self._held.find(mark)) >= 0]
        if starts:
            # The white space before it is the template's, unless this is not a call.
            self._give(parts, "said", len(self._held[: min(starts)].rstrip()))
            return self._go_to("call")
        self._give(parts, "said", len(self._held) - (_held_back(self._held, self._marks) if self._marks else 0))
        return False

    def _call(self, parts: list[Part]) -> bool:
        if len(self._held) < self._next_scan:
            return False
        scan = self._scan(is_final=False)
        if scan.is_open:
            self._next_scan = int(len(self._held) * _GROWN) if len(self._held) > _READ_AGAIN else 0
            if scan.calls or self._is_certain():
                self.pending = [*scan.calls, *([scan.cut] if scan.cut else [])]
            return False
        self.pending = []
        self.calls += scan.calls
        if scan.calls:
            self._drop(scan.end)
            self._drop_space()
        else:
            self._give(parts, "said", len(self._held) - len(self._held.lstrip()) + 1)
        return self._go_to("said")

    def _scan(self, is_final: bool) -> Scan:
        assert self._style is not None
        text = self._held.lstrip()
        scan = scan_calls(text, self._style, self._functions, is_final)
        scan.end += len(self._held) - len(text) if scan.calls else 0
        return scan

    def _end_call(self, is_cut: bool) -> None:
        self.pending = []
        scan = self._scan(is_final=not is_cut)
        self.calls += scan.calls
        self._drop(scan.end)
        if is_cut and scan.is_open:
            self.calls += [scan.cut] if scan.cut else []
            self._drop(len(self._held) if self.calls or self._is_certain() else 0)
        elif scan.calls:
            self._drop_space()
        self._go_to("said")

    def _is_certain(self) -> bool:
        """Whether the text so far is certainly the start of a call."""
        assert self._style is not None
        if self._must_call or names_one(self._held, self._style, self._functions):
            return True
        return not self._style.is_bare and any(self._held.lstrip().startswith(mark) for mark in self._marks)


def _held_back(text: str, marks: Sequence[str]) -> int:
    """The length of the end of a text that may be the start of a mark, with the white space before it."""
    most = max((overlap(text, mark) for mark in marks), default=0)
    return len(text) - len(text[: len(text) - most].rstrip())
