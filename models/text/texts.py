"""Many texts with their words hashed once, for all that looks at words: overlaps, word lists, figures.

texts = Texts.of(["one text", ["a user's turn", "the reply"]])
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.text.shingles import WordRuns

TURN_SEPARATOR = "\n"


@dataclass(frozen=True)
class Texts:
    """Texts, each of one or more turns."""

    turns: tuple[tuple[str, ...], ...]
    """of each text its turns; a text that is no conversation is one turn"""

    first_turns: npt.NDArray[np.int64]
    """(D + 1,) the number of each text's first turn, counted over all texts; the last is the number of turns"""

    by_turn: WordRuns
    """the words, with the start of each turn"""

    by_text: WordRuns
    """the same words, with the start of each text: those of a conversation's turns are one sequence"""

    @classmethod
    def of(cls, texts: Iterable[str | Sequence[str]]) -> "Texts":
        """`texts`: each a text, or the texts of a conversation's turns."""
        turns = tuple((text,) if isinstance(text, str) else tuple(text) for text in texts)
        first_turns = np.cumsum([0, *map(len, turns)])
        by_turn = WordRuns.of(turn for each in turns for turn in each)
        return cls(turns, first_turns, by_turn, WordRuns(by_turn.hashes, by_turn.starts[first_turns]))

    def __len__(self) -> int:
        return len(self.turns)
