"""A model's format of tool calls, found from its chat template.

style = learned_style(probes, thinking)      # None: no tools, or a format that cannot be parsed
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serve.parsing.marks import is_mark
from serve.parsing.probes import (
    ARGUMENTS,
    FIRST,
    NUMBER,
    OTHER_TOOL,
    SECOND,
    SHORT_IDS,
    TOOL,
    TOOLS,
    VALUE,
    Probes,
    calling,
    common_start,
)
from serve.parsing.thinking import Thinking
from serve.parsing.values import Syntax, syntax_of

ID = "\ufdd3"
"""replaces a call's id in a template's text; a Unicode noncharacter"""
NAME = "\ufdd4"
"""replaces the function's name where it is repeated"""


@dataclass(frozen=True)
class JsonUnit:
    """A call is one JSON object; `names` and `arguments` are the paths to the function's name and its arguments.
    `others` are further keys with their value, or ID.
    """

    names: tuple[str, ...]
    arguments: tuple[str, ...]
    others: tuple[tuple[str, Any], ...] = ()
    keys: tuple[str, ...] = ()
    """the keys in their order"""


@dataclass(frozen=True)
class NamedUnit:
    """A call is the function's name, `middle`, and the arguments as one JSON object."""

    middle: str


@dataclass(frozen=True)
class FieldsUnit:
    """A call is the function's name and its arguments one by one: `first`, the argument's name, `middle`, its value,
    `closing`; further ones start with `next`. Without arguments, `empty` follows the name.
    """

    first: str
    middle: str
    closing: str
    next: str
    empty: str | None
    syntax: Syntax


@dataclass(frozen=True)
class CallStyle:
    """`opening`, a call, for each further call `between` and the call, then `closing`. Texts are
    marked (marks.py).
    """

    opening: str
    unit: JsonUnit | NamedUnit | FieldsUnit
    between: str | None
    """None: the template supports only one call per turn"""
    closing: str

    other_marks: tuple[str, ...] = ()
    """control tokens that a model may write before a call, such as Llama 3.1's <|python_tag|>"""

    follows_words: bool = False
    """whether a call without a mark may follow text"""

    @property
    def marks(self) -> tuple[str, ...]:
        """The texts that start a call anywhere in a reply."""
        own = self._mark() or (self._first() if self.follows_words else "")
        return (*([own] if own else []), *self.other_marks)

    @property
    def is_bare(self) -> bool:
        """Whether calls have no mark, and are only recognized at the start of a reply."""
        return not self._mark()

    def _first(self) -> str:
        return self.opening.strip()[:1] or "{"

    def _mark(self) -> str:
        start = self.opening.lstrip()
        if start and is_mark(start[0]):
            return start[0]
        word = start.split()[0] if start.split() else ""
        return word if any(letter.isalpha() for letter in word) else ""


def learned_style(probes: Probes, thinking: Thinking | None) -> CallStyle | None:
    """The style, if its parts can be found; `serve.parsing.form` tests whether it parses calls."""
    prompt = probes.prompt(TOOLS)
    if prompt is None or TOOL not in prompt:
        return None
    turns = [calling(ARGUMENTS), calling(ARGUMENTS, ARGUMENTS), calling({})]
    one, two, none = (_calls_alone(probes.reply(turn, TOOLS), thinking) for turn in turns)
    if one is None or TOOL not in one:
        return None
    if two is not None and (two.count(OTHER_TOOL) == 0 or two.count(TOOL) != one.count(TOOL)):
        two = None
    return _in_json(one, two) or _named(one, two) or _in_fields(one, two, none)


def _calls_alone(written: str | None, thinking: Thinking | None) -> str | None:
    """The text without thinking before it, and with ID in place of a call's id."""
    if written is None:
        return None
    if thinking is not None and thinking.closing in written.partition(TOOL)[0]:
        written = written.partition(thinking.closing)[2].lstrip()
    for number in SHORT_IDS:
        written = written.replace(number, ID)
    return written


# --- one object ----------------------------------------------------------------------------------------------------


def _in_json(one: str, two: str | None) -> CallStyle | None:
    for found, start, end in _objects(one):
        names, arguments = _path_to(found, TOOL), _path_to(found, ARGUMENTS)
        if names is None or arguments is None or names[:-1] != arguments[:-1]:
            continue
        inner = found
        for key in names[:-1]:
            inner = inner[key]
        others = tuple((key, value) for key, value in inner.items() if key not in (names[-1], arguments[-1]))
        unit = JsonUnit(names, arguments, others, tuple(inner))
        between = None
        if two is not None:
            spans = [(first, last) for value, first, last in _objects(two) if _path_to(value, ARGUMENTS) == arguments]
            between = two[spans[0][1] : spans[1][0]] if len(spans) == 2 else None
        return CallStyle(one[:start], unit, between, one[end:])
    return None


