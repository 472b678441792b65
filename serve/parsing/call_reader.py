"""Parses the calls at the start of a text.

scan = scan_calls(text, style, {"weather": schema}, is_final=False)
scan.calls, scan.end, scan.is_open        # the calls, their end, and whether there may be more
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serve.parsing.call_style import ID, NAME, CallStyle, FieldsUnit, JsonUnit, NamedUnit
from serve.parsing.cursor import Cursor
from serve.parsing.values import NoCall, Unfinished, json_end

_OUTER_KEYS = {"type", "id", "function"}


@dataclass(frozen=True)
class Call:
    """A function's name, and its arguments as JSON. With `is_cut` they are incomplete, and more text changes only
    what comes after the part `settled`."""

    name: str
    arguments: str
    is_cut: bool = False
    settled: str = ""


@dataclass
class Scan:
    """A result: `is_open` means that more text may add to it, `cut` is an incomplete call."""

    calls: list[Call] = field(default_factory=list)
    end: int = 0
    is_open: bool = False
    cut: Call | None = None


def scan_calls(text: str, style: CallStyle, functions: Mapping[str, Any], is_final: bool = False) -> Scan:
    """The calls at the start of a text; `functions` are the schemas of their parameters by name.

    With `is_final` the model has ended its reply, so the closing of a call may be missing.
    """
    scan = Scan()
    for mark in style.other_marks:
        if text.startswith(mark):
            scan.end = len(mark)
    while True:
        cursor = Cursor(text, scan.end, is_final)
        try:
            call = _next_call(cursor, style, functions, is_first=not scan.calls)
        except Unfinished:
            scan.is_open = True
            if cursor.name is not None:
                scan.cut = Call(cursor.name, cursor.given or "", True, cursor.settled)
            break
        except NoCall:
            break
        scan.calls.append(call)
        scan.end = cursor.at
    if scan.calls:
        _take_closing(scan, text, style)
    elif not scan.is_open:
        scan.end = 0
    return scan


def _take_closing(scan: Scan, text: str, style: CallStyle) -> None:
    cursor = Cursor(text, scan.end)
    cursor.space()
    try:
        cursor.literal(style.closing.strip())
    except Unfinished:
        scan.is_open = True
        return
    except NoCall:
        return
    scan.end = cursor.at


def _next_call(cursor: Cursor, style: CallStyle, functions: Mapping[str, Any], is_first: bool) -> Call:
    openings = [style.opening] if is_first else _further(style)
    start, failure = cursor.at, NoCall()
    waiting: Unfinished | None = None
    for opening in openings:
        cursor.at, cursor.name, cursor.given, cursor.settled = start, None, None, ""
        try:
            cursor.space()
            cursor.literal(opening.lstrip())
            return _unit(cursor, style, functions)
        except NoCall as error:
            failure = error
        except Unfinished as error:
            waiting = error
            if cursor.name is not None:
                raise
    raise waiting or failure


def _further(style: CallStyle) -> list[str]:
    """Texts between two calls: the template's, and others that models write anyway."""
    found = [] if style.between is None else [style.between]
    again = style.closing.strip() + "\n" + style.opening
    marks = [mark for mark in (",", ";") if style.opening.strip() in ("", "[")]
    return [*found, again, style.opening, *marks]


def _unit(cursor: Cursor, style: CallStyle, functions: Mapping[str, Any]) -> Call:
    if isinstance(style.unit, JsonUnit):
        return _object(cursor, style.unit, functions)
    name = cursor.function(functions)
    if isinstance(style.unit, NamedUnit):
        cursor.literal(_filled(style.unit.middle, name))
        cursor.space()
        begin = cursor.at
        cursor.given = cursor.settled = cursor.text[begin:].rstrip()
        if cursor.text[begin : begin + 1] not in ("", "{"):
            raise NoCall
        found, cursor.at = _json(cursor.text, begin)
        return Call(name, as_written(cursor.text[begin : cursor.at], found))
    return _fields(cursor, style, style.unit, name, functions[name])


def _filled(glue: str, name: str) -> str:
    return glue.replace(NAME, name).replace(ID, "")


def _json(text: str, start: int) -> tuple[dict[str, Any], int]:
    end = json_end(text, start)
    try:
        found = json.loads(text[start:end], strict=False)
    except (ValueError, RecursionError):
        raise NoCall from None
    if not isinstance(found, dict):
        raise NoCall
    return found, end


# --- one object ----------------------------------------------------------------------------------------------------


def _object(cursor: Cursor, unit: JsonUnit, functions: Mapping[str, Any]) -> Call:
    cursor.space()
    text, start = cursor.text, cursor.at
    if text[start : start + 1] not in ("", "{"):
        raise NoCall
    try:
        found, end = _json(text, start)
    except Unfinished:
        _refute(text[start:], unit, functions)
        cursor.name, cursor.given = _begun(text[start:], unit, functions)
        cursor.settled = cursor.given if cursor.given and cursor.given[0] == "{" else ""
        raise
    for key in unit.names[:-1]:
        if not isinstance(found.get(key), dict):
            raise NoCall
        found = found[key]
    name = found.get(unit.names[-1])
    given = found.get(unit.arguments[-1], {})
    if isinstance(given, str):
        given = _json(given, 0)[0] if given else {}
    if not isinstance(name, str) or name not in functions or not isinstance(given, dict):
        raise NoCall
    cursor.at = end
    return Call(name, as_written(_begun(text[start:end], unit, functions)[1] or "", given))


