"""JSON schemas as EBNF grammars for OpenVINO's pipeline.

    text = ebnf_of(schema)      # a schema that `openvino_schema.unsure` accepts, after `rewritten`

The pipeline takes schemas too, but then lets the model choose the white space between JSON tokens: a model that has
seen little JSON writes white space until its token limit. Here there is one space after each comma and colon, as with
the engine `torch`. Additional properties are allowed only if the schema names none, so that no name occurs twice;
numbers have at most 16 digits before and after their decimal point.
"""

import json
from typing import Any

# The rules of JSON; names of other rules have a number.
_JSON = r"""
value ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" (string ": " value (", " string ": " value)*)? "}"
array ::= "[" (value (", " value)*)? "]"
string ::= "\"" letter* "\""
letter ::= [^"\\\x00-\x1f] | "\\" ["\\/bfnrt] | "\\u" hex hex hex hex
hex ::= [0-9a-fA-F]
integer ::= "-"? ("0" | [1-9] [0-9]{0,15})
number ::= integer ("." [0-9]{1,16})? ([eE] [+-]? [0-9]{1,2})?
boolean ::= "true" | "false"
"""
_NAMED = {"string": "string", "integer": "integer", "number": "number", "boolean": "boolean", "null": '"null"'}


def ebnf_of(schema: Any) -> str:
    """A grammar whose rule `root` matches JSON of the schema."""
    return _Writer(schema).text()


class _Writer:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._rules: list[str] = []
        self._by_reference: dict[str, str] = {}

    def text(self) -> str:
        body = self._reference("#", ()) or "value"
        return "\n".join([f"root ::= {body}", *self._rules]) + _JSON

    def _rule(self, body: str) -> str:
        """Add a rule; returns its name."""
        name = self._new()
        self._set(name, body)
        return name

    def _new(self) -> str:
        self._rules.append("")
        return f"r{len(self._rules) - 1}"

    def _set(self, name: str, body: str) -> None:
        self._rules[int(name[1:])] = f"{name} ::= {body}"

    def _reference(self, reference: str, opened: tuple[str, ...]) -> str | None:
        """The rule of a reference's target, which may be recursive; None if it would consist only of itself.
        `opened` are the references that lead here without a token in between."""
        if reference in opened:
            return None
        if reference not in self._by_reference:
            name = self._by_reference[reference] = self._new()
            part = self._root
            for step in reference[2:].split("/") if reference != "#" else ():
                part = part[int(step)] if isinstance(part, list) else part[step]
            self._set(name, self._body(part, (*opened, reference)) or "value")
        return self._by_reference[reference]

    def _body(self, schema: Any, opened: tuple[str, ...] = ()) -> str | None:
        if not isinstance(schema, dict):
            return "value"
        if "$ref" in schema:
            return self._reference(schema["$ref"], opened)
        if "anyOf" in schema:
            bodies = [self._body(part, opened) for part in schema["anyOf"]]
            return " | ".join(self._rule(body) for body in bodies if body is not None) or None
        if "const" in schema:
            return _literal(json.dumps(schema["const"], ensure_ascii=False))
        kinds = schema.get("type") or _kind_by_rules(schema)
        several = kinds if isinstance(kinds, list) else [kinds]
        return " | ".join(self._kind(kind, schema) for kind in several)

    def _kind(self, kind: str | None, schema: dict[str, Any]) -> str:
        if kind == "object":
            return self._object(schema)
        if kind == "array":
            return self._array(schema)
        return _NAMED.get(str(kind), "value")

    def _array(self, schema: dict[str, Any]) -> str:
        items = schema.get("items", True)
        if items is False:
            return '"[]"'
        item = self._group(items)
        return self._rule(f'"[" ({item} (", " {item})*)? "]"')

    def _object(self, schema: dict[str, Any]) -> str:
        properties = schema.get("properties") or {}
        if not properties:
            return self._map(schema.get("additionalProperties", True))
        required = schema.get("required", ())
        # The rules for the rest of the properties: if none has been written yet, and if one has.
        first, more = '""', '""'
        for name, part in reversed(properties.items()):
            pair = self._rule(f"{_literal(json.dumps(name, ensure_ascii=False) + ': ')} {self._group(part)}")
            begun, going = f"{pair} {more}", f'", " {pair} {more}'
            if name not in required:
                begun, going = f"{begun} | {first}", f"{going} | {more}"
            first, more = self._rule(begun), self._rule(going)
        return self._rule(f'"{{" {first} "}}"')

    def _map(self, values: Any) -> str:
        if values is False:
            return '"{}"'
        pair = f'string ": " {self._group(values)}'
        return self._rule(f'"{{" ({pair} (", " {pair})*)? "}}"')

    def _group(self, schema: Any) -> str:
        return self._rule(self._body(schema) or "value")


def _kind_by_rules(schema: dict[str, Any]) -> str | None:
    """The type of a schema without `type`, by its other rules."""
    if {"properties", "required", "additionalProperties"} & schema.keys():
        return "object"
    return "array" if "items" in schema else None


def _literal(text: str) -> str:
    r"""A constant; all characters but letters, digits and spaces are escaped by code point."""
    return (
        '"' + "".join(letter if letter.isascii() and letter.isalnum() else _escaped(letter) for letter in text) + '"'
    )


def _escaped(letter: str) -> str:
    if letter in '"\\':
        return f"\\{letter}"
    if letter.isascii() and letter.isprintable():
        return letter
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"
