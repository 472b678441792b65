"""Which entries of a word list stand in texts: whole words in any case, and entries of several words.

words = WordList.of(["darn", "shut up", "笨蛋"])
words.find(Texts.of(conversations))              # of each text the entries in it, in their order in the list

An entry is looked for as its words in a row, by their hashes, so 10,000 entries take the time of ten. Chinese and
Japanese have a word for each character, so there an entry is found inside longer words as well. As a plain part of
the text are looked for entries in scripts in which a word is part of a longer one (Korean endings) or words have no
spaces between them (Thai, Lao, Khmer, Burmese), and those with other signs than letters and digits (`c++`, `f**k`).
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from models.text.run_index import RunHashes, RunIndex
from models.text.shingles import words
from models.text.texts import TURN_SEPARATOR, Texts

_WITHIN_WORDS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3130-\u318f\uac00-\ud7af]")
_BETWEEN_WORDS = re.compile(r"[\s'’‘\-‐‑]")


@dataclass(frozen=True)
class WordList:
    """Entries to look for."""

    entries: tuple[str, ...]
    runs: RunIndex
    """entries by the hashes of their words"""

    parts: tuple[tuple[int, str], ...]
    """the numbers of the other entries, and each one as it stands in a normalized text"""

    @classmethod
    def of(cls, entries: Iterable[str]) -> "WordList":
        """A list of these entries; empty ones and white space around them are left out."""
        kept = tuple(dict.fromkeys(entry.strip() for entry in entries if entry.strip()))
        is_part = np.array([_is_part(entry) for entry in kept], bool)
        texts = Texts.of(kept)
        hashes, counts = RunHashes(texts.by_text), np.diff(texts.by_text.starts)
        lengths = sorted({int(count) for count in counts[~is_part]})
        runs = {length: hashes.only(length, (counts == length) & ~is_part) for length in lengths}
        parts = tuple((int(number), _normalized(kept[number])) for number in np.flatnonzero(is_part))
        return cls(kept, RunIndex.of(runs), parts)

    def find(self, texts: Texts) -> list[list[str]]:
        """Of each text the entries that stand in it, each once."""
        found: list[set[int]] = [set() for _ in range(len(texts))]
        runs = self.runs.find(texts.by_text)
        pairs = np.stack([texts.by_text.texts_at(runs.starts), runs.owners], axis=1)
        for text, owner in np.unique(pairs, axis=0).tolist():
            found[text].add(owner)
        if self.parts:
            for numbers, turns in zip(found, texts.turns, strict=True):
                text = _normalized(TURN_SEPARATOR.join(turns))
                numbers.update(number for number, part in self.parts if part in text)
        return [[self.entries[number] for number in sorted(numbers)] for numbers in found]


def _is_part(entry: str) -> bool:
    normal = _normalized(entry)
    return bool(_WITHIN_WORDS.search(normal)) or _BETWEEN_WORDS.sub("", normal) != "".join(words(entry))


def _normalized(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
