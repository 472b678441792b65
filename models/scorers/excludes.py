"""excludes: whether a reply contains none of the given texts."""

from typing import Any

from models.chat.form import Message
from models.scorers.base import Scorer
from models.scorers.text import compared, stands_in, texts_of


class Excludes(Scorer):
    """Expects a text or a list of texts. A part of a longer word counts as contained."""

    def read(self, value: Any) -> list[str]:
        return texts_of(value, "excludes")

    def score(self, expected: list[str], reply: Message) -> float:
        text = compared(reply["content"], self.normalize)
        return float(not any(stands_in(compared(each, self.normalize), text) for each in expected))
