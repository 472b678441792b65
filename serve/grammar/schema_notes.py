"""JSON schemas without what says nothing about a value: zod writes `$schema`, pydantic `title` and `default`.

rules_of({"$schema": "...", "type": "string", "default": "a"})    # {"type": "string"}
"""

from collections.abc import Callable
from typing import Any

NOTES = frozenset({
    "$schema", "$id", "$comment", "title", "description", "default", "example", "examples", "deprecated", "readOnly",
    "writeOnly", "contentMediaType", "contentEncoding", "discriminator", "externalDocs", "xml",
})  # fmt: skip
"""what notes are called in JSON Schema, and in OpenAPI's"""

# Formats that llguidance follows; others are notes, as JSON Schema has it ("format" is an annotation).
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
    """The same schema without notes; names of properties and constants stay whatever they are."""
    # An $id is what references begin with, where there are any that are not "#/...".
    notes = NOTES - {"$id"} if "$id" in str(schema) and "$ref" in str(schema) else NOTES
    return mapped(
        schema, lambda part: {rule: value for rule, value in part.items() if not _is_note(rule, value, notes)}
    )


def _is_note(rule: str, value: Any, notes: frozenset[str]) -> bool:
    return rule in notes or rule.startswith("x-") or (rule == "format" and value not in FORMATS)


def mapped(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A schema with every schema in it changed, the outer ones first."""
    if isinstance(schema, list):  # the older form of `items`
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
