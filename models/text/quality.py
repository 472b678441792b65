"""Figures by which texts are kept or left out: lengths, repetition, the share of what is no letter.

texts = Texts.of(conversations)
for figures in figures_of(texts):
    Limits(min_words=3, max_repetition=0.3).reason(figures)     # None, or a sentence that names the field

Repetition is measured in two of the ways of Rae et al. 2021 (arXiv:2112.11446, table A1), as shares of characters:
lines that stood in the text before, and the most frequent run of 2, of 3 and of 4 words. That paper leaves out
documents with more than 0.2 in repeated lines, and more than 0.2, 0.18 and 0.16 in those runs. Conversations are
shorter, and repeat "would you like" by nature: here a run counts from three times on. Of sgd, chitchat and
instruct_mix 0.1%, 0.6% and 7% (most of it code) have a repetition above 0.2, and 0%, 0.3% and 1% above 0.3.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import numpy.typing as npt

from models.text.run_index import RunHashes
from models.text.shingles import Hashes, words
from models.text.texts import TURN_SEPARATOR, Texts

# The section of a pipeline file in which the limits stand.
SECTION = "data.filters"
_RUN_LENGTHS = (2, 3, 4)
# Of what stands twice, any conversation has some: "would you like".
_MIN_TIMES = 3
_ASCII_LETTERS_AND_SPACE = bytes(code for code in range(128) if chr(code).isalpha() or chr(code).isspace())
_ASCII_SPACE = bytes(code for code in range(128) if chr(code).isspace())


@dataclass(frozen=True)
class Figures:
    """What is measured of a text."""

    turns: int
    characters: int
    words: int
    """letters and digits between other characters; each character of Chinese and Japanese"""

    repeated_lines: float
    """share of the characters in lines that stood before"""

    repeated_words: float
    """share of the words' characters in the run of 2, 3 or 4 words that is repeated most, from three times on"""

    non_letters: float
    """share of the characters that are no letters; white space counts as neither"""

    @property
    def repetition(self) -> float:
        """The larger of the two shares of repetition."""
        return max(self.repeated_lines, self.repeated_words)


@dataclass(frozen=True)
class Limits:
    """Which texts are kept; None sets no limit."""

    min_turns: int | None = None
    max_turns: int | None = None
    min_characters: int | None = None
    max_characters: int | None = None
    min_words: int | None = None
    max_words: int | None = None
    max_repetition: float | None = None
    max_non_letters: float | None = None

    def reason(self, figures: Figures) -> str | None:
        """Why a text is left out: the field, what it asks for, and what the text has."""
        for field in fields(self):
            limit = getattr(self, field.name)
            if limit is None:
                continue
            side, _, name = field.name.partition("_")
            found = getattr(figures, name)
            if found < limit if side == "min" else found > limit:
                than = "fewer" if side == "min" else "more"
                if isinstance(found, float):
                    return f"{SECTION}.{field.name}: a share of {found:.2f} is {_SHARES[name]}, more than {limit:g}"
                return f"{SECTION}.{field.name}: {found:,} {name}, {than} than {limit:,}"
        return None


_SHARES = {"repetition": "repeated lines or words", "non_letters": "no letters"}


def figures_of(texts: Texts) -> list[Figures]:
    """The figures of each text."""
    runs = RunHashes(texts.by_text)
    sizes = np.fromiter(_word_sizes(texts), np.int64, count=len(texts.by_text.hashes))
    by_run = np.max([_repeated(runs, length, sizes) for length in _RUN_LENGTHS], axis=0)
    counts = np.diff(texts.by_text.starts)
    rows = zip(texts.turns, counts.tolist(), by_run.tolist(), strict=True)
    return [
        Figures(
            turns=len(turns),
            characters=sum(map(len, turns)),
            words=count,
            repeated_lines=_repeated_lines(TURN_SEPARATOR.join(turns)),
            repeated_words=repeated,
            non_letters=_non_letters(TURN_SEPARATOR.join(turns)),
        )
        for turns, count, repeated in rows
    ]


def _word_sizes(texts: Texts) -> Iterator[int]:
    for turns in texts.turns:
        for turn in turns:
            yield from map(len, words(turn))


def _repeated(runs: RunHashes, length: int, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(D,) of each text the share of its words' characters, `sizes`, in its most frequent run of `length` words."""
    count = len(runs.starts) - 1
    text = np.repeat(np.arange(count), np.diff(runs.starts))
    hashes = runs.at(length)
    begins = np.flatnonzero(runs.left[: len(hashes)] >= length)
    numbers, times = _times(hashes[begins], text[begins])
    most = np.zeros(count, np.int64)
    np.maximum.at(most, text[begins], times)
    is_most = (times == most[text[begins]]) & (times >= _MIN_TIMES)
    # Of several that are equally frequent, the one that begins first.
    chosen = np.full(count, -1, np.int64)
    chosen[text[begins][is_most][::-1]] = numbers[is_most][::-1]
    inside = np.zeros(len(sizes), bool)
    starts = begins[chosen[text[begins]] == numbers]
    for offset in range(length):
        inside[starts + offset] = True
    total = np.bincount(text, weights=sizes, minlength=count)
    repeated = np.bincount(text[inside], weights=sizes[inside], minlength=count)
    shares: npt.NDArray[np.float64] = repeated / np.maximum(total, 1)
    return shares


def _times(hashes: Hashes, text: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of each run a number, the same for the same run of one text, and how often that text has it."""
    mixed = (hashes ^ text.astype(np.uint64)) * np.uint64(0x94D049BB133111EB)
    _, numbers, counts = np.unique(mixed ^ (mixed >> np.uint64(29)), return_inverse=True, return_counts=True)
    return numbers, counts[numbers]


def _repeated_lines(text: str) -> float:
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    before: set[str] = set()
    repeated = 0
    for line in lines:
        repeated += len(line) if line in before else 0
        before.add(line)
    return repeated / max(1, sum(map(len, lines)))


def _non_letters(text: str) -> float:
    if text.isascii():
        encoded = text.encode()
        others = len(encoded.translate(None, _ASCII_LETTERS_AND_SPACE))
        return others / max(1, len(encoded.translate(None, _ASCII_SPACE)))
    counts = Counter(text)
    others = sum(count for character, count in counts.items() if _kind(character) == "other")
    return others / max(1, sum(count for character, count in counts.items() if _kind(character) != "space"))


@cache
def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    # The vowel signs of many scripts are marks.
    return "letter" if unicodedata.category(character)[0] in "LM" else "other"
