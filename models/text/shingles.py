"""Texts as sequences of words and as sets of shingles, which are runs of words hashed to 64 bits.

words("Well, hello there!")                  # ["well", "hello", "there"]
shingles = Shingles.of(["one two three four", "five"])
shingles[0]                                  # the sorted hashes of "one two three" and "two three four"
similarity(shingles[0], shingles[1])         # 0.0

Two texts are compared by their sets of shingles (Broder 1997, "On the resemblance and containment of documents").
Words are runs of letters and digits after NFKC and case folding, so punctuation, case and white space make no
difference. Where a script writes no spaces between words (Chinese, Japanese, Thai), each character is a word.
"""

import hashlib
import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import regex

Hashes = npt.NDArray[np.uint64]

WORDS_PER_SHINGLE = 3
_UNSPACED = (
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Japanese, Chinese
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
)
# A letter's combining marks belong to it: the vowels of Indian scripts are such marks.
_WORD = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|(?:[^\W_{_UNSPACED}]|\p{{M}})+")
# Splitting bytes is four times as fast as a regular expression, and most texts are ASCII.
_ASCII_WORDS = bytes(code if chr(code).isalnum() else ord(" ") for code in range(128)) + b" " * 128
_MAX_REMEMBERED = 1 << 20
_ODD = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    return [word.decode() for word in _words(text)]


def word_count(text: str) -> int:
    """How many words a text has."""
    return len(_words(text))


def _words(text: str) -> list[bytes]:
    if text.isascii():
        return text.lower().encode().translate(_ASCII_WORDS).split()
    return [word.encode() for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold())]


class _WordHashes(dict[bytes, int]):
    """The hash of each word, the same in every process; it remembers the words that it has met."""

    def __missing__(self, word: bytes) -> int:
        if len(self) >= _MAX_REMEMBERED:
            self.clear()
        found = self[word] = int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "little")
        return found


_HASHES = _WordHashes()


@dataclass(frozen=True)
class WordRuns:
    """The word hashes of several texts, one after the other."""

    hashes: Hashes
    """(N,) the hash of each word"""

    starts: npt.NDArray[np.int64]
    """(D + 1,) where each text begins; the last is N"""

    @classmethod
    def of(cls, texts: Iterable[str]) -> "WordRuns":
        """The words of these texts, hashed."""
        split = [_words(text) for text in texts]
        starts = _starts(np.array([len(each) for each in split], np.int64))
        flat = map(_HASHES.__getitem__, itertools.chain.from_iterable(split))
        return cls(np.fromiter(flat, np.uint64, count=int(starts[-1])), starts)

    def texts_at(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The number of the text of each of these words, which are counted over all texts."""
        found: npt.NDArray[np.int64] = np.searchsorted(self.starts, places, side="right") - 1
        return found

    def runs(self, size: int) -> "WordRuns":
        """The hashes of all runs of `size` words; a text of fewer words has one run of them all."""
        lengths = np.diff(self.starts)
        counts = np.where(lengths >= size, lengths - size + 1, np.minimum(lengths, 1))
        starts = _starts(counts)
        first = np.repeat(self.starts[:-1] - starts[:-1], counts) + np.arange(starts[-1])
        ends = np.repeat(self.starts[1:], counts)
        mixed = np.zeros(len(first), np.uint64)
        for offset in range(size):
            at = first + offset
            inside = at < ends
            word = self.hashes[np.where(inside, at, 0)] if len(self.hashes) else mixed
            mixed = _mix(mixed ^ np.where(inside, word, np.uint64(0)))
        return WordRuns(mixed, starts)


@dataclass(frozen=True)
class Shingles:
    """The sets of shingles of several texts, as sorted arrays."""

    hashes: Hashes
    """(N,) those of the first text, of the second, ..., sorted and without repetition within each"""

    starts: npt.NDArray[np.int64]
    """(D + 1,) where each text's begin; the last is N"""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> Hashes:
        return self.hashes[self.starts[number] : self.starts[number + 1]]

    def only(self, chosen: npt.NDArray[np.bool_]) -> "Shingles":
        """Those of the chosen texts; `chosen` is (D,)."""
        lengths = np.diff(self.starts)
        return Shingles(self.hashes[np.repeat(chosen, lengths)], _starts(lengths[chosen]))

    @classmethod
    def joined(cls, parts: Sequence["Shingles"]) -> "Shingles":
        """Those of all texts of several."""
        lengths = [np.diff(part.starts) for part in parts]
        return cls(np.concatenate([part.hashes for part in parts]), _starts(np.concatenate(lengths)))

    @classmethod
    def of(cls, texts: Sequence[str], size: int = WORDS_PER_SHINGLE) -> "Shingles":
        """The shingles of `size` words. A text without any word (an emoji alone) has one, of its characters."""
        runs = all_shingles(texts, size)
        hashes = runs.hashes.copy()
        for begin, end in itertools.pairwise(runs.starts.tolist()):
            hashes[begin:end].sort()
        owner = np.repeat(np.arange(len(texts)), np.diff(runs.starts))
        is_new = is_first(owner, hashes)
        return cls(hashes[is_new], _starts(np.bincount(owner[is_new], minlength=len(texts))))


def all_shingles(texts: Sequence[str], size: int = WORDS_PER_SHINGLE) -> WordRuns:
    """The shingles of each text in their order, with repetitions: enough for signatures, and quicker than sets."""
    runs = WordRuns.of(texts).runs(size)
    lengths = np.diff(runs.starts)
    wordless = np.flatnonzero(lengths == 0)
    own = np.array([_HASHES["".join(texts[number].split()).encode()] for number in wordless], np.uint64)
    lengths[wordless] = 1
    return WordRuns(np.insert(runs.hashes, runs.starts[wordless], own), _starts(lengths))


def is_first(*columns: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """(N,) which rows have another value in any of the columns, each (N,), than the row before them."""
    found = np.ones(len(columns[0]), bool)
    found[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return found


def similarity(one: Hashes, other: Hashes) -> float:
    """The Jaccard index of two sets, each a sorted array: what they share of what they have in all."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared) if len(one) or len(other) else 1.0


def _mix(hashes: Hashes) -> Hashes:
    """Spread every bit over all (the finaliser of splitmix64, Steele et al. 2014)."""
    mixed = hashes + np.uint64(_ODD[0])
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_ODD[1])
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_ODD[2])
    return mixed ^ (mixed >> np.uint64(31))


def _starts(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(D + 1,) where each of D pieces of these lengths begins."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
