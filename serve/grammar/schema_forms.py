"""JSON schemas rewritten so that llguidance follows them with JSON Schema's meaning.

`oneOf` becomes `anyOf` if no value can match two of its schemas: llguidance detects this for few schemas, and not
through `$ref`, which pydantic uses for unions. In patterns `\\d` and `\\w` become ASCII classes, as in ECMA-262;
otherwise a model could write digits of any script.
"""

import itertools
import json
import re
from typing import Any

from serve.grammar.schema_notes import mapped

_DEEPEST = 8
# The maximum number of comparisons in a document; each takes some microseconds.
_MAX_PAIRS = 5000
_TYPES = frozenset({"string", "number", "boolean", "null", "object", "array"})
_ASCII = {"d": "0-9", "w": "A-Za-z0-9_"}


def in_plain_form(schema: Any) -> Any:
    """An equivalent schema that llguidance follows; values of other rules stay unchanged."""
    apart = _Apart(schema)
    return mapped(schema, lambda part: _plain(part, apart))


def _plain(schema: dict[str, Any], apart: "_Apart") -> dict[str, Any]:
    found = dict(schema)
    several = found.get("oneOf")
    if isinstance(several, list) and len(several) > 1 and "anyOf" not in found and apart.all(several):
        found["anyOf"] = found.pop("oneOf")
    if isinstance(found.get("pattern"), str):
        found["pattern"] = in_ascii(found["pattern"])
    if isinstance(found.get("patternProperties"), dict):
        found["patternProperties"] = {in_ascii(name): part for name, part in found["patternProperties"].items()}
    return found


def in_ascii(pattern: str) -> str:
    r"""A regular expression with ASCII `\d` and `\w`; `\D` and `\W` inside brackets stay unchanged."""
    found, is_within = "", False
    for part in re.findall(r"\\.|.", pattern, re.DOTALL):
        letter = part[1:]
        if letter.lower() in _ASCII and (letter.islower() or not is_within):
            inner = _ASCII[letter.lower()]
            part = inner if is_within else f"[{'^' * letter.isupper()}{inner}]"
        elif part == "[":
            is_within = True
        elif part == "]":
            is_within = False
        found += part
    return found


class _Apart:
    """Tests whether no value can match two schemas of a document."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._left = _MAX_PAIRS

    def all(self, schemas: list[Any]) -> bool:
        """Whether no value can match any two of these."""
        several = [_resolved(schema, self._root) for schema in schemas]
        return all(self.differ(one, other) for one, other in itertools.combinations(several, 2))

    def differ(self, one: Any, other: Any, depth: int = 0) -> bool:
        """Whether no value can match both, with references resolved; False if that takes too much to prove."""
        self._left -= 1
        if not isinstance(one, dict) or not isinstance(other, dict) or depth > _DEEPEST or self._left < 0:
            return False
        if not _types(one) & _types(other):
            return True
        values = _values(one), _values(other)
        if values[0] is not None and values[1] is not None:
            return not values[0] & values[1]
        if _types(one) & _types(other) != {"object"}:
            return False
        names = {*_named(one)} & {*_named(other)}
        pairs = ([_resolved(each["properties"][name], self._root) for each in (one, other)] for name in names)
        return any(self.differ(first, second, depth + 1) for first, second in pairs)


def _named(schema: dict[str, Any]) -> list[str]:
    """Required properties with a schema."""
    required, properties = schema.get("required"), schema.get("properties")
    if not isinstance(required, list) or not isinstance(properties, dict):
        return []
    return [name for name in required if isinstance(name, str) and name in properties]


def _types(schema: dict[str, Any]) -> frozenset[str]:
    """The types of all values that may match; an integer counts as a number."""
    if (values := _values(schema)) is not None:
        return frozenset(value.partition(":")[0] for value in values)
    given = schema.get("type", list(_TYPES))
    several = given if isinstance(given, list) else [given]
    return frozenset("number" if kind == "integer" else str(kind) for kind in several)


def _values(schema: dict[str, Any]) -> frozenset[str] | None:
    """The values of `const` or `enum`, each with its type; None if the schema lists no values."""
    several = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(several, list):
        return None
    plain = (
        int(value) if isinstance(value, float) and value.is_integer() else value for value in several
    )  # 1 is 1.0
    return frozenset(f"{_type_of(value)}:{json.dumps(value, sort_keys=True)}" for value in plain)


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "number", float: "number", type(None): "null", dict: "object", list: "array"}
    return names[type(value)]


def _resolved(schema: Any, root: Any) -> Any:
    """A schema with its own reference resolved."""
    for _ in range(_DEEPEST):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        schema = root
        for name in reference[2:].split("/"):
            schema = schema.get(name) if isinstance(schema, dict) else None
    return schema
