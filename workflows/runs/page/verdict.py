"""The verdict of a scorecard in parts that a reader takes in one by one."""

import re
from dataclasses import dataclass

# Between the parts of a verdict; the brackets around a part's figures may hold one too.
_BETWEEN = re.compile(r"; (?![^(]*\))")
_FIGURES = re.compile(r"(?P<title>.+?): (?P<rest>\S+(?: %)? instead of .+)")


@dataclass(frozen=True)
class Verdict:
    """Such as `better than the base model`, and the figures behind it."""

    passed: bool
    sentence: str
    figures: list[tuple[str, str]]
    """a measure and its values; without a measure, words"""


def verdict_of(passed: bool, words: str) -> Verdict:
    """The parts of a scorecard's verdict."""
    first, *rest = _BETWEEN.split(words)
    reason = first.removeprefix("passed: ").removeprefix("failed: ")
    head, _, figures = reason.partition(": ")
    if " instead of " not in figures:
        head, figures = reason, ""
    parts = [figures, *rest] if figures else rest
    return Verdict(passed, head, [_titled(part) for part in parts])


def _titled(part: str) -> tuple[str, str]:
    found = _FIGURES.fullmatch(part)
    return (found["title"], found["rest"]) if found else ("", part)
