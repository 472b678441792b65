"""Files that a pipeline names, with one JSON object a line; each error has field, file and line.

for line in json_lines_at("evaluate.questions", "questions.jsonl"):
    line.place                      # questions.jsonl:7
    line.read(question_of)          # a ValueError of question_of gets the field and the place
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from models.errors import nearest
from models.files import open_uri, read_file
from workflows.stage import StageFailed
from workflows.store import without_secrets

JsonRecord = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class JsonLine:
    """A JSON object with where it stands."""

    field: str
    """of the pipeline file, dotted"""
    place: str
    """file:line"""
    record: JsonRecord

    def read(self, parse: Callable[[JsonRecord], T]) -> T:
        """What `parse` makes of the object; raises StageFailed for its ValueError."""
        try:
            return parse(self.record)
        except ValueError as error:
            raise StageFailed(f"{self.field}: {self.place}: {error}") from None


def json_lines_at(field: str, uri: str) -> list[JsonLine]:
    """The objects of the file at a path or URI; raises StageFailed for what is none."""
    try:
        filesystem, path = open_uri(uri, patient=False)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(field, uri, error) from error
    return list(json_lines(field, filesystem, path))


def json_lines(field: str, filesystem: Any, path: str) -> Iterator[JsonLine]:
    """The objects of a file, from each line that is not empty; raises StageFailed for what is none."""
    try:
        content = read_file(filesystem, path)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(field, path, error) from error
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise StageFailed(f"{field}: {path}:{number}: not UTF-8 ({error}); save the file as UTF-8") from None
        except (ValueError, RecursionError) as error:
            raise StageFailed(f"{field}: {path}:{number}: not JSON ({error}); write one JSON object a line") from None
        if not isinstance(record, dict):
            raise StageFailed(f"{field}: {path}:{number}: not a JSON object; write one a line")
        yield JsonLine(field, f"{path}:{number}", record)


def value_of(record: JsonRecord, key: str) -> Any:
    """The value of a key; raises ValueError, which names a similar key, if there is none."""
    if key not in record:
        raise ValueError(f"has no `{key}`{rename_hint(key, record)}")
    return record[key]


def one_key(record: JsonRecord, keys: Sequence[str]) -> str:
    """The one of these keys that an object has; raises ValueError if it has none or several."""
    found = [key for key in keys if key in record]
    if len(found) != 1:
        hints = () if found else (hint for key in keys if (hint := rename_hint(key, record)))
        raise ValueError(
            f"must have exactly one of {listed(keys)}, and has {listed(found) or 'none'}{next(iter(hints), '')}"
        )
    return found[0]


def rename_hint(key: str, keys: Iterable[str]) -> str:
    """The fix for a key that is missing, if a similar one is there; else empty."""
    near = nearest(key, keys)
    return f"; rename `{near}` if that is meant" if near else ""


def listed(keys: Sequence[str]) -> str:
    """Keys as words: `a`, `b` and `c`."""
    *first, last = [f"`{key}`" for key in keys] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _unreadable(field: str, uri: str, error: Exception) -> StageFailed:
    return StageFailed(f"{field}: cannot read {without_secrets(uri)}: {error}")
