"""Convert rows of Parquet and Arrow to equivalent JSON objects.

Leaves out a struct's empty members, because Arrow gives every struct of a column all members that any of them has.
Binary values become `{"bytes": length}`, which no layout reads as text.
"""

import datetime
import decimal
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from workflows.corpus.files.text import EXCERPT_BYTES, MAX_BYTES, TOO_LONG, Record

# Number of rows to convert at a time; fewer if they are large.
_ROWS, _BYTES = 512, 4 << 20

_Convert = Callable[[Any], Any]


def parquet(filesystem: Any, path: str) -> Iterator[Record]:
    """The rows of a Parquet file."""
    with filesystem.open_input_file(path) as raw:
        # Otherwise pyarrow reads whole column chunks, and a file may be a single one.
        file = pa.parquet.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20)
        total = sum(file.metadata.row_group(index).total_byte_size for index in range(file.metadata.num_row_groups))
        yield from _rows(file.iter_batches(batch_size=_at_once(total, file.metadata.num_rows)), file.schema_arrow)


def arrow_file(filesystem: Any, path: str) -> Iterator[Record]:
    """The rows of an Arrow file; a local one is memory-mapped, because one batch may be the whole file."""
    is_local = isinstance(filesystem, pa.fs.LocalFileSystem)
    with pa.memory_map(path) if is_local else filesystem.open_input_file(path) as raw:
        reader = pa.ipc.open_file(raw)
        yield from _rows((reader.get_batch(index) for index in range(reader.num_record_batches)), reader.schema)


def arrow_stream(stream: Any, has_magic: bool) -> Iterator[Record]:
    """The rows of a stream of Arrow batches. An Arrow file is one too, between its magic bytes and its footer."""
    if has_magic:
        stream.read(8)
    reader = pa.ipc.open_stream(stream)
    yield from _rows(reader, reader.schema)


def _at_once(size: int, rows: int) -> int:
    return max(1, min(_ROWS, _BYTES * rows // max(1, size)))


def _rows(batches: Any, schema: Any) -> Iterator[Record]:
    convert = _struct(list(schema))
    number = 0
    for batch in batches:
        step = _at_once(batch.nbytes, batch.num_rows)
        for start in range(0, batch.num_rows, step):
            for row in _values(batch.slice(start, step)):
                number += 1
                text = b"" if row is None else json.dumps(convert(row), ensure_ascii=False).encode()
                if row is None or len(text) > MAX_BYTES:
                    yield Record(number, text[:EXCERPT_BYTES], TOO_LONG)
                else:
                    yield Record(number, text)


def _values(piece: Any) -> Iterator[Any]:
    """The rows of a batch; None for a row that is too large to convert."""
    if piece.nbytes <= MAX_BYTES:
        yield from piece.to_pylist(maps_as_pydicts="lossy")
        return
    for index in range(piece.num_rows):
        row = piece.slice(index, 1)
        yield None if row.nbytes > MAX_BYTES else row.to_pylist(maps_as_pydicts="lossy")[0]


def _conversion(kind: Any) -> _Convert | None:
    """A function that converts a column's values to plain JSON; None if they are already. It gets no empty values."""
    if pa.types.is_struct(kind):
        return _struct([kind.field(index) for index in range(kind.num_fields)])
    if pa.types.is_map(kind):
        return _map(_conversion(kind.item_type))
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _conversion(kind.value_type)
    if isinstance(kind, pa.JsonType):
        return json.loads
    if isinstance(kind, pa.BaseExtensionType):
        return str if kind.extension_name == "arrow.uuid" else _conversion(kind.storage_type)
    if hasattr(kind, "value_type"):
        return _list(_conversion(kind.value_type))
    for is_kind, convert in _SCALARS:
        if is_kind(kind):
            return convert
    return None if _is_plain(kind) else str


def _is_plain(kind: Any) -> bool:
    types = pa.types
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    return any(check(kind) for check in (*texts, types.is_boolean, types.is_integer, types.is_null))


def _struct(fields: list[Any]) -> _Convert:
    conversions = {field.name: _conversion(field.type) for field in fields}

    def convert(row: Mapping[str, Any]) -> dict[str, object]:
        found = {}
        for name, value in row.items():
            if value is not None:
                change = conversions[name]
                value = value if change is None else change(value)
            if value is not None:
                found[name] = value
        return found

    return convert


def _list(change: _Convert | None) -> _Convert | None:
    if change is None:
        return None
    return lambda values: [None if value is None else change(value) for value in values]


def _map(change: _Convert | None) -> _Convert:
    def convert(values: Mapping[object, Any]) -> dict[str, object]:
        return {
            str(key): value if value is None or change is None else change(value) for key, value in values.items()
        }

    return convert


def _float(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


def _decimal(value: decimal.Decimal) -> int | float | str:
    """The number if JSON can represent it, otherwise its digits as text."""
    if value == value.to_integral_value():
        return int(value)
    return float(value) if decimal.Decimal(repr(float(value))) == value else str(value)


def _time(value: datetime.date | datetime.time | datetime.datetime) -> str:
    return value.isoformat()


def _binary(value: bytes) -> Any:
    """The text, if it is text: programs older than Parquet's string type write strings as binary."""
    try:
        text = bytes(value).decode()
    except UnicodeDecodeError:
        return {"bytes": len(value)}
    return {"bytes": len(value)} if any(sign < " " and sign not in "\t\r\n" for sign in text) else text


_SCALARS: tuple[tuple[Callable[[Any], bool], _Convert], ...] = (
    (pa.types.is_floating, _float),
    (pa.types.is_decimal, _decimal),
    (pa.types.is_timestamp, _time),
    (pa.types.is_date, _time),
    (pa.types.is_time, _time),
    (pa.types.is_binary, _binary),
    (pa.types.is_large_binary, _binary),
    (pa.types.is_fixed_size_binary, _binary),
    (pa.types.is_binary_view, _binary),
)
