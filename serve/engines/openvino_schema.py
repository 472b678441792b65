"""Which JSON schemas OpenVINO is known to follow. At others a step of its pipeline fails, with every request in it,
or a reply breaks the schema without a word.

    why = unsure({"type": "string", "pattern": "a+"})   # "pattern"

Seen with OpenVINO GenAI 2026.4: names of properties with a quote or the end of a line in them, references with
escaped letters, lists of `items` and the schema `false` fail; of several rules that say what a value is, one counts.
"""

import re
from typing import Any

# 500 properties that may be left out take 0.6 s to prepare, 2000 take 10 s; nobody gets a token meanwhile.
MOST_PROPERTIES = 500

_NOTES = {"title", "description", "$defs"}
_KINDS = ("$ref", "anyOf", "enum", "const")
_SHAPE = {"type", "properties", "required", "additionalProperties", "items"}
_REFERENCE = re.compile(r"#(/[^~%/]+)*")
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "boolean": (bool,), "null": (type(None),), "object": (dict,), "array": (list,),
    "integer": (int,), "number": (int, float),
}  # fmt: skip


def unsure(schema: Any) -> str | None:
    """What in `schema`, which is one, OpenVINO is not known to follow; None for nothing."""
    if (num_properties := _num_properties(schema)) > MOST_PROPERTIES:
        return f"{num_properties} properties, more than {MOST_PROPERTIES},"
    return _unsure(schema)


def _num_properties(schema: Any) -> int:
    parts = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    own = schema.get("properties") if isinstance(schema, dict) else None
    return (len(own) if isinstance(own, dict) else 0) + sum(_num_properties(part) for part in parts)


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
    """Whether a type beside `enum` or `const` is that of all its values."""
    if kind not in ("enum", "const") or beside != ["type"]:
        return False
    values = schema["enum"] if kind == "enum" else [schema["const"]]
    return all(type(value) in _TYPES.get(str(schema["type"]), ()) for value in values)


def _unsure_value(schema: dict[str, Any]) -> str | None:
    """A value that a rule of this schema should not have, by itself."""
    if not _REFERENCE.fullmatch(str(schema.get("$ref", "#"))):
        return "escaped letters in a $ref"
    for rule in ("properties", "$defs"):
        if not isinstance(schema.get(rule, {}), dict):
            return rule
    if not isinstance(schema.get("anyOf", []), list):
        return "anyOf"
    if any(not name.isprintable() or '"' in name for name in schema.get("properties", {})):
        return "a property's name with a quote or an unprintable letter"
    return None


def _unsure_part(schema: dict[str, Any]) -> str | None:
    """What is unsure in a schema within this one; `items` and `additionalProperties` may be false."""
    parts = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values(), *schema.get("anyOf", [])]
    parts += [part for rule in ("items", "additionalProperties") if (part := schema.get(rule, True)) is not False]
    return next((found for part in parts if (found := _unsure(part)) is not None), None)
