"""The JSON schemas that OpenVINO follows. With others a step of its pipeline fails, with every request in it, or a
reply silently violates the schema.

    why = unsure({"type": "string", "pattern": "a+"})   # "pattern"
    schema = rewritten({"enum": ["a.b", "a", "b"]})      # an equivalent schema that it follows

Seen with OpenVINO GenAI 2026.4: property names with a quote, a backslash or a line break fail, and so do references
with escaped characters, lists of `items` and the schema `false`. Of several rules about a value only one counts, and
`required` names without a property do not count. Values of an enum are mixed, the start of one with the end of
another ("b.b" for the one above; in 166 of 422 random ones), unless each has its own definition.
"""

import itertools
import re
from collections.abc import Iterator
from typing import Any

# 500 optional properties take 0.6 s to compile, 2000 take 10 s, and no reply gets a token meanwhile. The pipeline
# compiles them itself, without a time limit; this number takes no longer than a token.
MAX_PROPERTIES = 32
# Constants and nested schemas.
MAX_PARTS = 256

_NOTES = {"title", "description", "$defs"}
_KINDS = ("$ref", "anyOf", "enum", "const")
_SHAPE = {"type", "properties", "required", "additionalProperties", "items"}
_REFERENCE = re.compile(r"#(/[^~%/]+)*")
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "boolean": (bool,), "null": (type(None),), "object": (dict,), "array": (list,),
    "integer": (int,), "number": (int, float),
}  # fmt: skip


def unsure(schema: Any) -> str | None:
    """A part of a valid `schema` that OpenVINO may not follow; None if there is none."""
    if (num_properties := _num_properties(schema)) > MAX_PROPERTIES:
        return f"{num_properties} properties, more than {MAX_PROPERTIES},"
    if (num_parts := _num_parts(schema)) > MAX_PARTS:
        return f"{num_parts} rules and constants, more than {MAX_PARTS},"
    return _unsure(schema)


def _num_properties(schema: Any) -> int:
    parts = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    own = schema.get("properties") if isinstance(schema, dict) else None
    return (len(own) if isinstance(own, dict) else 0) + sum(_num_properties(part) for part in parts)


def _num_parts(schema: Any) -> int:
    parts = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    return 1 + sum(_num_parts(part) for part in parts)


def _unsure(schema: Any) -> str | None:
    if schema is True:
        return None
    if not isinstance(schema, dict):
        return f"{schema!r:.40} as a schema"
    if unknown := set(schema) - _NOTES - _SHAPE - {*_KINDS}:
        return str(min(unknown))
    kinds = [rule for rule in _KINDS if rule in schema]
    beside = [rule for rule in schema if rule not in (*_NOTES, *kinds[:1])]
    if kinds and beside and not _says_the_same(schema, kinds[0], beside):
        return f"{kinds[0]} beside {beside[0]}"
    return _unsure_value(schema) or _unsure_part(schema)


def _says_the_same(schema: dict[str, Any], kind: str, beside: list[str]) -> bool:
    """Whether a type beside `enum` or `const` is the type of all its values."""
    if kind not in ("enum", "const") or beside != ["type"]:
        return False
    values = schema["enum"] if kind == "enum" else [schema["const"]]
    return all(type(value) in _TYPES.get(str(schema["type"]), ()) for value in values)


def _unsure_value(schema: dict[str, Any]) -> str | None:
    """An unsupported value of one of this schema's own rules."""
    if not _REFERENCE.fullmatch(str(schema.get("$ref", "#"))):
        return "escaped characters in a $ref"
    for rule in ("properties", "$defs"):
        if not isinstance(schema.get(rule, {}), dict):
            return rule
    if not isinstance(schema.get("anyOf", []), list):
        return "anyOf"
    if any(not name.isprintable() or {*name} & {'"', "\\"} for name in schema.get("properties", {})):
        return "a property name with a quote, a backslash or an unprintable character"
    if extra := {*schema.get("required", ())} - {*schema.get("properties", {})}:
        return f"{min(extra)!r:.40} in required and not in properties"
    return None


def _unsure_part(schema: dict[str, Any]) -> str | None:
    """An unsupported part of a nested schema; `items` and `additionalProperties` may be false."""
    parts = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values(), *schema.get("anyOf", [])]
    parts += [part for rule in ("items", "additionalProperties") if (part := schema.get(rule, True)) is not False]
    return next((found for part in parts if (found := _unsure(part)) is not None), None)


def rewritten(schema: Any) -> Any:
    """An equivalent of a schema that `unsure` accepts, with each enum value in its own definition."""
    if not isinstance(schema, dict):
        return schema
    definitions = schema.get("$defs", {})
    names = (name for number in itertools.count() if (name := f"value{number}") not in definitions)
    values: dict[str, Any] = {}
    inside = _rewritten(schema, names, values)
    return {**inside, "$defs": {**inside.get("$defs", {}), **values}} if values else inside


def _rewritten(schema: Any, names: Iterator[str], values: dict[str, Any]) -> Any:
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    for rule in ("properties", "$defs"):
        if rule in schema:
            found[rule] = {name: _rewritten(part, names, values) for name, part in schema[rule].items()}
    for rule in ("items", "additionalProperties"):
        if rule in schema:
            found[rule] = _rewritten(schema[rule], names, values)
    if "anyOf" in schema:
        found["anyOf"] = [_rewritten(part, names, values) for part in schema["anyOf"]]
    if "enum" in schema or "const" in schema:
        several = schema["enum"] if "enum" in schema else [schema["const"]]
        new = {next(names): {"const": value} for value in several}
        values |= new
        found = {rule: part for rule, part in found.items() if rule in _NOTES}
        found["anyOf"] = [{"$ref": f"#/$defs/{name}"} for name in new]
    return found
