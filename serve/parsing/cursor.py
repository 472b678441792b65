"""A position in the incomplete text of a call, and the expected text there."""

import re
from collections.abc import Mapping
from typing import Any

from serve.parsing.probes import common_start
from serve.parsing.values import NoCall, Unfinished

_NAME = re.compile(r"[\w.-]+")
_PARTS = re.compile(r"\s+|\S+")


class Cursor:
    """A position in a text that may be incomplete."""

    def __init__(self, text: str, at: int = 0, is_final: bool = False) -> None:
        self.text = text
        self.at = at
        self.is_final = is_final
        self.name: str | None = None
        self.given: str | None = None
        """the arguments so far, once the name is known"""
        self.settled = ""
        """the part of them that more text does not change"""

    def literal(self, wanted: str) -> None:
        """Consume `wanted`; any white space matches white space inside it, and its white space at the end is
        optional.
        """
        parts = _PARTS.findall(wanted)
        for number, part in enumerate(parts):
            if not part.isspace():
                self._exactly(part)
            elif number == len(parts) - 1:
                self.at += len(common_start([self.text[self.at :], part]))
            else:
                self.space()

    def space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def _exactly(self, part: str) -> None:
        found = self.text[self.at : self.at + len(part)]
        if found != part:
            raise Unfinished if part.startswith(found) else NoCall
        self.at += len(part)

    def function(self, known: Mapping[str, Any]) -> str:
        found = _NAME.match(self.text, self.at)
        if not found:
            raise NoCall if self.at < len(self.text) else Unfinished
        if found.end() == len(self.text):
            raise Unfinished if any(name.startswith(found[0]) for name in known) else NoCall
        if found[0] not in known:
            raise NoCall
        self.at = found.end()
        self.name = found[0]
        return found[0]
