"""Read files of conversations in all supported formats, each conversation as one JSON object.

for number, text, unread in records(file):      # file: workflows.corpus.files.sources.SourceFile

A file's content decides its format, never its name. Everything is read as a stream, in memory that does not grow with
the file. `number` locates a conversation: the line in JSON lines and CSV, the element of a JSON array, the row of a
table, counted from 1.
"""

import contextlib
import csv
import io
import itertools
import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from models.errors import RayconteurError
from models.files import MAGIC_BYTES, packing_of, unpacked
from workflows.corpus.files.hub import located
from workflows.corpus.files.sources import SourceFile
from workflows.corpus.files.tables import arrow_file, arrow_stream, parquet
from workflows.corpus.files.text import Recoded, Record, Refused, cells, delimiter_of, json_lines, json_values

FORMS = (
    "JSON lines, a JSON array, JSON objects one after another, CSV and TSV with a header, Parquet, Arrow (files and "
    "streams); text in UTF-8, UTF-16 or UTF-32; compressed with gzip, zstd, bzip2, xz or lz4"
)
_HEAD_BYTES = 1 << 20
_READ_BYTES = 1 << 20

_TABLES = ((b"PAR1", "parquet"), (b"ARROW1", "arrow file"), (b"\xff\xff\xff\xff", "arrow stream"))
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)  # fmt: skip
# Files that users give by mistake, and what to do with them.
_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer instead of the file; fetch it with `git lfs pull`"),
    (b"PAR1", "Parquet inside a compressed file; decompress it, Parquet is compressed internally"),
    (b"PARE", "encrypted Parquet; decrypt it"),
    (b"PK\x03\x04", "a zip archive (or .xlsx); extract it, or save the table as CSV"),
    (b"7z\xbc\xaf", "a 7z archive; extract it"),
    (b"Rar!", "a RAR archive; extract it"),
    (b"%PDF", "a PDF; extract the conversations"),
    (b"SQLite format 3", "an SQLite database; export the table as CSV or JSON lines"),
    (b"ORC", "ORC; write it as Parquet"),
    (b"Obj\x01", "Avro; write it as Parquet"),
    (b"FEA1", "Feather of version 1; write it as Feather version 2 (Arrow) or Parquet"),
    (b"\x89HDF", "HDF5; write it as Parquet"),
    (b"\x80\x04", "a Python pickle, which can run code; write it as JSON lines"),
    (b"\x80\x05", "a Python pickle, which can run code; write it as JSON lines"),
    (b"<", "an HTML or XML page, such as a login page instead of a download; give the data"),
)


class UnreadableFile(RayconteurError):
    """A file that cannot be read, or not to its end; the text has the field, the file and the fix."""


@dataclass(frozen=True)
class _Form:
    """A file's format: compression, encoding, and how it contains conversations."""

    kind: str
    packing: str = ""
    encoding: str = ""
    """empty for UTF-8"""


def records(file: SourceFile) -> Iterator[Record]:
    """Every conversation of a file, up to its limit, as the bytes of a JSON object.

    For one that cannot be read, `unread` is the reason, and the text its beginning. Raises UnreadableFile.
    """
    number = 0
    try:
        filesystem, path = located(file.source, file.path)
        form = _form_of(filesystem, path)
        for record in _read(filesystem, path, form, file.limit):
            number = record.number
            yield record
    except Refused as error:
        raise UnreadableFile(f"{file.field}: {file.path} {error}") from None
    except (OSError, EOFError, lzma.LZMAError, UnicodeError, pa.ArrowException) as error:
        raise UnreadableFile(
            f"{file.field}: {file.path}:{number + 1}: the file breaks off here: {error}; repair the file"
        ) from error


def _read(filesystem: Any, path: str, form: _Form, limit: int | None) -> Iterator[Record]:
    if form.kind == "parquet":
        found = parquet(filesystem, path)
    elif form.kind == "arrow file" and not form.packing:
        found = arrow_file(filesystem, path)
    else:
        found = _from_stream(filesystem, path, form, limit)
    # For JSON lines, the limit includes empty lines, as in an editor.
    return found if form.kind == "lines" else itertools.islice(found, limit)


def _from_stream(filesystem: Any, path: str, form: _Form, limit: int | None) -> Iterator[Record]:
    with filesystem.open_input_file(path) as raw:
        stream = _decoded(unpacked(raw, form.packing), form.encoding)
        if form.kind.startswith("arrow"):
            yield from arrow_stream(stream, has_magic=form.kind == "arrow file")
        elif form.kind == "lines":
            yield from json_lines(stream, limit)
        elif form.kind == "values":
            yield from json_values(stream)
        else:
            yield from cells(stream, form.kind)


