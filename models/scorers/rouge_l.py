"""rouge_l: how much of a reference text a reply has, in its order.

ROUGE-L (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries") as an F-measure, without stemming, by
Google's rouge-score. Its own tokenizer drops all but a-z and 0-9, and with it all of Chinese; ours has words in every
script (models/text/shingles.py) and the same words in English.
"""

from functools import cache
from typing import Any

from models.chat.form import Message
from models.scorers.base import Scorer
from models.scorers.text import texts_of
from models.text.shingles import words


class RougeL(Scorer):
    """Expects a reference text or several; the best of them counts."""

    def read(self, value: Any) -> list[str]:
        return texts_of(value, "reference")

    def score(self, expected: list[str], reply: Message) -> float:
        return float(_rouge().score_multi(expected, reply["content"])["rougeL"].fmeasure)


class _Words:
    def tokenize(self, text: str) -> list[str]:
        """The words of a text; in Chinese and Japanese, its characters."""
        return words(text)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # a second: it imports nltk

    return RougeScorer(["rougeL"], tokenizer=_Words())