def _objects(text: str) -> Iterator[tuple[dict[str, Any], int, int]]:
    """The outermost JSON objects in a text, with start and end."""
    place = text.find("{")
    while place >= 0:
        try:
            found, end = json.JSONDecoder().raw_decode(text, place)
            yield found, place, end
        except ValueError:
            end = place + 1
        place = text.find("{", end)


def _path_to(found: Any, wanted: Any) -> tuple[str, ...] | None:
    if not isinstance(found, dict):
        return None
    for key, value in found.items():
        if value == wanted:
            return (key,)
    for key, value in found.items():
        if (path := _path_to(value, wanted)) is not None:
            return (key, *path)
    return None


# --- a name, and an object -----------------------------------------------------------------------------------------


def _named(one: str, two: str | None) -> CallStyle | None:
    for found, start, end in _objects(one):
        if found != ARGUMENTS:
            continue
        opening, _, middle = one[:start].partition(TOOL)
        between = None
        if two is not None:
            spans = [(first, last) for value, first, last in _objects(two) if value == ARGUMENTS]
            if len(spans) == 2:
                between = two[spans[0][1] : spans[1][0]].partition(OTHER_TOOL)[0]
        return CallStyle(opening, NamedUnit(middle.replace(TOOL, NAME)), between, one[end:])
    return None


# --- a name, and one argument after the other ----------------------------------------------------------------------


def _in_fields(one: str, two: str | None, none: str | None) -> CallStyle | None:
    if not one.find(TOOL) < one.find(FIRST) < one.find(VALUE) < one.find(SECOND) < one.find(str(NUMBER)):
        return _in_other_order(one, two, none)
    return _fields_style(one, two, none, (FIRST, VALUE, SECOND, str(NUMBER)))


def _in_other_order(one: str, two: str | None, none: str | None) -> CallStyle | None:
    """The style of templates that sort arguments by name."""
    if not one.find(TOOL) < one.find(SECOND) < one.find(str(NUMBER)) < one.find(FIRST) < one.find(VALUE):
        return None
    return _fields_style(one, two, none, (SECOND, str(NUMBER), FIRST, VALUE))


def _fields_style(one: str, two: str | None, none: str | None, parts: tuple[str, str, str, str]) -> CallStyle | None:
    opening, _, rest = one.partition(TOOL)
    pieces = []
    for part in parts:
        piece, _, rest = rest.partition(part)
        pieces.append(piece)
    first, middle, after, second_middle = pieces
    tail = rest
    if parts[0] == FIRST:
        plain_middle, quote, after_text = second_middle, middle[len(common_start([middle, second_middle])) :], after
    else:
        plain_middle, quote, after_text = middle, second_middle[len(common_start([middle, second_middle])) :], tail
    if not plain_middle:
        return None
    syntax = syntax_of(quote, after_text[: len(quote)])
    if syntax is None:
        return None
    if parts[0] == FIRST:
        after = after[len(quote) :]
    else:
        tail = tail[len(quote) :]
    between = None
    if two is not None:
        inner = two[: two.rfind(OTHER_TOOL)].rpartition(parts[-1])[2]
        between = inner if parts[0] == FIRST else inner[len(quote) :]
    closing = _closing([after, tail, *([between] if between is not None else [])]) if syntax.kind == "raw" else ""
    if syntax.kind == "raw" and not closing.strip():
        return None
    after, tail = after[len(closing) :], tail[len(closing) :]
    between = between[len(closing) :] if between is not None else None
    empty = none.partition(TOOL)[2] if none is not None and TOOL in none else None
    if empty is not None:
        empty = empty.removesuffix(tail) if empty.endswith(tail) else None
    unit = FieldsUnit(first.replace(TOOL, NAME), plain_middle, closing, after, empty, syntax)
    return CallStyle(opening, unit, between, tail)


def _closing(followers: list[str]) -> str:
    """The closing of a value: the common start of all texts after one, up to the end of a tag or a control token."""
    shared = common_start(followers)
    ends = [place + 1 for place, letter in enumerate(shared) if letter == ">" or is_mark(letter)]
    return shared[: ends[-1]] if ends else ""
