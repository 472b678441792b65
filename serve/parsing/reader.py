"""A reply as it grows, in its parts: what is thought, what is said, and calls of tools.

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

# A call that is longer than this is read again only when it has grown by so much.
_READ_AGAIN, _GROWN = 400, 1.05


class Part(NamedTuple):
    """Some text, marked, and where it begins in the reply."""

    kind: Literal["thought", "said"]
    text: str
    start: int


class Reader(ABC):
    """Text is marked (serve/parsing/marks.py); places are counted in it. What only looks like a call is text."""

    def __init__(self, functions: Mapping[str, Any]) -> None:
        """`functions` are those that may be called: the schemas of their parameters by name."""
        self._functions = functions
        self._held = ""
        self._at = 0  # where `held` begins in the reply
        self.calls: list[Call] = []
        self.pending: list[Call] = []
        """what follows `calls` while it is written, where it is certain that these are calls"""
        self.thought: list[tuple[int, int]] = []
        """from where to where it was thought, with what stands around that"""
        self.headers: list[tuple[int, int]] = []
        """what else is neither said nor called"""

    @property
    def settled(self) -> int:
        """How far into the reply it is known what all of it is."""
        return self._at

    def push(self, text: str) -> list[Part]:
        """What is known now."""
        self._held += text
        parts: list[Part] = []
        while self._step(parts):
            pass
        return parts

    @abstractmethod
    def finish(self, is_cut: bool) -> list[Part]:
        """The rest, when no more comes: with `is_cut` because the reply may not be longer, else because it ended."""

    @abstractmethod
    def _step(self, parts: list[Part]) -> bool:
        """Read on; False to wait for more."""

    @abstractmethod
    def begun_call(self) -> Call | None:
        """The call that is being written, cut off where it is now."""

    def stop_in_call(self, stops: Sequence[str]) -> bool:
        """Whether the arguments of the last call have come to a stop string; they then end before it."""
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
    """Thinking between an opening and a closing, then words, then calls."""

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
        """`words` stands before what is said, where a template writes something there, and the white space `lead`
        before all of a reply; with `is_thinking` the prompt
        has opened the thinking; with `must_call` what is begun is a call."""
        super().__init__(functions)
        self._thinking = thinking
        self._words = words.strip()
        self._lead = lead
        self._style = style if functions else None
        self._marks = list(self._style.marks) if self._style else []
        self._state: Literal["start", "thought", "said", "call"] = "thought" if is_thinking else "start"
        self._is_new = True  # nothing of this state was given yet
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
            # The white space between is the template's, unless this is no call.
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
        """Whether what has begun is a call for all that is there of it."""
        assert self._style is not None
        if self._must_call or names_one(self._held, self._style, self._functions):
            return True
        return not self._style.is_bare and any(self._held.lstrip().startswith(mark) for mark in self._marks)


def _held_back(text: str, marks: Sequence[str]) -> int:
    """How much of its end may be the beginning of a mark, with the white space before that."""
    most = max((overlap(text, mark) for mark in marks), default=0)
    return len(text) - len(text[: len(text) - most].rstrip())
