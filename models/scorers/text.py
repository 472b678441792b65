"""Texts as scorers compare them."""

import re
import unicodedata
from typing import Any

# 45 in 145, in 3.45 and in 1,145 is another number; in 45.00 it is the same one. A comma before other than three
# digits separates two numbers, as the full-width one does in Chinese.
_BEFORE = re.compile(r"\d\.?$")
_THOUSANDS_BEFORE = re.compile(r"\d,$")
_AFTER = re.compile(r"\d|[.,]\d{3}(?!\d)|\.0*[1-9]")
_THREE_DIGITS = re.compile(r"\d{3}(?!\d)")


def normalized(text: str) -> str:
    """A text in NFKC (full-width digits become plain ones), without case, and with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def compared(text: str, normalize: bool) -> str:
    """`normalized`, or only without white space at both ends."""
    return normalized(text) if normalize else text.strip()


def stands_in(part: str, text: str) -> bool:
    """Whether `text` contains `part`, and not only as the beginning or end of another number."""
    at = text.find(part)
    while at >= 0:
        if not _is_cut(part, text, at):
            return True
        at = text.find(part, at + 1)
    return False


def _is_cut(part: str, text: str, at: int) -> bool:
    """Whether `part` begins or ends within a number of `text`, where it stands at `at`."""
    before, after = text[max(at - 2, 0) : at], text[at + len(part) :][:32]
    begins = part[0].isdigit() and (
        _BEFORE.search(before) or (_THREE_DIGITS.match(part) and _THOUSANDS_BEFORE.search(before))
    )
    return bool(begins or (part[-1].isdigit() and _AFTER.match(after)))


def texts_of(value: Any, key: str) -> list[str]:
    """A text or a list of texts as a list; raises ValueError."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(each, str) and each.strip() for each in found):
        raise ValueError(f"`{key}` must be a text or a list of texts, none of them empty")
    return found