def as_written(text: str, arguments: dict[str, Any]) -> str:
    """The arguments as the model wrote them if that is JSON, so that a stream equals the final text."""
    try:
        is_so = json.loads(text) == arguments
    except (ValueError, RecursionError):
        is_so = False
    return text if is_so else json.dumps(arguments, ensure_ascii=False)


def _refute(text: str, unit: JsonUnit, functions: Mapping[str, Any]) -> None:
    """Raise NoCall as soon as the start of an object shows that it is not a call."""
    first = re.match(r'\{\s*"([^"\\]*)"', text)
    known = {*unit.names, *unit.arguments, *unit.keys, *_OUTER_KEYS}
    if first and first[1] not in known:
        raise NoCall
    if re.match(r"\{\s*[^\s\"]", text):
        raise NoCall
    name = re.match(rf'\{{\s*"{re.escape(unit.names[-1])}"\s*:\s*"([^"\\]*)(")?', text)
    if name and (name[1] not in functions if name[2] else not any(each.startswith(name[1]) for each in functions)):
        raise NoCall


def _begun(text: str, unit: JsonUnit, functions: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The name in an incomplete object, and its arguments so far."""
    found = re.search(rf'"{re.escape(unit.names[-1])}"\s*:\s*"([^"\\]*)"', text)
    if not found or found[1] not in functions:
        return None, None
    given = re.compile(rf'"{re.escape(unit.arguments[-1])}"\s*:\s*').search(text, found.end())
    if not given:
        return found[1], ""
    try:
        return found[1], text[given.end() : json_end(text, given.end())]
    except (Unfinished, NoCall):
        return found[1], text[given.end() :].rstrip()


def names_one(text: str, style: CallStyle, functions: Mapping[str, Any]) -> bool:
    """Whether the start of an object names one of the functions."""
    if not isinstance(style.unit, JsonUnit):
        return False
    found = re.search(rf'"{re.escape(style.unit.names[-1])}"\s*:\s*"([^"\\]+)', text)
    return found is not None and any(name.startswith(found[1]) for name in functions)


# --- one argument after the other ----------------------------------------------------------------------------------


def _fields(cursor: Cursor, style: CallStyle, unit: FieldsUnit, name: str, schema: Any) -> Call:
    found: dict[str, Any] = {}
    cursor.given, cursor.settled = "", ""
    properties = schema.get("properties", {}) if isinstance(schema, dict) else {}
    if _has_no_fields(cursor, style, unit, name):
        return Call(name, "{}")
    cursor.literal(_filled(unit.first, name))
    while True:
        key = _key(cursor, unit)
        try:
            value, cursor.at = unit.syntax.read(cursor.text, cursor.at, unit.closing.strip(), properties.get(key, {}))
        except Unfinished as error:
            cursor.given = _cut_off(found, key, error)
            raise
        found[key] = value
        cursor.given = cursor.settled = json.dumps(found, ensure_ascii=False)[:-1]
        cursor.space()
        cursor.literal(unit.closing.strip())
        place = cursor.at
        try:
            cursor.space()
            cursor.literal(unit.next.lstrip())
        except (NoCall, Unfinished) as error:
            if isinstance(error, Unfinished) and not cursor.is_final:
                raise
            cursor.at = place
            _check_end(cursor, style)
            return Call(name, json.dumps(found, ensure_ascii=False))


def _has_no_fields(cursor: Cursor, style: CallStyle, unit: FieldsUnit, name: str) -> bool:
    if unit.empty is None:
        return False
    start = cursor.at
    try:
        cursor.literal(_filled(unit.empty, name))
        _check_end(cursor, style)
    except NoCall:
        cursor.at = start
        return False
    return True


def _key(cursor: Cursor, unit: FieldsUnit) -> str:
    middle = unit.middle.strip()
    end = cursor.text.find(middle, cursor.at)
    if end < 0:
        if "\n\n" in cursor.text[cursor.at :]:
            raise NoCall
        raise Unfinished
    key = cursor.text[cursor.at : end].strip()
    cursor.at = end
    cursor.literal(unit.middle.lstrip())
    return key


def _check_end(cursor: Cursor, style: CallStyle) -> None:
    """Check that the end of the calls or another call follows the last argument, without consuming it."""
    for following in (style.closing, style.between):
        if following is None:
            continue
        ahead = Cursor(cursor.text, cursor.at)
        try:
            ahead.space()
            ahead.literal(following.strip())
            return
        except Unfinished:
            if cursor.is_final:
                return
            raise
        except NoCall:
            continue
    raise NoCall


def _cut_off(found: dict[str, Any], key: str, end: Unfinished) -> str:
    """The arguments so far, as incomplete JSON."""
    begun = json.dumps(found, ensure_ascii=False)[:-1] + (", " if found else "")
    value = json.dumps(end.partial, ensure_ascii=False)[:-1] if end.is_text else end.partial
    return f"{begun}{json.dumps(key, ensure_ascii=False)}: {value}"
