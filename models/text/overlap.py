"""Contamination: where texts share long runs of words with reference texts, such as the questions of an evaluation.

index = OverlapIndex.of(Texts.of(["What is the name of your loyalty scheme?"]), ["questions.jsonl:30"])
for overlap in index.find(Texts.of(conversations)):
    index.names[overlap.reference], overlap.words, excerpt(conversations[overlap.text], overlap)

A text and a reference overlap where they share 13 words in a row (Brown et al. 2020, arXiv:2005.14165, appendix C);
case, punctuation and white space make no difference. A reference of fewer words must stand in the text as a whole,
and one below the minimum must be a whole turn, because a few common words occur anywhere. The turns of a
conversation are one sequence of words, so what is split over two turns is found. What is reworded is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.text.places import places
from models.text.run_index import Found, Numbers, RunHashes, RunIndex
from models.text.shingles import is_first
from models.text.texts import TURN_SEPARATOR, Texts

SIZE = 13
# Of the questions of 7 words of one corpus, fewer than 0.5% stand in an unrelated one, of 5 words 2.5%, of 3
# words 14% (benchmarks/contamination.py).
MIN_WORDS = 7
_EXCERPT_CHARACTERS = 40


@dataclass(frozen=True)
class Overlap:
    """What a text shares with a reference in one place."""

    text: int
    """the number of the text, in the order given to `find`"""

    reference: int
    """the number of the reference"""

    words: int
    """how many words they share; between them others may stand"""

    share: float
    """these as a share of the reference's words"""

    start: int
    """the first character, in the turns joined by TURN_SEPARATOR"""

    end: int
    """the character after the last"""


@dataclass(frozen=True)
class OverlapIndex:
    """Reference texts, by the hashes of their runs of words: 14 bytes a word, and each one's name."""

    names: tuple[str, ...]
    """what each is called, such as its file and line"""

    words: npt.NDArray[np.uint32]
    """how many words each has"""

    runs: RunIndex
    """which must stand anywhere in a text"""

    turns: RunIndex
    """which must be a whole turn of a text"""

    @classmethod
    def of(
        cls, references: Texts, names: Sequence[str], size: int = SIZE, min_words: int = MIN_WORDS
    ) -> "OverlapIndex":
        """An index of references. Of a conversation leave out the system message: others start with it as well."""
        counts = np.diff(references.by_text.starts)
        hashes = RunHashes(references.by_text)
        runs = {size: hashes.only(size, counts >= size)}
        runs |= {count: hashes.only(count, counts == count) for count in range(min_words, size)}
        turns = {count: hashes.only(count, counts == count) for count in range(1, min_words)}
        return cls(tuple(names), counts.astype(np.uint32), RunIndex.of(runs), RunIndex.of(turns))

    def find(self, texts: Texts) -> list[Overlap]:
        """The overlaps of these texts with all references, text by text."""
        found = _joined(self.runs.find(texts.by_text), self.turns.find(texts.by_turn, only_whole=True))
        text = texts.by_text.texts_at(found.starts)
        order = np.lexsort((found.starts, found.owners, text))
        text, starts, owners = text[order], found.starts[order], found.owners[order]
        ends = starts + found.lengths[order]
        # Runs of one reference, in one text, with less than a run between them, are one overlap.
        far = starts[1:] >= ends[:-1] + max(self.runs.lengths, default=0)
        is_new = is_first(text, owners)
        is_new[1:] |= far
        firsts = np.flatnonzero(is_new)
        if not len(firsts):
            return []
        own = ends - starts
        own[:-1] = np.where(is_new[1:], own[:-1], np.minimum(own[:-1], np.diff(starts)))
        shared = np.add.reduceat(own, firsts)
        lasts = np.append(firsts[1:], len(starts)) - 1
        shares = np.minimum(1.0, shared / self.words[owners[firsts]])
        spans = _characters(texts, text[firsts], starts[firsts], ends[lasts] - 1)
        columns = (text[firsts], owners[firsts], shared, shares)
        rows = zip(*(column.tolist() for column in columns), spans, strict=True)
        return [Overlap(*row, *span) for *row, span in rows]


def excerpt(turns: str | Sequence[str], overlap: Overlap, around: int = _EXCERPT_CHARACTERS) -> tuple[str, str, str]:
    """The text before an overlap (its last `around` characters), the overlap, and the text after it."""
    text = turns if isinstance(turns, str) else TURN_SEPARATOR.join(turns)
    start, end = overlap.start, overlap.end
    return text[max(0, start - around) : start], text[start:end], text[end : end + around]


def _joined(one: Found, other: Found) -> Found:
    columns = ((one.starts, other.starts), (one.lengths, other.lengths), (one.owners, other.owners))
    return Found(*(np.concatenate(column) for column in columns))


def _characters(texts: Texts, text: Numbers, first: Numbers, last: Numbers) -> list[tuple[int, int]]:
    """The first character of the word `first` and the one after the word `last`, in each text."""
    known: dict[int, list[tuple[int, int]]] = {}  # by turn

    def place(number: int, word: int) -> tuple[int, int]:
        turn = int(np.searchsorted(texts.by_turn.starts, word, side="right")) - 1
        inside = turn - int(texts.first_turns[number])
        turns = texts.turns[number]
        if turn not in known:
            known[turn] = places(turns[inside])
        before = sum(len(each) + len(TURN_SEPARATOR) for each in turns[:inside])
        start, end = known[turn][word - int(texts.by_turn.starts[turn])]
        return before + start, before + end

    found = zip(text.tolist(), first.tolist(), last.tolist(), strict=True)
    return [(place(number, one)[0], place(number, other)[1]) for number, one, other in found]
