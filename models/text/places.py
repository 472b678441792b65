"""Where each word of a text stands in it, as characters: for the few texts of which a place is shown.

places("Well, hello!")           # [(0, 4), (6, 11)], of the words "well" and "hello"
"""

import re
import unicodedata

from models.text.shingles import words

_ASCII_WORD = re.compile("[0-9A-Za-z]+")


def places(text: str) -> list[tuple[int, int]]:
    """The first character of each of `words(text)`, and the one after its last."""
    if text.isascii():
        return [match.span() for match in _ASCII_WORD.finditer(text)]
    normal, origin = _normalized(text)
    found = []
    end = 0
    for word in words(text):
        # Between two words nothing can be part of a word, so the next place where it stands is its own.
        start = normal.index(word, end)
        end = start + len(word)
        found.append((origin[start], _after(origin, end, len(text))))
    return found


def _normalized(text: str) -> tuple[str, list[int]]:
    """The text of which `words` takes the words, and for each character of it the place that it comes from."""
    pieces: list[str] = []
    origin: list[int] = []
    for start, end in _white_space_apart(text):
        clusters = _clusters(text, start, end)
        parts = [unicodedata.normalize("NFKC", text[first:last]).casefold() for first, last in clusters]
        whole = unicodedata.normalize("NFKC", text[start:end]).casefold()
        if "".join(parts) != whole:  # composed across clusters, which only odd scripts do
            parts, clusters = [whole], [(start, end)]
        pieces += parts
        for part, (first, _) in zip(parts, clusters, strict=True):
            origin += [first] * len(part)
    return "".join(pieces), origin


def _white_space_apart(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"[^ \n]+|[ \n]+", text)]


def _clusters(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Characters with the marks that follow them: normalization composes within these."""
    firsts = [place for place in range(start, end) if place == start or not _joins(text[place])]
    return list(zip(firsts, [*firsts[1:], end], strict=True))


def _joins(character: str) -> bool:
    return unicodedata.category(character)[0] == "M" or "\u1160" <= character <= "\u11ff"


def _after(origin: list[int], end: int, length: int) -> int:
    """The place in the text after the character of which the one before `end` is made."""
    last = origin[end - 1]
    return next((place for place in origin[end:] if place > last), length)
