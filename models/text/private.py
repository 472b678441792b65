"""Private details in a text, without a model: e-mail, phone, IBAN, payment card, IP address, person, own patterns.

finder = PrivateDetails(patterns={"ticket": r"TCK-\\d{6}"}, regions=("US", "DE"))
finder.find("Mail ann@example.org")          # [Detail(kind="email", start=5, end=20, value="ann@example.org")]
found = finder.find_in_conversation(texts)   # a list for each text; a name given once is found wherever it recurs
replaced(texts, found)                       # ["Mail [EMAIL_1]", ...]

What has a checksum, a form, or a word that says so ("call me at", "my name is") is found. What has none is left: an
address spelled "jane at example dot com", a bare number of 10 digits without a word about phones, a name that nobody
introduces. benchmarks/private_details.py has the figures.
"""

import bisect
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import regex

from models.errors import RayconteurError, nearest
from models.text.private_detail import Detail
from models.text.private_names import mentions, persons
from models.text.private_numbers import REGIONS, SEVEN_DIGITS, Phones, addresses, cards, ibans

__all__ = ["KINDS", "Detail", "PatternTooSlow", "PrivateDetails", "Replacements", "replaced"]

KINDS = ("email", "iban", "card", "ip", "phone", "person")
"""Where two of the same length overlap, the first of these wins; a user's pattern wins over all."""

