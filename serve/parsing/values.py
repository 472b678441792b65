"""The syntax in which a template writes the arguments of a call one by one, and its parser.

syntax = syntax_of('"', '"')      # from the text around a string
value, end = syntax.read(text, start, closing, schema)
"""

import ast
import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from serve.parsing.decoder import overlap


class Unfinished(Exception):
    """More text may complete the call; `partial` is the value so far, a part of a string or of JSON."""

    def __init__(self, partial: str = "", is_text: bool = False) -> None:
        super().__init__(partial)
        self.partial = partial
        self.is_text = is_text


class NoCall(Exception):
    """This is not a call, whatever text follows."""


@dataclass(frozen=True)
class Syntax:
    """`raw`: strings without quotes, all else in JSON, up to the closing of a value; `json`, `python`: literals;
    `quoted`: strings between `quote`, all else in JSON with unquoted keys."""

    kind: Literal["raw", "json", "python", "quoted"]
    quote: str = ""

    def read(self, text: str, start: int, closing: str, schema: Any) -> tuple[Any, int]:
        """The value at `start`, and its end, before `closing`. Raises Unfinished, NoCall."""
        if self.kind == "raw":
            end = text.find(closing, start)
            if end < 0:
                there = _trimmed(text[start : len(text) - overlap(text, closing)])
                raise Unfinished(there, is_text=_is_text(schema))
            return _raw(_trimmed(text[start:end]), schema), end
        if self.kind == "json":
            end = json_end(text, start)
            return _parsed(text[start:end]), end
        return _literal(text, start, self)


def syntax_of(before: str, after: str) -> Syntax | None:
    """The syntax, from the text right before and after a string argument; None if it is unknown."""
    if before == after == "":
        return Syntax("raw")
    if before == after == '"':
        return Syntax("json")
    if before == after == "'":
        return Syntax("python", "'")
    return Syntax("quoted", before) if before == after else None


def json_end(text: str, start: int) -> int:
    """The end of the JSON value at `start`; raises Unfinished, NoCall."""
    if start >= len(text):
        raise Unfinished
    if text[start] not in '{["':
        found = re.compile(r"[-+.\w]+").match(text, start)
        if not found:
            raise NoCall
        if found.end() == len(text):
            raise Unfinished
        return found.end()
    depth, is_text, place = 0, False, start
    while place < len(text):
        letter = text[place]
        if is_text:
            if letter == "\\":
                place += 1
            elif letter == '"':
                is_text = False
        elif letter == '"':
            is_text = True
        elif letter in "{[":
            depth += 1
        elif letter in "}]":
            depth -= 1
        place += 1
        if depth == 0 and not is_text:
            return place
    raise Unfinished(text[start:])


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        raise NoCall from None


def _trimmed(text: str) -> str:
    """A value without the line breaks that templates put around it."""
    return text.removeprefix("\n").removesuffix("\n")


def _raw(text: str, schema: Any) -> Any:
    """A value without quotes: a string, or parsed JSON, depending on its schema."""
    if _is_text(schema):
        return text
    if text in ("True", "False", "None"):  # some templates write Python's literals
        return {"True": True, "False": False, "None": None}[text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _types(schema: Any) -> set[str]:
    if not isinstance(schema, dict):
        return set()
    found = schema.get("type")
    types = {found} if isinstance(found, str) else set(found or ())
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        types |= _types(part)
    values = [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else [])]
    return types | {"string" if isinstance(value, str) else "else" for value in values}


def _is_text(schema: Any) -> bool:
    return _types(schema) == {"string"}


# --- literals of Python, and of templates with quotes of their own -------------------------------------------------


def _literal(text: str, start: int, syntax: Syntax) -> tuple[Any, int]:
    place = _skipped(text, start)
    if place >= len(text):
        raise Unfinished
    if text.startswith(syntax.quote, place):
        return _quoted(text, place, syntax.quote)
    if syntax.quote.startswith(text[place:]):
        raise Unfinished
    if syntax.kind == "python" and text[place] in "'\"":
        return _quoted(text, place, text[place])
    if text[place] == "[":
        return _list(text, place + 1, syntax)
    if text[place] == "{":
        return _object(text, place + 1, syntax)
    found = re.compile(r"[-+.\w]+").match(text, place)
    if not found:
        raise NoCall
    if found.end() == len(text):
        raise Unfinished
    known = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
    if found[0] in known:
        return known[found[0]], found.end()
    return _parsed(found[0]), found.end()


def _quoted(text: str, start: int, quote: str) -> tuple[str, int]:
    inner = start + len(quote)
    if quote not in ("'", '"'):
        end = text.find(quote, inner)
        if end < 0:
            raise Unfinished(text[inner : len(text) - overlap(text, quote)], is_text=True)
        return text[inner:end], end + len(quote)
    place = inner
    while place < len(text) and not _ends_text(text, place, quote):
        place += 2 if text[place] == "\\" else 1
    if place >= len(text):
        raise Unfinished(text[inner : len(text) - overlap(text, quote)], is_text=True)
    try:
        return str(ast.literal_eval(quote + text[inner:place].replace("\n", "\\n") + quote)), place + 1
    except (ValueError, SyntaxError):
        return text[inner:place], place + 1


def _ends_text(text: str, place: int, quote: str) -> bool:
    """Whether a quote ends its string: some templates do not escape quotes inside a string."""
    if text[place] != quote:
        return False
    after = _skipped(text, place + 1)
    return after >= len(text) or text[after] in ",)]}:"


def _list(text: str, place: int, syntax: Syntax) -> tuple[list[Any], int]:
    found: list[Any] = []
    while True:
        place = _skipped(text, place)
        if text[place : place + 1] == "]":
            return found, place + 1
        value, place = _literal(text, place, syntax)
        found.append(value)
        place = _comma(text, place, "]")


def _object(text: str, place: int, syntax: Syntax) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    name: Any
    while True:
        place = _skipped(text, place)
        if text[place : place + 1] == "}":
            return found, place + 1
        if syntax.kind == "python" or text.startswith(syntax.quote, place):
            name, place = _literal(text, place, syntax)
        else:
            colon = text.find(":", place)
            if colon < 0:
                raise Unfinished
            name, place = text[place:colon].strip(), colon
        place = _skipped(text, place)
        if place >= len(text):
            raise Unfinished
        if text[place] != ":" or not isinstance(name, str):
            raise NoCall
        found[name], place = _literal(text, place + 1, syntax)
        place = _comma(text, place, "}")


def _comma(text: str, place: int, closing: str) -> int:
    place = _skipped(text, place)
    if place >= len(text):
        raise Unfinished
    if text[place] == ",":
        return place + 1
    if text[place] != closing:
        raise NoCall
    return place


def _skipped(text: str, place: int) -> int:
    while place < len(text) and text[place].isspace():
        place += 1
    return place
