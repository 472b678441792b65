"""regex: whether a regular expression matches somewhere in a reply."""

from typing import Any

import regex

from models.chat.form import Message
from models.scorers.base import Scorer

# A pattern that backtracks for longer is a mistake, such as (a+)+b.
_MAX_SECONDS = 10.0


class Regex(Scorer):
    """Expects a pattern in the syntax of Python's module `regex`; ^ and $ are the ends of the reply."""

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError('`regex` must be a regular expression, as in "^(yes|no)$"')
        try:
            regex.compile(value)
        except regex.error as error:
            raise ValueError(f"`regex` {value!r} is not a regular expression: {error}") from None
        return value

    def score(self, expected: str, reply: Message) -> float:
        """White space at the ends of the reply does not count. Raises TimeoutError after ten seconds."""
        found = regex.search(expected, reply["content"].strip(), timeout=_MAX_SECONDS)
        return float(found is not None)
