"""Token ids to text while they arrive: whole characters only, no special tokens; and nothing of a stop string."""

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"

# A character has at most 4 bytes, so this many tokens without a whole one are not the start of a character.
MAX_HELD_TOKENS = 8


class TokenDecoder:
    """Text of a growing list of tokens; the bytes of an unfinished character are held back."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Tokens are decoded together with those before them: a tokenizer may write " a" or "a" by position.
        self._context_ids: list[int] = []
        self._held_ids: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes."""
        self._held_ids.append(token_id)
        text = self._held_text()
        if text.endswith(REPLACEMENT) and len(self._held_ids) < MAX_HELD_TOKENS:
            return ""
        self._context_ids, self._held_ids = self._held_ids, []
        return text

    def finish(self) -> str:
        """What is left at the end, without the half of a character."""
        text = self._held_text().rstrip(REPLACEMENT)
        self._held_ids = []
        return text

    def cut(self) -> str:
        """The same before a token that is no text."""
        held = self._held_ids
        text = self.finish()
        self._context_ids = held or self._context_ids
        return text

    def _held_text(self) -> str:
        before = self._decode(self._context_ids)
        return self._decode(self._context_ids + self._held_ids)[len(before) :]

    def _decode(self, token_ids: list[int]) -> str:
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


class StopFilter:
    """Passes text on until the first of `stops`; holds back what may be the beginning of one.

    `rest` is what came from there on, in the push that found it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.is_stopped = False
        self.rest = ""

    @property
    def num_held(self) -> int:
        """Characters that are held back now."""
        return len(self._held)

    def push(self, text: str) -> str:
        """The text that may be shown now."""
        if self.is_stopped:
            self.rest += text
            return ""
        text = self._held + text
        starts = [start for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            self.is_stopped = True
            self._held = ""
            self.rest = text[min(starts) :]
            return text[: min(starts)]
        num_held = max((overlap(text, stop) for stop in self._stops), default=0)
        shown = text[: len(text) - num_held]
        self._held = text[len(shown) :]
        return shown

    def finish(self) -> str:
        """What was held back for a stop string that did not come."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """The most characters at the end of `text` that are the beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