_LATIN = "A-Za-z0-9\u00c0-\u024f"
_EMAIL = re.compile(
    rf"(?<![{_LATIN}._%+/@-])[{_LATIN}_](?:[{_LATIN}._%+'-]{{0,62}}[{_LATIN}_+-])?"
    rf"@(?:[{_LATIN}](?:[{_LATIN}-]{{0,61}}[{_LATIN}])?\.){{1,8}}(?:xn--[a-z0-9]{{2,50}}|[a-z]{{2,24}}|[A-Z]{{2,24}})"
    rf"(?![{_LATIN}@])"
)
_FILE_ENDINGS = frozenset(
    {"png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "ts", "json", "html", "pdf", "zip", "py"}
)
_USER_KIND = re.compile(r"[a-z][a-z0-9_]{0,31}")


class PatternTooSlow(RayconteurError):
    """One of the user's patterns takes longer on a text than it may."""


class PrivateDetails:
    """Finds private details of some kinds; make it once, it compiles the patterns."""

    def __init__(
        self,
        patterns: Mapping[str, str] | None = None,
        kinds: Iterable[str] = KINDS,
        regions: Sequence[str] = REGIONS,
        pattern_seconds: float = 1.0,
    ) -> None:
        """`patterns`: kind -> regular expression, found besides `kinds`. `regions`: whose phone numbers are found
        without a country code (ISO 3166, such as US). `pattern_seconds`: a pattern may take so long on one text."""
        self.kinds = _known("data.private.kinds", kinds, KINDS)
        self._phones = Phones(_known("data.private.regions", regions, Phones.all_regions()))
        self._patterns = {name: _compiled(name, pattern) for name, pattern in (patterns or {}).items()}
        self._pattern_seconds = pattern_seconds
        self._rank = {kind: rank for rank, kind in enumerate([*self._patterns, *KINDS])}

    def find(self, text: str, before: str = "") -> list[Detail]:
        """The details of a text in order, none overlapping: the longest wins, then the most specific kind.

        `before` is the message before this one: what it asks for says what a bare number is.
        """
        found = list(self._candidates(text, before))
        if len(found) < 2:
            return found
        return _without_overlaps(
            sorted(found, key=lambda each: (each.start - each.end, self._rank[each.kind], each.start))
        )

    def find_in_conversation(self, texts: Sequence[str]) -> list[list[Detail]]:
        """The details of each message; persons whom one message names are found in all of them."""
        found = [self.find(text, before) for text, before in zip(texts, ["", *texts], strict=False)]
        names = {each.value for details in found for each in details if each.kind == "person"}
        if not names:
            return found
        return [
            _without_overlaps([*details, *mentions(text, names)]) for text, details in zip(texts, found, strict=True)
        ]

    def _candidates(self, text: str, before: str) -> Iterator[Detail]:
        kinds = self.kinds
        for name, pattern in self._patterns.items():
            yield from self._own(name, pattern, text)
        if "email" in kinds and "@" in text:
            yield from _emails(text)
        if "ip" in kinds and (text.count(".") > 2 or text.count(":") > 1):
            yield from addresses(text)
        if SEVEN_DIGITS.search(text):
            if "iban" in kinds:
                yield from ibans(text)
            if "card" in kinds:
                yield from cards(text, before)
            if "phone" in kinds:
                yield from self._phones.find(text, before)
        if "person" in kinds:
            yield from persons(text)

    def _own(self, name: str, pattern: "regex.Pattern[str]", text: str) -> Iterator[Detail]:
        try:
            for match in pattern.finditer(text, timeout=self._pattern_seconds):
                if match.group():
                    yield Detail(name, match.start(), match.end(), match.group())
        except TimeoutError:
            raise PatternTooSlow(
                f"data.private.patterns.{name}: {pattern.pattern!r} takes more than {self._pattern_seconds:g} s on a "
                f"text of {len(text):,} characters. A repetition inside a repetition, as in (a+)+, can take "
                "exponential time: write it with one of them."
            ) from None


class Replacements:
    """The placeholders of one conversation: the same value has the same one in all its messages."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[str, int]] = {}

    def apply(self, text: str, details: Iterable[Detail]) -> str:
        """The text with `[EMAIL_1]`, `[PERSON_2]`, ... in place of its details, which are as `find` returns them."""
        parts, end = [], 0
        for detail in details:
            parts += [text[end : detail.start], self.placeholder(detail)]
            end = detail.end
        return "".join([*parts, text[end:]])

    def placeholder(self, detail: Detail) -> str:
        """What stands for this detail: its kind, and a number for its value."""
        known = self._numbers.setdefault(detail.kind, {})
        number = known.get(detail.value)
        if number is None and detail.kind == "person":
            number = next((known[name] for name in known if _same_person(name, detail.value)), None)
        if number is None:
            number = max(known.values(), default=0) + 1
        known.setdefault(detail.value, number)
        return f"[{detail.kind.upper()}_{number}]"


def replaced(texts: Iterable[str], details: Iterable[Iterable[Detail]]) -> list[str]:
    """The texts of one conversation with placeholders for their details, as `find_in_conversation` returns them."""
    replacements = Replacements()
    return [replacements.apply(text, of_text) for text, of_text in zip(texts, details, strict=True)]


def _same_person(one: str, other: str) -> bool:
    """Whether a name is part of the other: "smith" or "john" of "john smith"."""
    parts, others = set(one.split()), set(other.split())
    return parts <= others or others <= parts


def _emails(text: str) -> Iterator[Detail]:
    for match in _EMAIL.finditer(text):
        start, end = match.span()
        local, _, domain = match.group().partition("@")
        first, _, last = domain.partition(".")[0], *domain.rpartition(".")[1:]
        is_file = last in _FILE_ENDINGS or first.isdecimal()
        is_login = "://" in text[max(0, start - 80) : start].rpartition(" ")[2] and text[start - 1] == ":"
        is_clone = local == "git" and text[end : end + 1] == ":"
        if not (is_file or is_login or is_clone or ".." in local):
            yield Detail("email", start, end, match.group().lower())


def _without_overlaps(details: Sequence[Detail]) -> list[Detail]:
    """Those that overlap none before them, in order of the text."""
    kept: list[Detail] = []
    for each in details:
        place = bisect.bisect_left(kept, each.start, key=_start)
        is_after = not place or kept[place - 1].end <= each.start
        if is_after and (place == len(kept) or each.end <= kept[place].start):
            kept.insert(place, each)
    return kept


_start = operator.attrgetter("start")


def _known(field: str, names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    allowed = tuple(known)
    chosen = tuple(names)
    for name in chosen:
        if name not in allowed:
            guess = nearest(name, allowed)
            hint = f"did you mean {guess!r}?" if guess else f"use some of {', '.join(sorted(allowed)[:12])}, ..."
            raise RayconteurError(f"{field}: {name!r} is unknown; {hint}")
    return chosen


def _compiled(name: str, pattern: str) -> "regex.Pattern[str]":
    """A user's pattern; RayconteurError if it cannot be used."""
    field = f"data.private.patterns.{name}"
    if not _USER_KIND.fullmatch(name) or name in KINDS:
        raise RayconteurError(
            f"{field}: the name of a pattern is of small letters, digits and _, begins with a letter, has at most 32 "
            f"characters, and is none of {', '.join(KINDS)}"
        )
    try:
        compiled: regex.Pattern[str] = regex.compile(pattern)
    except regex.error as error:
        raise RayconteurError(f"{field}: {pattern!r} is no regular expression: {_reason(error)}") from None
    if any(not match.group() for probe in ("", "a", "0 a") for match in compiled.finditer(probe, timeout=1)):
        raise RayconteurError(
            f"{field}: {pattern!r} matches the empty string, so it would match everywhere; let it match at least "
            "one character, for instance with + in place of *"
        )
    return compiled


def _reason(error: Any) -> str:
    where = f" at position {error.pos}" if error.pos is not None else ""
    return f"{error.msg}{where}; escape special characters with a backslash"
