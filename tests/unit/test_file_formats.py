"""Files of conversations in all formats: the same conversations, detected by content, with line numbers from 1."""

import bz2
import csv
import datetime
import decimal
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from workflows.corpus.files import tables as file_tables
from workflows.corpus.files import text as file_text
from workflows.corpus.files.formats import UnreadableFile, records
from workflows.corpus.files.sources import SourceFile
from workflows.corpus.files.text import TOO_LONG, Record, json_values

CONVERSATIONS: list[dict[str, Any]] = [
    {
        "messages": [
            {
                "role": "user",
                "content": f'Is {number} "{{[odd]}}"? \\ \u00e9\u4f60\U0001f600\nNext line, 2024-01-02, 007',
            },
            {"role": "assistant", "content": f"{number}.0"},
        ],
        "id": f"00{number}",
    }
    for number in range(1, 8)
]
LINES = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in CONVERSATIONS).encode()
TABLE = pa.Table.from_pylist(CONVERSATIONS)


def _parquet() -> bytes:
    stream = io.BytesIO()
    pa.parquet.write_table(TABLE, stream, row_group_size=3)
    return stream.getvalue()


def _arrow(make: Callable[..., Any]) -> bytes:
    stream = io.BytesIO()
    with make(stream, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=2)
    return stream.getvalue()


def _delimited(delimiter: str) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter)
    writer.writerow(["messages", "id"])
    writer.writerows([json.dumps(each["messages"], ensure_ascii=False), each["id"]] for each in CONVERSATIONS)
    return stream.getvalue().encode()


FORMS = {
    "json lines": LINES,
    "json lines, empty ones between": LINES.replace(b"\n", b"\r\n\r\n"),
    "array on one line": json.dumps(CONVERSATIONS).encode(),
    "array, pretty": json.dumps(CONVERSATIONS, indent=2, ensure_ascii=False).encode(),
    "array, an element a line": b"[\n" + LINES.rstrip().replace(b"\n", b",\n") + b"\n]\n",
    "objects, pretty, one after another": "\n".join(json.dumps(each, indent=1) for each in CONVERSATIONS).encode(),
    "parquet": _parquet(),
    "arrow file": _arrow(pa.ipc.new_file),
    "arrow stream": _arrow(pa.ipc.new_stream),
    "csv": _delimited(","),
    "tsv": _delimited("\t"),
    "semicolons": _delimited(";"),
    "gzip": gzip.compress(LINES[:500]) + gzip.compress(LINES[500:]),
    "bzip2": bz2.compress(LINES),
    "xz": lzma.compress(LINES),
    "zstd": bytes(pa.compress(LINES, codec="zstd", asbytes=True)),
    "lz4": bytes(pa.compress(LINES, codec="lz4", asbytes=True)),
    "packed array": gzip.compress(json.dumps(CONVERSATIONS, indent=4).encode()),
    "packed csv": lzma.compress(_delimited(",")),
    "packed arrow file": gzip.compress(_arrow(pa.ipc.new_file)),
    "packed arrow stream": bz2.compress(_arrow(pa.ipc.new_stream)),
    "utf-8 with a mark": b"\xef\xbb\xbf" + LINES,
    "array, utf-8 with a mark": b"\xef\xbb\xbf" + json.dumps(CONVERSATIONS).encode(),
    **{name: LINES.decode().encode(name) for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be")},
    "array, utf-16": json.dumps(CONVERSATIONS, ensure_ascii=False, indent=1).encode("utf-16"),
    "csv, utf-16": _delimited(",").decode().encode("utf-16"),
}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Record]]:
    """The records of a file with this content, whose name has no meaningful ending."""

    def of(content: bytes, limit: int | None = None) -> list[Record]:
        file = tmp_path / "talk.jsonl"
        file.write_bytes(content)
        return list(records(SourceFile(str(file), str(file), limit, "", field="data.sources.3.path")))

    return of


def told(found: list[Record]) -> list[dict[str, Any]]:
    """The values of the records; for CSV, cells with JSON are parsed."""
    assert [record.unread for record in found] == [""] * len(found)
    said = [json.loads(record.text) for record in found]
    return [
        {name: json.loads(it) if name == "messages" and isinstance(it, str) else it for name, it in each.items()}
        for each in said
    ]


@pytest.mark.parametrize("form", FORMS)
def test_every_format_computes_the_same(read: Callable[..., list[Record]], form: str) -> None:
    found = read(FORMS[form])
    assert told(found) == CONVERSATIONS
    numbers = [record.number for record in found]
    if "csv" in form or form in ("tsv", "semicolons"):
        assert numbers == [2, 3, 4, 5, 6, 7, 8]
    elif "empty" in form:
        assert numbers == [1, 3, 5, 7, 9, 11, 13]
    else:
        assert numbers == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("form", FORMS)
