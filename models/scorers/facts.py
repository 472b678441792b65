"""facts: the share of facts that a reply contains, each in any one of its spellings."""

from collections.abc import Sequence
from typing import Any

from models.chat.form import Message
from models.scorers.base import Scorer
from models.scorers.text import compared, stands_in


class Facts(Scorer):
    """Expects a list of facts, each a list of spellings."""

    def read(self, value: Any) -> list[list[str]]:
        if not isinstance(value, list) or not value or not all(map(_is_fact, value)):
            raise ValueError('`facts` must be a list of facts, each a list of spellings, as in [["45 days"]]')
        return value

    def score(self, expected: list[list[str]], reply: Message) -> float:
        return count_facts(reply["content"], expected, self.normalize) / len(expected)


def count_facts(reply: str, facts: Sequence[Sequence[str]], normalize: bool = True) -> int:
    """How many of the facts are in the reply; 145 days are not 45 days."""
    text = compared(reply, normalize)
    return sum(any(stands_in(compared(spelling, normalize), text) for spelling in spellings) for spellings in facts)


def _is_fact(fact: object) -> bool:
    return isinstance(fact, list) and fact != [] and all(isinstance(word, str) and word.strip() for word in fact)
