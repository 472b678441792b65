"""Which of many known runs of words stand in texts, and where: 64-bit hashes of runs, sorted, 14 bytes each.

hashes = RunHashes(WordRuns.of(["one two three four"]))
index = RunIndex.of([(hashes.at(3), owners)])         # {3 words: ...}; more lengths may be given
found = index.find(WordRuns.of(texts))                # found.starts, found.lengths, found.owners

A run's hash is a polynomial of its words' hashes (Karp and Rabin 1987), so that the runs of any length are the
differences of one running sum.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.text.shingles import Hashes, WordRuns, is_first

Numbers = npt.NDArray[np.int64]
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
# A run that more owners share (a greeting, a template) is found for these alone, the first ones.
_MAX_OWNERS = 16
_FILTER_BITS_PER_RUN = 8


class RunHashes:
    """The hashes of all runs of words in several texts, of any length."""

    def __init__(self, words: WordRuns) -> None:
        """`words`: those of the texts."""
        self.starts = words.starts
        self._inverse = _powers(_INVERSE, len(words.hashes))
        sums = np.cumsum(words.hashes * _powers(_BASE, len(words.hashes)))
        self._sums = np.concatenate([np.zeros(1, np.uint64), sums])
        self.left = np.repeat(self.starts[1:], np.diff(self.starts)) - np.arange(len(words.hashes))
        """(N,) how many words each text has from each word on"""

    def at(self, length: int) -> Hashes:
        """(N - length + 1,) the hash of the run that begins at each word; where `left` < length it means nothing."""
        count = max(0, len(self._inverse) - length + 1)
        hashes = (self._sums[length : length + count] - self._sums[:count]) * self._inverse[:count]
        hashes = (hashes ^ np.uint64(length)) * _MIX
        mixed: Hashes = hashes ^ (hashes >> np.uint64(31))
        return mixed

    def only(self, length: int, texts: npt.NDArray[np.bool_]) -> tuple[Hashes, Numbers]:
        """The hashes of the runs of the chosen texts, (D,), and the text of each."""
        owners = np.repeat(np.arange(len(texts)), np.diff(self.starts))
        hashes = self.at(length)
        chosen = np.flatnonzero((self.left[: len(hashes)] >= length) & texts[owners[: len(hashes)]])
        return hashes[chosen], owners[chosen]


@dataclass(frozen=True)
class Found:
    """Known runs that stand in texts; all arrays are (F,)."""

    starts: Numbers
    """the number of each one's first word, counted over all texts"""

    lengths: Numbers
    """words of each"""

    owners: Numbers
    """who has that run"""


@dataclass(frozen=True)
class RunIndex:
    """Known runs of words, each with its owner, a number."""

    lengths: tuple[int, ...]
    """which lengths in words they have"""

    hashes: Hashes
    """(R,) sorted"""

    owners: npt.NDArray[np.uint32]
    """(R,) of each hash"""

    bits: npt.NDArray[np.uint8]
    """a bit for each value of the hashes' first bits: most runs of a text are turned away by it"""

    @classmethod
    def of(cls, runs: Mapping[int, tuple[Hashes, Numbers]]) -> "RunIndex":
        """By length the hashes of runs (as `RunHashes` has them) and their owners."""
        lengths = tuple(sorted(length for length, (hashes, _) in runs.items() if len(hashes)))
        hashes = np.concatenate([np.empty(0, np.uint64), *(runs[length][0] for length in lengths)])
        owners = np.concatenate([np.empty(0, np.uint32), *(runs[length][1].astype(np.uint32) for length in lengths)])
        order = np.lexsort((owners, hashes))
        hashes, owners = hashes[order], owners[order]
        is_new = is_first(hashes, owners)
        hashes, owners = hashes[is_new], owners[is_new]
        kept = np.arange(len(hashes)) - np.searchsorted(hashes, hashes) < _MAX_OWNERS
        hashes, owners = hashes[kept], owners[kept]
        bits = np.zeros(1 << max(3, (_FILTER_BITS_PER_RUN * len(hashes) // 2).bit_length()), bool)
        bits[hashes >> _shift(len(bits))] = True
        return cls(lengths, hashes, owners, np.packbits(bits, bitorder="little"))

    def find(self, words: WordRuns, only_whole: bool = False) -> Found:
        """Those in texts; `only_whole`: those that are a whole text."""
        found = [(np.empty(0, np.int64),) * 3]
        runs = RunHashes(words)
        for length in self.lengths:
            hashes = runs.at(length)
            left = runs.left[: len(hashes)]
            if only_whole:
                starts = words.starts[:-1][np.diff(words.starts) == length]
            else:
                starts = np.flatnonzero((left >= length) & self._may_have(hashes))
            first = np.searchsorted(self.hashes, hashes[starts])
            counts = np.searchsorted(self.hashes, hashes[starts], side="right") - first
            total = int(counts.sum())
            offsets = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
            owners = self.owners[np.repeat(first, counts) + offsets].astype(np.int64)
            found.append((np.repeat(starts, counts), np.full(total, length), owners))
        return Found(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def _may_have(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        places = hashes >> _shift(8 * len(self.bits))
        found: npt.NDArray[np.bool_] = (self.bits[places >> np.uint64(3)] >> (places & np.uint64(7))) & 1 == 1
        return found


def _shift(bits: int) -> np.uint64:
    """What leaves the first bits of a hash, of which there are `bits` values."""
    return np.uint64(64 - (bits.bit_length() - 1))


def _powers(base: int, count: int) -> Hashes:
    """1, base, base², ... modulo 2^64."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    found: Hashes = np.cumprod(powers)
    return found
