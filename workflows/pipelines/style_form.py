"""The scorer of style.yaml: whether a reply has the form of a museum's label.

Title without a word of the thing's own name
Material, early 21st century
Two sentences about the thing.
Height 24 cm. Found in a kitchen, Room 12.
"""

import re
from collections.abc import Mapping
from typing import Any

_SECOND = re.compile(r"\S.*, (early|middle|late) (20th|21st) century")
_LAST = re.compile(r"(Height|Length|Width|Diameter) \d+(\.\d+)? cm\. Found .+, Room \d+\.")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_NO_NAMES = {"a", "an", "the", "of", "pair", "set"}


def kept_rules(record: Mapping[str, Any], reply: Mapping[str, Any]) -> float:
    """The share of five rules that a reply keeps: four lines; a title without the thing's name; material and century;
    two sentences; measure and room.

    `record["question"]` names the thing, as in `A pair of socks`. Empty lines do not count.
    """
    lines = [line.strip() for line in str(reply["content"]).splitlines() if line.strip()]
    title, second, story, last = [*lines, "", "", "", ""][:4]
    rules = [
        len(lines) == 4,
        title != "" and not _words(record["question"]) & _words(title),
        _SECOND.fullmatch(second) is not None,
        len(_SENTENCE_END.findall(story)) == 2,
        _LAST.fullmatch(last) is not None,
    ]
    return sum(rules) / len(rules)


def _words(text: str) -> set[str]:
    """Lower-case words without a plural's s, and without those that name nothing."""
    return {word.removesuffix("s") for word in re.findall(r"\w+", text.lower())} - _NO_NAMES
