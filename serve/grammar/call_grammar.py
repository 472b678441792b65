"""Grammars of JSON and calls with the text around them, in llguidance's variant of Lark, with control tokens.

rules = Rules(form.marks)
start = rules.calls(style, {"weather": schema}, short_ids=False)
rules.lark(start)
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from serve.parsing.call_style import ID, NAME, CallStyle, FieldsUnit, JsonUnit, NamedUnit
from serve.parsing.channels import CHANNEL, END, MESSAGE, START
from serve.parsing.marks import Marks, is_mark
from serve.parsing.thinking import Thinking

# Small models fill a reply with white space if they can.
ONE_SPACE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}
_ANYTHING = "/(.|\\n)*/"
_DEFINITIONS = ("$defs", "definitions")
_SHORT_ID, _LONG_ID = "^[a-z0-9]{9}$", "^call_[a-z0-9]{24}$"
_DEEPEST = 32
_MAX_ALTERNATIVES = 1000
_RULES_OF_TEXT = ("pattern", "format", "minLength", "maxLength")


class Rules:
    """The rules of one grammar, by name."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._rules: dict[str, str] = {}

    def lark(self, start: str) -> str:
        """The whole grammar; the reply matches `start`."""
        return "\n".join([f"start: {start}", *(f"{name}: {body}" for name, body in self._rules.items())])

    def add(self, body: str, options: str = "") -> str:
        """Add a rule; returns its name."""
        name = f"r{len(self._rules)}"
        self._rules[name + options] = body
        return name

    def text(self, marked: str) -> str:
        """Exactly this text."""
        pieces, plain = [], ""
        for char in marked:
            token_id = self._marks.token_id(char) if is_mark(char) else None
            if token_id is None:
                plain += char
                continue
            pieces += [json.dumps(plain, ensure_ascii=False)] * bool(plain) + [f"<[{token_id}]>"]
            plain = ""
        return " ".join(pieces + [json.dumps(plain, ensure_ascii=False)] * bool(plain))

    def until(self, marked: str) -> str:
        """Any text up to and including this one."""
        first = next((place for place, char in enumerate(marked) if is_mark(char)), len(marked))
        if first == 0:
            return f"{self.add(_ANYTHING)} {self.text(marked)}"
        suffix = json.dumps(marked[:first], ensure_ascii=False)
        return f"{self.add(_ANYTHING, f'[suffix={suffix}]')} {self.text(marked[first:])}"

    def json(self, schema: Mapping[str, Any]) -> str:
        """JSON of a schema."""
        return self.add(f"%json {json.dumps({**schema, 'x-guidance': ONE_SPACE})}")

    # --- before it ---

    def thinking(self, thinking: Thinking, is_open: bool) -> str:
        """The thinking before the rest; with `is_open` the prompt has opened it."""
        gap = "/\\n{0,2}/" if thinking.gap is None else self.text(thinking.gap)
        rest = f"{self.until(thinking.closing)} {gap}"
        return rest if is_open else f"{self.text(thinking.opening)} {rest}"

    def channels(self, is_call: bool) -> str:
        """Messages with thinking, and the header of the visible message."""
        start, channel, message, end = map(self._marks.of, (START, CHANNEL, MESSAGE, END))
        head = f"{channel}analysis{message}"
        thought = f"({self.text(head)} {self.until(end)} {self.text(start + 'assistant')})*"
        return thought if is_call else f"{thought} {self.text(f'{channel}final{message}')}"

    # --- calls ---

    def call(self, style: CallStyle, functions: Mapping[str, dict[str, Any]], has_short_ids: bool) -> str:
        """One call of one of these functions, whose values are the schemas of their parameters."""
        units = [self.add(self._unit(style, name, schema, has_short_ids)) for name, schema in functions.items()]
        around = self.text(style.opening.replace(ID, "")), self.text(style.closing)
        return f"{around[0]} ({' | '.join(units)}) {around[1]}"

    def _unit(self, style: CallStyle, name: str, schema: dict[str, Any], has_short_ids: bool) -> str:
        if isinstance(style.unit, JsonUnit):
            return self.json(_object(style.unit, name, schema, has_short_ids))
        called = self.text(name)
        if isinstance(style.unit, NamedUnit):
            return f"{called} {self.text(style.unit.middle.replace(NAME, name))} {self.json(schema)}"
        return f"{called} {self._fields(style.unit, name, schema)}"

    def _fields(self, unit: FieldsUnit, name: str, schema: dict[str, Any]) -> str:
        """The arguments in the order of the schema's properties, required and optional ones."""
        properties: dict[str, Any] = schema.get("properties", {})
        known = {"type", "properties", "required", "additionalProperties", "title", "description", *_DEFINITIONS}
        if strange := sorted(schema.keys() - known - {"$schema", "strict"}):
            raise ValueError(
                f"{name}: this model's template writes arguments one by one, which does not support `{strange[0]}`"
            )
        definitions = {key: schema[key] for key in _DEFINITIONS if key in schema}
        required = set(schema.get("required", ()))
        if missing := sorted(required - properties.keys()):
            raise ValueError(f"{name}: {missing[0]!r} is required, but has no schema in properties")
        # The rules for the arguments from one on: after others, and as the first ones; None is impossible.
        later: str = ""
        first = None if unit.empty is None else self.text(unit.empty.replace(NAME, name))
        for key in reversed(properties):
            value = f"{self.text(key + unit.middle)} {self._value(unit, _with(properties[key], definitions))} {later}"
            as_next = f"{self.text(unit.next)} {value}"
            as_first = f"{self.text(unit.first.replace(NAME, name))} {value}"
            if key not in required:
                as_next = f"{as_next} | {later}" if later else f"({as_next})?"
                if first is not None:
                    as_first = f"{as_first} | {first}" if first else f"({as_first})?"
            later, first = self.add(as_next), self.add(as_first)
        if first is None:
            raise ValueError(f"{name}: this model's template cannot write a call without arguments")
        return first

    def _value(self, unit: FieldsUnit, schema: dict[str, Any]) -> str:
        """An argument and its closing."""
        if unit.syntax.kind == "json":
            return self.json(schema)
        kinds = _alternatives(schema)
        if len(kinds) > 1:
            return f"({' | '.join(self.add(self._value(unit, kind)) for kind in kinds)})"
        [schema] = kinds
        values = schema.get("enum", [schema["const"]] if "const" in schema else None)
        closing = self.text(unit.closing)
        if values is not None:
            return self.add(" | ".join(f"{self._constant(unit, value)} {closing}" for value in values))
        kind = schema.get("type")
        if kind == "string" or (kind is None and unit.syntax.kind == "raw"):
            if rule := next((rule for rule in _RULES_OF_TEXT if rule in schema), None):
                raise ValueError(f"`{rule}` of a string is not supported by this model's format of arguments")
            return self._any_text(unit)
        if unit.syntax.kind == "python" and kind in ("boolean", "null"):
            return '("True" | "False")' if kind == "boolean" else '"None"'
        if unit.syntax.kind != "raw" and kind not in ("integer", "number", "boolean", "null"):
            raise ValueError(
                "only strings, numbers, booleans and constants are supported by this model's format of arguments"
            )
        return f"{self.json(schema)} {closing}"

    def _any_text(self, unit: FieldsUnit) -> str:
        quote = unit.syntax.quote
        if unit.syntax.kind == "raw":
            return self.until(unit.closing)
        if unit.syntax.kind == "python":
            return self.add(r"/'([^'\\\n]|\\[\\n'])*'/")
        return f"{self.text(quote)} {self.until(quote)}"

    def _constant(self, unit: FieldsUnit, value: Any) -> str:
        kind = unit.syntax.kind
        if kind == "python":
            return self.text(repr(value))
        if isinstance(value, str):
            return self.text(f"{unit.syntax.quote}{value}{unit.syntax.quote}")
        return self.text(json.dumps(value, ensure_ascii=False))


