"""A reply's text and thinking, token by token, without calls and stop strings."""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from serve.parsing.decoder import StopFilter
from serve.parsing.marks import MarkedDecoder, Marks
from serve.parsing.reader import Part, Reader


class Shown(NamedTuple):
    """Text and thinking that a token adds."""

    said: str = ""
    thought: str = ""


class ReplyText:
    """`is_stopped` is true once the text or a call's arguments, but not the thinking, contain a stop string.

    `num_decoded` and `num_shown` count characters, with control tokens as one: of all tokens so far, and of the part
    for which it is certain what is shown.
    """

    def __init__(
        self,
        tokenizer: Any,
        stops: Sequence[str],
        reader: Reader | None = None,
        marks: Marks | None = None,
        shows_stop: bool = False,
        min_tokens: int = 0,
    ):
        """Without a `reader` everything is text. Stop strings do not count in the first `min_tokens` tokens."""
        self._decoder = MarkedDecoder(tokenizer, marks if reader is not None else None)
        self._filter = StopFilter(stops, shows_stop)
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._stops = stops
        self._reader = reader
        self._marks = marks
        self._num_said = 0
        # The last parts of the text: position in the text, position in the reply, length. Stop strings are not
        # longer.
        self._said_at: deque[tuple[int, int, int]] = deque(maxlen=512)
        self.is_stopped = False
        self.num_decoded = 0
        self.num_shown = 0

    def push(self, token_id: int) -> Shown:
        """Text and thinking that can be shown after `token_id`."""
        text = self._decoder.push(token_id)
        self._num_tokens += 1
        self._filter.is_on = self._num_tokens > self._min_tokens
        self.num_decoded += len(text)
        if self._reader is None and not self._stops:  # nothing can be held back
            self.num_shown = self.num_decoded
            return Shown(text)
        shown = self._show(self._read(text))
        if self._reader and self._stops and self._filter.is_on and not self.is_stopped:
            self.is_stopped = self._reader.stop_in_call(self._stops)
        return shown

    def finish(self, is_cut: bool) -> Shown:
        """The rest, when no more tokens come; `is_cut`: the reply reached its maximum length."""
        text = self._decoder.finish()
        self.num_decoded += len(text)
        parts = self._read(text)
        if self._reader is not None and not self.is_stopped:
            parts += self._reader.finish(is_cut)
        shown = self._show(parts)
        rest = self._filter.finish()
        if not self.is_stopped:
            self.num_shown = self.num_decoded
        return Shown(shown.said + rest, shown.thought)

    @property
    def stop(self) -> str | None:
        """The stop string that ended the text."""
        return self._filter.found

    def is_said(self, place: int) -> bool:
        """Whether the character at this position is text, not thinking or a header."""
        reader = self._reader
        spans = (*reader.thought, *reader.headers) if reader else ()
        return not any(begin <= place < end for begin, end in spans)

    def num_thought(self, places: Sequence[int]) -> int:
        """The number of thinking tokens among tokens that start at these positions."""
        spans = self._reader.thought if self._reader else ()
        return sum(any(begin <= place < end for begin, end in spans) for place in places) if spans else 0

    def _read(self, text: str) -> list[Part]:
        if self._reader is not None:
            return self._reader.push(text)
        return [Part("said", text, self.num_decoded - len(text))] if text else []

    def _show(self, parts: list[Part]) -> Shown:
        said = thought = ""
        for part in parts:
            text = self._marks.shown(part.text) if self._reader and self._marks else part.text
            if part.kind == "thought":
                thought += text
                continue
            self._said_at.append((self._num_said, part.start, len(part.text)))
            self._num_said += len(text)
            said += self._filter.push(text)
        self.is_stopped = self.is_stopped or self._filter.is_stopped
        num_held = len(self._filter.rest) if self._filter.is_stopped else self._filter.num_held
        settled = self._reader.settled if self._reader else self.num_decoded
        if not self._filter.is_stopped or parts:
            self.num_shown = self._place(self._num_said - num_held) if num_held else settled
        return Shown(said, thought)

    def _place(self, num_said: int) -> int:
        """The position in the reply of a character of the text."""
        for begin, start, length in reversed(self._said_at):
            if num_said >= begin:
                return start + min(num_said - begin, length)
        return 0
