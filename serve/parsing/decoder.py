"""Token ids to text as they arrive: only whole characters, no special tokens, and no part of a stop string."""

import re
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from typing import Any

REPLACEMENT = "\ufffd"

# A character has at most 4 bytes, so more tokens without a whole character are not the start of one.
MAX_HELD_TOKENS = 8


_BYTE = re.compile("<0x([0-9A-F]{2})>")


def token_text(tokenizer: Any, token_id: int) -> str:
    """The text of a single token."""
    return str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))


def token_bytes(tokenizer: Any, token_id: int, text: str) -> bytes | None:
    """The bytes of a token whose own text is `text`; they may be a part of a character. None if the vocabulary does
    not contain them.
    """
    if REPLACEMENT not in text:
        return text.encode()
    name = str(tokenizer.convert_ids_to_tokens(token_id))
    if found := _BYTE.fullmatch(name):  # a byte token of SentencePiece
        return bytes([int(found[1], 16)])
    letters = _byte_letters()
    return bytes(letters[letter] for letter in name) if all(letter in letters for letter in name) else None


@cache
def _byte_letters() -> dict[str, int]:
    """The bytes by the characters of byte-level vocabularies."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}


def _decoder_of(tokenizer: Any) -> Callable[[list[int]], str]:
    """`tokenizer.decode` without special tokens. For the usual class the backend's function: transformers' check of
    the argument's type takes several times as long as decoding a token or two."""
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    kind = type(tokenizer)
    has_usual = (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and kind.decode is PreTrainedTokenizerBase.decode
        and kind._decode is PreTrainedTokenizerFast._decode
    )
    if has_usual:
        return partial(tokenizer.backend_tokenizer.decode, skip_special_tokens=True)
    return partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class _Texts:
    """A tokenizer's texts of tokens, without special ones; the lengths of single tokens are cached
    for all replies.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.of = _decoder_of(tokenizer)
        self._lengths: dict[int, int] = {}

    def length(self, token_ids: list[int]) -> int:
        """The length of these tokens' text."""
        if len(token_ids) != 1:
            return len(self.of(token_ids)) if token_ids else 0
        found = self._lengths.get(token_ids[0])
        if found is None:
            found = self._lengths[token_ids[0]] = len(self.of(token_ids))
        return found


@lru_cache(maxsize=8)
def _texts_of(tokenizer: Any) -> _Texts:
    return _Texts(tokenizer)


class TokenDecoder:
    """The text of a growing list of tokens; bytes of an incomplete character are held back."""

    def __init__(self, tokenizer: Any) -> None:
        self._texts = _texts_of(tokenizer)
        # Tokens are decoded together with previous ones: a tokenizer may write " a" or "a" depending on the position.
        self._context_ids: list[int] = []
        self._held_ids: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that is complete with `token_id`."""
        self._held_ids.append(token_id)
        text = self._held_text()
        if text.endswith(REPLACEMENT) and len(self._held_ids) < MAX_HELD_TOKENS:
            return ""
        self._context_ids, self._held_ids = self._held_ids, []
        return text

    def finish(self) -> str:
        """The rest at the end, without an incomplete character."""
        text = self._held_text().rstrip(REPLACEMENT)
        self._held_ids = []
        return text

    def cut(self) -> str:
        """The same, before a token that is not text."""
        held = self._held_ids
        text = self.finish()
        self._context_ids = held or self._context_ids
        return text

    def _held_text(self) -> str:
        return self._texts.of(self._context_ids + self._held_ids)[self._texts.length(self._context_ids) :]


class StopFilter:
    """Passes text up to the first of `stops`, or with `shows_stop` including it; holds back text that may be the
    start of one.

    `rest` is the text after that, from the push that found it.
    """

    def __init__(self, stops: Sequence[str], shows_stop: bool = False) -> None:
        self._stops = stops
        self._shows_stop = shows_stop
        self._held = ""
        self.is_on = True
        """whether to search further text for stop strings"""
        self.is_stopped = False
        self.found: str | None = None
        """the stop string that was found"""
        self.rest = ""

    @property
    def num_held(self) -> int:
        """The number of characters that are held back."""
        return len(self._held)

    def push(self, text: str) -> str:
        """The text that can be shown now."""
        if self.is_stopped:
            self.rest += text
            return ""
        if not self.is_on or not self._stops:
            return text
        text = self._held + text
        starts = [(start, len(stop)) for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            begin, length = min(starts)
            end = begin + length * self._shows_stop
            self.is_stopped = True
            self.found = text[begin : begin + length]
            self._held = ""
            self.rest = text[end:]
            return text[:end]
        num_held = max((overlap(text, stop) for stop in self._stops), default=0)
        shown = text[: len(text) - num_held]
        self._held = text[len(shown) :]
        return shown

    def finish(self) -> str:
        """The text that was held back."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a prefix of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
