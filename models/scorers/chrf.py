"""chrf: the runs of characters that a reply shares with a reference translation.

chrF2 (Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation") by sacrebleu, of each reply alone.
"""

from functools import cache
from typing import Any

from models.chat.form import Message
from models.scorers.base import Scorer
from models.scorers.text import texts_of


class Chrf(Scorer):
    """Expects a reference text or several; the best of them counts."""

    def read(self, value: Any) -> list[str]:
        return texts_of(value, "reference")

    def score(self, expected: list[str], reply: Message) -> float:
        return float(_chrf().sentence_score(reply["content"], expected).score) / 100


@cache
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()
