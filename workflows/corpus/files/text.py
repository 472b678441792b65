"""Read conversations from text files: JSON lines, JSON values in sequence or in arrays, tables with delimiters."""

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from models.errors import RayconteurError

MAX_BYTES = 64 << 20
"""maximum size of a conversation; a longer one is set aside and not kept in memory"""
EXCERPT_BYTES = 800
TOO_LONG = f"longer than {MAX_BYTES >> 20} MiB, the maximum of one conversation"

_DELIMITERS = ",\t;|"
_READ_BYTES = 1 << 20


class Record(NamedTuple):
    """A conversation as the file has it."""

    number: int
    text: bytes
    """one JSON object if `unread` is empty, otherwise its beginning"""
    unread: str = ""
    """why it cannot be read"""


class Refused(RayconteurError):
    """A file that is not read at all; the text continues after the file's name."""


class Recoded(io.RawIOBase):
    """A stream of text in another encoding, recoded as UTF-8."""

    def __init__(self, stream: Any, encoding: str) -> None:
        self._text = io.TextIOWrapper(stream, encoding=encoding, newline="")
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._waiting:
            self._waiting = self._text.read(_READ_BYTES // 4).encode()
        count = min(len(buffer), len(self._waiting))
        buffer[:count], self._waiting = self._waiting[:count], self._waiting[count:]
        return count


def json_lines(stream: io.BufferedReader, limit: int | None) -> Iterator[Record]:
    """Each non-empty line of the first `limit` lines."""
    number = 0
    while number != limit and (text := stream.readline(MAX_BYTES + 1)):
        number += 1
        if len(text) > MAX_BYTES and not text.endswith(b"\n"):
            _skip_line(stream)
            yield Record(number, text[:EXCERPT_BYTES], TOO_LONG)
        elif text.strip():
            yield Record(number, text)


def _skip_line(stream: io.BufferedReader) -> None:
    while (piece := stream.readline(_READ_BYTES)) and not piece.endswith(b"\n"):
        pass


def json_values(stream: Any) -> Iterator[Record]:
    """The elements of JSON arrays, and objects outside arrays, as unchanged bytes.

    Looks only at brackets and quotes, so an error inside an element affects no other. Raises EOFError if the last one
    is not closed.
    """
    splitter = _Splitter()
    number = 0
    while chunk := stream.read(_READ_BYTES):
        for text, is_long in splitter.feed(chunk):
            number += 1
            yield Record(number, text, TOO_LONG if is_long else "")
    for text, is_long in splitter.finish():
        number += 1
        yield Record(number, text, TOO_LONG if is_long else "")


# From a position outside a string to the next bracket, or to a quote whose string does not end in this chunk.
_OUTSIDE = re.compile(rb'[^"{}\[\]]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"{}\[\]]*+)*+', re.DOTALL)
# From a position inside a string to its closing quote, or to a backslash at the chunk's end.
_INSIDE = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_SCALAR = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[^\s,"]++', re.DOTALL)

_Value = tuple[bytes, bool]


class _Splitter:
    """Splits JSON into values: takes a stream in chunks of any size, and returns each value once it is complete."""

    def __init__(self) -> None:
        self._top = 0  # nesting depth of values: 1 inside an array
        self._depth = 0
        self._in_string = self._after_backslash = False
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[_Value]:
        start = at = 0
        while (at := self._next_bracket(chunk, at)) < len(chunk):
            if chunk[at] in b"{[":
                if self._depth == self._top:
                    yield from self._between(chunk[start:at])
                    start = at
                if chunk[at] in b"[" and self._depth == self._top == 0:
                    self._top, start = 1, at + 1
                self._depth += 1
            elif self._depth > self._top:
                self._depth -= 1
                if self._depth == self._top:
                    self._keep(chunk[start : at + 1])
                    start = at + 1
                    yield self._take()
            elif self._top == 1:
                yield from self._between(chunk[start:at])
                self._top = self._depth = 0
                start = at + 1
            at += 1
        self._keep(chunk[start:])

    def finish(self) -> Iterator[_Value]:
        if self._depth > self._top or self._in_string:
            raise EOFError("the JSON that begins here is not closed")
        if self._top:
            raise EOFError("the JSON array is not closed")
        yield from self._between(b"")

    def _next_bracket(self, chunk: bytes, at: int) -> int:
        """The position of the next bracket outside a string; the chunk's end if there is none."""
        while at < len(chunk):
            if self._in_string:
                at = self._end_of_string(chunk, at)
                continue
            found = _OUTSIDE.match(chunk, at)
            assert found is not None
            at = found.end()
            if at == len(chunk) or chunk[at] not in b'"':
                return at
            self._in_string = True
            at += 1
        return at

    def _end_of_string(self, chunk: bytes, at: int) -> int:
        if self._after_backslash:
            self._after_backslash = False
            at += 1
        found = _INSIDE.match(chunk, at)
        assert found is not None
        at = found.end()
        if at < len(chunk):
            self._after_backslash = chunk[at] in b"\\"
            self._in_string = self._after_backslash
            at += 1
        return at

    def _between(self, text: bytes) -> Iterator[_Value]:
        """Handle the text between values: nothing, or values that are not objects."""
        self._keep(text)
        text, is_long = self._take()
        if is_long:
            yield text, True
        elif text.strip(b" \t\r\n,"):
            yield from ((scalar, False) for scalar in _SCALAR.findall(text))

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > MAX_BYTES:
            self._pieces = [b"".join([*self._pieces[:1], piece])[:EXCERPT_BYTES]]
        elif piece:
            self._pieces.append(piece)

    def _take(self) -> _Value:
        taken = b"".join(self._pieces), self._size > MAX_BYTES
        self._pieces, self._size = [], 0
        return taken


def delimiter_of(start: bytes, is_whole: bool) -> str | None:
    """The delimiter of a table with this beginning; None if it is not a table with a header.

    Raises UnicodeDecodeError if it is not UTF-8.
    """
    end = len(start) if is_whole else start.rindex(b"\n") + 1 if b"\n" in start else 0
    text = start[:end].decode()
    if not text or re.search(r"[\0-\x08\x0e-\x1f]", text):
        return None
    for delimiter in sorted(_DELIMITERS, key=lambda each: -len(_first_rows(text, each)[0])):
        header, *rows = _first_rows(text, delimiter)
        if len(header) == 1:  # text with one column is a table if its cells contain JSON
            is_table = bool(re.fullmatch(r"\w[\w.-]*", header[0])) and all(
                row[0].lstrip().startswith(("{", "[")) for row in rows if row
            )
            return delimiter if rows and is_table else None
        if 2 * sum(len(row) == len(header) for row in rows) >= len(rows):
            return delimiter
    return None


def _first_rows(text: str, delimiter: str) -> list[list[str]]:
    rows: list[list[str]] = []
    with _LongCells():
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            if row:
                rows.append(row)
            if len(rows) == 20:
                break
    return rows


def cells(stream: io.BufferedReader, delimiter: str) -> Iterator[Record]:
    """Each row of a table as an object of strings, with the names of the first row; its number is that of its first
    line.
    """
    lines = _Lines(stream)
    header: list[str] = []
    with _LongCells():
        rows = csv.reader(lines, delimiter=delimiter)
        while True:
            number = lines.number + 1
            try:
                row = next(rows, None)
                if row is None:
                    return
                problem = _problem(row, header)
            except (csv.Error, ValueError) as error:
                row, problem = [], TOO_LONG if "field larger than" in str(error) else str(error)
            if not header and row:
                header = _checked(row)
            elif problem:
                yield Record(number, lines.last[:EXCERPT_BYTES], problem)
            elif row:
                # pandas writes row numbers as a column without a name.
                named = {name: cell for name, cell in zip(header, row, strict=True) if name}
                yield Record(number, json.dumps(named, ensure_ascii=False).encode())


def _problem(row: list[str], header: list[str]) -> str:
    if not row or not header or len(row) == len(header):
        return ""
    return f"the row has {len(row)} cells, the header {len(header)}; quote cells that contain the separator"


def _checked(header: list[str]) -> list[str]:
    named = [name for name in header if name]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise Refused(f"has two columns called {twice[0]!r}; rename one of them")
    return header


class _LongCells:
    """Let csv read cells as long as the longest conversation; its limit is global to the process."""

    def __enter__(self) -> None:
        self._before = csv.field_size_limit(MAX_BYTES)

    def __exit__(self, *_: object) -> None:
        csv.field_size_limit(self._before)


class _Lines:
    """Lines of text for csv. One that cannot be read raises ValueError, and the next call continues after it."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self.number = 0
        self.last = b""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.last = self._stream.readline(MAX_BYTES + 1)
        if not self.last:
            raise StopIteration
        self.number += 1
        if len(self.last) > MAX_BYTES and not self.last.endswith(b"\n"):
            _skip_line(self._stream)
            self.last = self.last[:EXCERPT_BYTES]
            raise ValueError(TOO_LONG)
        try:
            return self.last.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8: {error}") from None
