"""Records: the JSON objects that the store keeps and `--json` prints, as types.

@dataclass(frozen=True, kw_only=True)
class Speed(Record):
    load_s: float
    tokens_per_second: float | None = optional()

Speed.from_json({"load_s": 2, "a newer key": 1}).to_json()      # {"load_s": 2.0}
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Self

from pydantic import TypeAdapter

JsonObject = Mapping[str, object]
"""a JSON object that is passed on unchanged: the settings behind a key, stored figures, a spec as plain data"""

_OPTIONAL = "is left out of JSON where it is None"


def optional() -> Any:
    """A field that is left out of the JSON if it is None; other fields are written as null."""
    return field(default=None, metadata={_OPTIONAL: True})


@dataclass(frozen=True, kw_only=True)
class Record:
    """Values that become a JSON object, with a key for each field."""

    def to_json(self) -> dict[str, object]:
        """Plain data: dicts, lists, strings, numbers."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if not _is_missing(self, each)}
        return {name: _plain(value) for name, value in values.items()}

    @classmethod
    def from_json(cls, content: JsonObject) -> Self:
        """Read what `to_json` wrote, in this or another version: ignores unknown keys; missing ones get defaults."""
        kind: Any = cls
        record: Self = _reader(kind).validate_python(content)
        return record


def _is_missing(record: Record, each: Any) -> bool:
    return _OPTIONAL in each.metadata and getattr(record, each.name) is None


@cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
