"""exact: whether a reply is one of the expected texts."""

from typing import Any

from models.chat.form import Message
from models.scorers.base import Scorer
from models.scorers.text import compared, texts_of


class Exact(Scorer):
    """Expects a text or a list of texts."""

    def read(self, value: Any) -> list[str]:
        return texts_of(value, "exact")

    def score(self, expected: list[str], reply: Message) -> float:
        text = compared(reply["content"], self.normalize)
        return float(any(compared(each, self.normalize) == text for each in expected))
