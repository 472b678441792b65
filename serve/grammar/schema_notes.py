"""JSON schemas without annotations, which do not constrain values: `$schema` from zod, `title` and `default` from
pydantic.

rules_of({"$schema": "...", "type": "string", "default": "a"})    # {"type": "string"}
"""

from collections.abc import Callable
from typing import Any

NOTES = frozenset({
    "$schema", "$id", "$comment", "title", "description", "default", "example", "examples", "deprecated", "readOnly",
    "writeOnly", "contentMediaType", "contentEncoding", "discriminator", "externalDocs", "xml",
})  # fmt: skip
"""the annotations of JSON Schema and of OpenAPI's schemas"""

# Formats that llguidance enforces; others are annotations, as JSON Schema defines "format".
FORMATS = frozenset({
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
})  # fmt: skip

_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_SINGLE = frozenset({
    "items", "additionalItems", "additionalProperties", "unevaluatedProperties", "unevaluatedItems", "contains",
    "propertyNames", "not", "if", "then", "else",
})  # fmt: skip


def rules_of(schema: Any) -> Any:
    """The same schema without annotations; property names and constants stay unchanged."""
    # References that do not start with "#/" may start with an $id.
    notes = NOTES - {"$id"} if "$id" in str(schema) and "$ref" in str(schema) else NOTES
    return mapped(
        schema, lambda part: {rule: value for rule, value in part.items() if not _is_note(rule, value, notes)}
    )


def _is_note(rule: str, value: Any, notes: frozenset[str]) -> bool:
    return rule in notes or rule.startswith("x-") or (rule == "format" and value not in FORMATS)


def mapped(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A schema with `change` applied to every schema in it, outer ones first."""
    if isinstance(schema, list):  # the deprecated form of `items`
        return [mapped(part, change) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {rule: _part(rule, value, change) for rule, value in change(schema).items()}


def _part(rule: str, value: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    if rule in _BY_NAME and isinstance(value, dict):
        return {name: mapped(part, change) for name, part in value.items()}
    if rule in _LISTS and isinstance(value, list):
        return [mapped(part, change) for part in value]
    return mapped(value, change) if rule in _SINGLE else value
