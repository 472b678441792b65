"""The passages that a question is about, by the words that they share (BM25).

knowledge = Knowledge(read_documents("rules/", 120), most=4, min_share=0.1)
passages = knowledge.find(["I bought a drill.", "Can I return it?"])
"""

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.chat.knowledge import Passage
from models.files import local_copy
from models.text.shingles import words

PASSAGES_FILE = "passages.json"
# Lucene's defaults; with its variant, no word adds more than its weight to a score (Kamphuis et al. 2020,
# doi:10.1007/978-3-030-45442-5_4).
_K1, _B = 1.2, 0.75
# "And how much is it?" needs the question before.
_QUESTIONS = 2


class Knowledge:
    """An index of passages (Robertson and Zaragoza 2009, doi:10.1561/1500000019)."""

    def __init__(self, passages: Sequence[Passage], most: int, min_share: float) -> None:
        """`most` passages at a time, with at least the share `min_share` of the best one's score."""
        import bm25s  # imports take a second; an endpoint without documents needs none of it

        self._passages, self._most, self._min_share = list(passages), most, min_share
        self._index: Any = bm25s.BM25(method="lucene", k1=_K1, b=_B)
        documents = [terms(f"{passage.name} {passage.text}") for passage in self._passages]
        self._index.index(documents, show_progress=False)

    def find(self, questions: Sequence[str]) -> list[Passage]:
        """The passages about the last of a chat's questions, the best first; the one before it counts half.

        None if no word of them is in a passage.
        """
        if not questions:
            return []
        *earlier, last = (list(dict.fromkeys(terms(text))) for text in questions[-_QUESTIONS:])
        asked = [*last, *last, *itertools.chain.from_iterable(earlier)]
        known = [term for term in asked if term in self._index.vocab_dict]
        if not known:
            return []
        scores = self._index.get_scores(known)
        best = np.argsort(-scores, kind="stable")[: self._most]
        floor = max(self._min_share * scores[best[0]], np.finfo(scores.dtype).tiny)
        return [self._passages[number] for number in best if scores[number] >= floor]


@dataclass(frozen=True)
class ServedKnowledge:
    """Where the passages of an endpoint are, and how many of them a prompt has."""

    folder: str
    """folder or URI with a PASSAGES_FILE"""
    max_passages: int
    min_share: float

    def load(self) -> Knowledge:
        """The index, in memory."""
        return Knowledge(read_passages(local_copy(self.folder)), self.max_passages, self.min_share)


def terms(text: str) -> list[str]:
    """The stems of the words of a text; where a script writes no spaces, pairs of neighbouring characters instead.

    The stemmer is for English. Questions and passages have the same one, so in other languages it costs little.
    """
    found: list[str] = []
    stem = _stemmer()
    for is_unspaced, run in itertools.groupby(words(text), key=_is_unspaced):
        letters = list(run)
        found += map("".join, itertools.pairwise(letters)) if is_unspaced and len(letters) > 1 else map(stem, letters)
    return found


@functools.cache
def _stemmer() -> Callable[[str], str]:
    from nltk.stem.snowball import EnglishStemmer

    return functools.lru_cache(maxsize=1 << 17)(EnglishStemmer().stem)


def _is_unspaced(word: str) -> bool:
    return word[0] >= "\u0e00" and len(word) == 1


def write_passages(passages: Sequence[Passage]) -> bytes:
    """The content of a file for `read_passages`."""
    return json.dumps([[each.name, each.text] for each in passages], ensure_ascii=False).encode()


def read_passages(folder: Path) -> list[Passage]:
    """The passages in a folder's PASSAGES_FILE."""
    return [Passage(name, text) for name, text in json.loads((folder / PASSAGES_FILE).read_text(encoding="utf-8"))]
