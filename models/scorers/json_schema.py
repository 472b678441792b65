"""json_schema: whether a reply is JSON that is valid under a schema."""

import re
from collections.abc import Iterator
from typing import Any

import jsonschema
from jsonschema.validators import validator_for
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from models.chat.form import Message, read_json
from models.scorers.base import Scorer

_BLOCK = re.compile(r"```[^\n`]*\n(.*?)\n?[ \t]*```", re.S)


class JsonSchema(Scorer):
    """Expects a JSON schema, which refers to nothing outside of itself."""

    def read(self, value: Any) -> Any:
        if not isinstance(value, dict | bool):
            raise ValueError('`json_schema` must be a JSON schema, as in {"type": "object", "required": ["price"]}')
        try:
            _validator(value).check_schema(value)
            resolver = Registry().with_resource("", _resource(value)).resolver()
            for reference in _references(value):
                resolver.lookup(reference)
        except jsonschema.SchemaError as error:
            raise ValueError(f"`json_schema` is not a JSON schema: {error.json_path} {error.message}") from None
        except Unresolvable as error:
            raise ValueError(f"`json_schema` refers to {error.ref!r}, which is not in it") from None
        return value

    def score(self, expected: Any, reply: Message) -> float:
        """The whole reply is the JSON, or the whole reply is one block in ```."""
        text = reply["content"].strip()
        block = _BLOCK.fullmatch(text)
        try:
            value = read_json(block[1] if block else text)
        except ValueError:
            return 0.0
        return float(_validator(expected)(expected, registry=Registry()).is_valid(value))


def _validator(schema: Any) -> Any:
    return validator_for(schema, default=jsonschema.Draft202012Validator)


def _resource(schema: Any) -> Any:
    return Resource.from_contents(schema, default_specification=DRAFT202012)


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)