def _alternatives(
    schema: dict[str, Any], depth: int = 0, seen: "Iterator[int] | None" = None
) -> list[dict[str, Any]]:
    """The alternatives of a schema, with resolved references."""
    seen = seen or itertools.count()
    if next(seen) > _MAX_ALTERNATIVES:
        raise ValueError(f"more than {_MAX_ALTERNATIVES} alternatives of one argument are not supported here")
    if depth > _DEEPEST:
        raise ValueError("a recursive schema is not supported here")
    definitions = {key: schema[key] for key in _DEFINITIONS if key in schema}
    if "$ref" in schema:
        found: Any = schema
        for name in str(schema["$ref"]).removeprefix("#/").split("/"):
            found = found.get(name) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            raise ValueError(f"{schema['$ref']!r} does not exist in the schema")
        return _alternatives({**found, **definitions}, depth + 1, seen)
    for rule in ("anyOf", "oneOf"):
        if rule in schema:
            parts = [_with(part, definitions) for part in schema[rule]]
            return [each for part in parts for each in _alternatives(part, depth + 1, seen)]
    if isinstance(schema.get("type"), list):
        return [{**schema, "type": kind} for kind in schema["type"]]
    return [schema]


def _with(schema: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    return {**schema, **definitions} if isinstance(schema, dict) else {}


def _object(unit: JsonUnit, name: str, schema: dict[str, Any], has_short_ids: bool) -> dict[str, Any]:
    values: dict[str, Any] = {unit.names[-1]: {"const": name}, unit.arguments[-1]: schema}
    for key, value in unit.others:
        an_id = {"type": "string", "pattern": _SHORT_ID if has_short_ids else _LONG_ID}
        values[key] = an_id if value == ID else {"const": value}
    found: dict[str, Any] = _closed({key: values[key] for key in unit.keys})
    for key in reversed(unit.names[:-1]):
        found = _closed({key: found})
    return {**found, **{key: schema[key] for key in _DEFINITIONS if key in schema}}


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
