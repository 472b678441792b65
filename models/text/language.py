"""The language of each of many texts, by py3langid, whose model is in its package.

languages_of(["Guten Morgen, wie geht es Ihnen?", "ok"])        # [("de", 0.99), ("und", 0.0)]

Languages are BCP 47 tags; "und" (undetermined) are texts with too few letters, code, and those of which the model is
not sure. Of a long text some pieces are judged, so that the time for each is bounded.

Measured on the chatterbot corpus in 27 languages: 96% of the 7,603 conversations are judged, and 98.6% of these
rightly. By the letters of a single turn:

    letters     6-9    10-19    20-39    40-79    80 and more
    judged      66%    75%      94%      98%      96%
    rightly     92%    96%      98%      99%      99%
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

UNDETERMINED = "und"
MIN_LETTERS = 6
# Measured as above: with less the languages of short texts are wrong, with more long ones are undetermined.
MIN_PROBABILITY = 0.5
_NO_LANGUAGE = "zxx"
_PIECES = 4
_PIECE_CHARACTERS = 100


def languages_of(texts: Iterable[str]) -> list[tuple[str, float]]:
    """The language of each text and its probability."""
    return [_language_of(text) for text in texts]


@cache
def known_languages() -> frozenset[str]:
    """The tags that `languages_of` returns."""
    return frozenset(_identifier().labels) - {_NO_LANGUAGE} | {UNDETERMINED}


def _language_of(text: str) -> tuple[str, float]:
    judged = _pieces_of(text)
    if sum(map(str.isalpha, judged)) < MIN_LETTERS:
        return UNDETERMINED, 0.0
    language, probability = _identifier().classify(judged)
    if language == _NO_LANGUAGE or probability < MIN_PROBABILITY:
        return UNDETERMINED, float(probability)
    return str(language), float(probability)


def _pieces_of(text: str) -> str:
    """The text, or pieces of it from its beginning to its end, with the same distance between them."""
    if len(text) <= _PIECES * _PIECE_CHARACTERS:
        return text
    last = len(text) - _PIECE_CHARACTERS
    starts = [number * last // (_PIECES - 1) for number in range(_PIECES)]
    return "\n".join(text[start : start + _PIECE_CHARACTERS] for start in starts)


@cache
def _identifier() -> Any:
    """One a process; the model takes 0.7 s to load."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