def _decoded(stream: io.BufferedReader, encoding: str) -> io.BufferedReader:
    if encoding == "utf-8-sig":
        stream.read(3)
        return stream
    return io.BufferedReader(Recoded(stream, encoding), _READ_BYTES) if encoding else stream


def _form_of(filesystem: Any, path: str) -> _Form:
    """Detect the format from the first bytes; raises Refused."""
    with filesystem.open_input_file(path) as raw:
        head = raw.read(MAGIC_BYTES)
        packing = packing_of(head)
        raw.seek(0)
        head = _beginning(unpacked(raw, packing))
    for magic, kind in _TABLES:
        if head.startswith(magic) and not (kind == "parquet" and packing):
            return _Form(kind, packing)
    encoding = _encoding_of(head)
    text = _as_utf8(head, encoding)
    found = _kind_of_text(text, is_whole=len(head) < _HEAD_BYTES)
    if found is None:
        raise Refused(_refusal(head))
    return _Form(found, packing, encoding)


def _beginning(stream: io.BufferedReader) -> bytes:
    """Read what is there: the reader reports where a truncated file ends."""
    head = b""
    with contextlib.suppress(OSError, EOFError, lzma.LZMAError):
        while len(head) < _HEAD_BYTES and (piece := stream.read1(_HEAD_BYTES - len(head))):
            head += piece
    return head


def _encoding_of(head: bytes) -> str:
    """The encoding, from its byte order mark or from the zero bytes of the first character; empty for UTF-8."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    zeros = tuple(byte == 0 for byte in head[:4])
    patterns: dict[tuple[bool, ...], str] = {
        (False, True, False, True): "utf-16-le", (True, False, True, False): "utf-16-be",
        (False, True, True, True): "utf-32-le", (True, True, True, False): "utf-32-be",
    }  # fmt: skip
    return patterns.get(zeros, "")


def _as_utf8(head: bytes, encoding: str) -> bytes:
    if not encoding or encoding == "utf-8-sig":
        return head[3:] if encoding else head
    try:
        # Fewer bytes than were read, so that only a truncated file has an incomplete character.
        return Recoded(io.BytesIO(head), encoding).read(_HEAD_BYTES) or b""
    except UnicodeError as error:
        raise Refused(f"{_refusal(head)}; as {encoding} it cannot be decoded: {error}") from None


def _kind_of_text(text: bytes, is_whole: bool) -> str | None:
    """`lines`, `values` (a JSON array, or objects over several lines), the delimiter of a table, or None."""
    start = text.lstrip()
    if not start or start.startswith((b"{", b"[")):
        return "values" if start and _spans_lines(start) else "lines"
    lines = [line for line in start.split(b"\n")[: 64 if is_whole else -1] if line.strip()]
    if any(line.lstrip().startswith(b"{") and _is_json(line) for line in lines[:16]):
        return "lines"  # after broken lines, which are set aside
    if any(start.startswith(magic) for magic, _ in _FOREIGN):
        return None
    try:
        return delimiter_of(start, is_whole)
    except (UnicodeDecodeError, csv.Error):
        return None


def _spans_lines(start: bytes) -> bool:
    """Whether JSON with this beginning is an array of conversations or objects over several lines, not JSON lines."""
    first, newline, rest = start.partition(b"\n")
    follows = rest.lstrip()[:1]
    if _is_json(first):
        return start.startswith(b"[") and follows != b"["
    if start.startswith(b"["):
        return not newline or follows != b"[" or first.strip() == b"["
    # An object written by json.dumps(indent=...). In JSON lines, another object follows a broken first line.
    return (newline != b"" and follows in (b'"', b"}")) or _first_value_spans_lines(start)


def _first_value_spans_lines(start: bytes) -> bool:
    try:
        first = next(json_values(io.BytesIO(start)), None)
    except EOFError:  # it continues beyond the bytes read
        return False
    return first is not None and b"\n" in first.text and _is_json(first.text)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _refusal(head: bytes) -> str:
    what = next((f"is {words}" for magic, words in _FOREIGN if head.lstrip().startswith(magic)), "")
    if head[257:262] == b"ustar":
        what = "is a tar archive; extract it"
    if not what:
        what = "has no supported format"
        try:
            head[:-4].decode()
        except UnicodeDecodeError as error:
            if b"\0" not in head:
                what += (
                    f" (byte {head[error.start]:#04x} at {error.start:,} is not UTF-8: convert text with "
                    "`iconv -f WINDOWS-1252 -t UTF-8`, or from its actual encoding)"
                )
    return f"{what}; it begins with {head[:16]!r}; supported: {FORMS}"
