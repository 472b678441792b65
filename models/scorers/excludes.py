"""excludes: whether a reply contains none of the given words or phrases."""

from typing import Any

from models.chat.form import Message
from models.scorers.base import Scorer
from models.scorers.text import texts_of
from models.text.texts import Texts
from models.text.word_list import WordList


class Excludes(Scorer):
    """Expects a text or a list of texts. They are found as `data.filters.word_list` finds them: whole words in any
    case, so that `hell` is not in `hello`, and inside longer words in Chinese and Japanese.
    """

    def read(self, value: Any) -> list[str]:
        return texts_of(value, "excludes")

    def score(self, expected: list[str], reply: Message) -> float:
        [found] = WordList.of(expected).find(Texts.of([reply["content"]]))
        return float(not found)
