"""A private detail: where it is in its text, and its value in one spelling."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Detail:
    """A private detail in a text."""

    kind: str
    """email, phone, iban, card, ip, person, or the name of a user's pattern"""

    start: int
    end: int
    """text[start:end] is the detail"""

    value: str
    """The same for all spellings of one detail: a phone number as E.164, an IBAN without spaces, a name in small
    letters."""