def test_a_limit_ends_every_form(read: Callable[..., list[Record]], form: str) -> None:
    found = read(FORMS[form], limit=3)
    assert told(found) == CONVERSATIONS[: 2 if "empty" in form else 3]


@pytest.mark.parametrize("packing", ["gzip", "bzip2", "xz", "zstd", "lz4"])
def test_a_truncated_compressed_file_is_named_with_its_field(read: Callable[..., list[Record]], packing: str) -> None:
    with pytest.raises(UnreadableFile, match=r"^data\.sources\.3\.path: .*talk\.jsonl:\d+: the file breaks off here"):
        read(FORMS[packing][:-20])


@pytest.mark.parametrize(("form", "kept", "line"), [
    ("array, pretty", -150, 7), ("array on one line", -1, 8), ("objects, pretty, one after another", -3, 7),
    ("arrow stream", -900, r"\d"), ("parquet", -1, 1),
])  # fmt: skip
def test_truncated_files_are_named_with_their_last_line(
    read: Callable[..., list[Record]], form: str, kept: int, line: int | str
) -> None:
    with pytest.raises(UnreadableFile, match=rf"talk\.jsonl:{line}: the file breaks off here"):
        read(FORMS[form][:kept])


def test_numbers_of_csv_are_lines_also_after_cells_of_several(read: Callable[..., list[Record]]) -> None:
    text = 'instruction,input,output\n"a\nb","","1\n2\n3"\n\nc,,007\n,"2024-01-02",TRUE\n'
    found = read(text.encode())
    assert [record.number for record in found] == [2, 7, 8]
    assert [json.loads(record.text) for record in found] == [
        {"instruction": "a\nb", "input": "", "output": "1\n2\n3"},
        {"instruction": "c", "input": "", "output": "007"},
        {"instruction": "", "input": "2024-01-02", "output": "TRUE"},
    ]


def test_rows_of_csv_that_cannot_be_read_are_set_aside_and_the_next_are_read(
    read: Callable[..., list[Record]],
) -> None:
    rows = [b",question,answer", b"0,a,b", b"1,too,many,cells", b"2,c", b"3,d,e"]
    # Far beyond the bytes that decide the format.
    far = [b"4,x," + b"y" * 1000] * 1200
    found = read(b"\n".join([*rows, *far, b"5,caf\xe9,x", b"6,f,g"]))
    assert [(record.number, record.unread) for record in found if record.unread] == [
        (3, "the row has 4 cells, the header 3; quote cells that contain the separator"),
        (4, "the row has 2 cells, the header 3; quote cells that contain the separator"),
        (1206, "not UTF-8: 'utf-8' codec can't decode byte 0xe9 in position 5: invalid continuation byte"),
    ]
    assert json.loads(found[-1].text) == {"question": "f", "answer": "g"}


def test_an_error_in_an_array_affects_only_its_element(read: Callable[..., list[Record]]) -> None:
    elements = [
        b'{"a": 1}',
        b'{"a": tru}',
        b'{"a": "\xff"}',
        b'{"a": NaN}',
        b'{"a": "\\ud83d"}',
        b'[{"b": "]"}]',
        b"{}",
    ]
    found = read(b"[" + b",\n ".join(elements) + b"]")
    assert [record.text for record in found] == elements
    assert [record.number for record in found] == list(range(1, 8))


