"""JSON schemas without what says nothing about a value: zod writes `$schema`, pydantic `title` and `default`.

rules_of({"$schema": "...", "type": "string", "default": "a"})    # {"type": "string"}
"""

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
    if isinstance(schema, list):  # the older form of `items`
        return [rules_of(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    # An $id is what references begin with, where there are any that are not "#/...".
    notes = NOTES - {"$id"} if "$id" in schema and "$ref" in str(schema) else NOTES
    return {rule: _part(rule, value) for rule, value in schema.items() if not _is_note(rule, value, notes)}


def _is_note(rule: str, value: Any, notes: frozenset[str]) -> bool:
    return rule in notes or rule.startswith("x-") or (rule == "format" and value not in FORMATS)


def _part(rule: str, value: Any) -> Any:
    if rule in _BY_NAME and isinstance(value, dict):
        return {name: rules_of(part) for name, part in value.items()}
    if rule in _LISTS and isinstance(value, list):
        return [rules_of(part) for part in value]
    return rules_of(value) if rule in _SINGLE else value