def test_values_between_objects_are_counted(read: Callable[..., list[Record]]) -> None:
    found = read(b'["x, y", 3, {"a": 1}, null, {"b": 2}]')
    assert [record.text for record in found] == [b'"x, y"', b"3", b'{"a": 1}', b"null", b'{"b": 2}']


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_values_are_cut_alike_in_chunks_of_any_size(size: int) -> None:
    class Chunks(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            return super().read(size)

    odd = [{"a": '\\"]}{["\\\\', "b": [[{"c": "\\"}], "\\\\\\"]}, {"d\\": "{"}, {}]
    for content in (json.dumps(odd).encode(), b"\n".join(json.dumps(each, indent=1).encode() for each in odd)):
        assert [json.loads(record.text) for record in json_values(Chunks(content))] == odd


@pytest.mark.parametrize("form", ["lines", "array", "csv", "parquet", "arrow stream"])
def test_a_long_conversation_is_set_aside_and_the_next_is_read(
    read: Callable[..., list[Record]], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(file_text, "MAX_BYTES", 3 << 20)
    monkeypatch.setattr(file_tables, "MAX_BYTES", 3 << 20)
    texts = ["a", "b" * (5 << 20), "c"]
    table = pa.table({"text": texts, "n": ["1", "2", "3"]})
    stream = io.BytesIO()
    if form == "lines":
        stream.writelines(json.dumps(row).encode() + b"\n" for row in table.to_pylist())
    elif form == "array":
        stream.write(json.dumps(table.to_pylist()).encode())
    elif form == "csv":
        stream.write(b"text,n\n" + b"".join(f"{text},1\n".encode() for text in texts))
    elif form == "parquet":
        pa.parquet.write_table(table, stream)
    else:
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
    found = read(stream.getvalue())
    assert [record.unread for record in found] == ["", TOO_LONG, ""]
    assert len(found[1].text) <= 1000
    assert [json.loads(found[index].text)["text"] for index in (0, 2)] == ["a", "c"]


@pytest.mark.parametrize(("content", "what"), [
    (b"PK\x03\x04\x14\0\x06\0", "is a zip archive"),
    (b"%PDF-1.7\n%\xe2\xe3", "is a PDF"),
    (b"SQLite format 3\0\x10", "is an SQLite database"),
    (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "has no supported format"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a Git LFS pointer"),
    (b"<!DOCTYPE html>\n<html>", "is an HTML or XML page"),
    (gzip.compress(FORMS["parquet"]), "is Parquet inside a compressed file"),
    (b"question;answer\nWie sp\xe4t?;Drei\n", r"byte 0xe4 at 22 is not UTF-8: .*iconv"),
    (b"Just some words\nand more of them\n", "has no supported format"),
    (b"\xff\xfe{\0\0\xd8x\0", "as utf-16 it cannot be decoded"),
    (b"a,b,a\n1,2,3\n", "has two columns called 'a'"),
])  # fmt: skip
def test_other_files_are_refused_by_name(read: Callable[..., list[Record]], content: bytes, what: str) -> None:
    with pytest.raises(UnreadableFile, match=rf"^data\.sources\.3\.path: .*talk\.jsonl .*{what}") as raised:
        read(content)
    if "columns" not in what:
        assert "supported: JSON lines, a JSON array" in str(raised.value)
        assert "begins with b'" in str(raised.value)


@pytest.mark.parametrize("content", [b"", b" \n\n", gzip.compress(b"", mtime=0)])
def test_an_empty_file_has_no_records(read: Callable[..., list[Record]], content: bytes) -> None:
    assert read(content) == []


@pytest.mark.parametrize("content", [
    b"{\n" * 4, b"{broken\n" + LINES, b"# made by hand\n" + LINES, b'{"messages": [\n' + LINES, b"null\n" + LINES,
    b"[1]\n[2]\n",
])  # fmt: skip
def test_json_lines_stay_so_where_the_first_are_broken(read: Callable[..., list[Record]], content: bytes) -> None:
    assert [record.text for record in read(content)] == content.splitlines(keepends=True)


def test_values_of_tables_keep_their_meaning(read: Callable[..., list[Record]]) -> None:
    when = datetime.datetime(2024, 5, 6, 7, 8, 9, 123456)
    struct = pa.struct([("role", pa.string()), ("name", pa.string()), ("weight", pa.int64())])
    columns = {
        "messages": pa.array([[{"role": "user", "name": None, "weight": 0}, None], None], pa.list_(struct)),
        "date": pa.array(["2024-01-02", "007"]),
        "label": pa.array([True, False]),
        "big": pa.array([2**63 - 1, None]),
        "score": pa.array([0.1, float("nan")]),
        "scores": pa.array([[0.5, float("nan"), None], []]),
        "price": pa.array([decimal.Decimal("12.50"), decimal.Decimal("3.00")]),
        "exact": pa.array([decimal.Decimal("0.12345678901234567890123")] * 2),
        "when": pa.array([when, None]),
        "nano": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns", "UTC")),
        "day": pa.array([when.date(), None]),
        "image": pa.array([b"\x89PNG\xff", b"plain text"]),
        "kind": pa.array(["a", "b"]).dictionary_encode(),
        "large": pa.array(["x", "y"], pa.large_string()),
        "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int32())),
        "arguments": pa.array(['{"city": null, "days": [1, "2"]}', None], pa.json_()),
    }
    stream = io.BytesIO()
    pa.parquet.write_table(pa.table(columns), stream)
    first, second = (json.loads(record.text) for record in read(stream.getvalue()))
    assert first == {
        "messages": [{"role": "user", "weight": 0}, None], "date": "2024-01-02", "label": True, "big": 2**63 - 1,
        "score": 0.1, "scores": [0.5, None, None], "price": 12.5, "exact": "0.12345678901234567890123",
        "when": "2024-05-06T07:08:09.123456", "nano": "2023-11-14T22:13:20.123456789+00:00", "day": "2024-05-06",
        "image": {"bytes": 5}, "kind": "a", "large": "x", "map": {"k": 1},
        "arguments": {"city": None, "days": [1, "2"]},
    }  # fmt: skip
    assert second == {
        "date": "007", "label": False, "scores": [], "price": 3, "exact": "0.12345678901234567890123",
        "image": "plain text", "kind": "b", "large": "y",
    }  # fmt: skip
