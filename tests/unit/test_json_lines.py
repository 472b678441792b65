"""Files with one JSON object a line, and what reads them: each mistake with field, file and line."""

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from workflows.json_lines import JsonRecord, json_lines_at, one_key, value_of
from workflows.judge.labels import read_labels
from workflows.scorecard.questions import read_questions
from workflows.spec import EvaluateSpec, SuiteSpec
from workflows.stage import StageFailed
from workflows.suites.read import read_suites

FIELD = "evaluate.questions"


def write(folder: Path, content: bytes) -> str:
    (folder / "lines.jsonl").write_bytes(content)
    return str(folder / "lines.jsonl")


def test_lines_have_their_places(tmp_path: Path) -> None:
    file = write(tmp_path, '\ufeff{"a": "b\u2028c"}\r\n\r\n  \n{"a": 2}'.encode())
    assert [(line.place, line.record) for line in json_lines_at(FIELD, file)] == [
        (f"{file}:1", {"a": "b\u2028c"}), (f"{file}:4", {"a": 2}),
    ]  # fmt: skip


PACKED = {
    "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress,
    "zstd": lambda content: pa.compress(content, codec="zstd", asbytes=True),
    "lz4": lambda content: pa.compress(content, codec="lz4", asbytes=True),
}  # fmt: skip


@pytest.mark.parametrize("packing", PACKED)
def test_a_compressed_file_needs_no_ending(tmp_path: Path, packing: str) -> None:
    """As in the Hub's cache, where a name with an ending is a link to a name without."""
    (tmp_path / "blob").write_bytes(PACKED[packing](b'{"a": 1}\n{"a": 2}\n'))
    (tmp_path / "lines.jsonl.gz").symlink_to(tmp_path / "blob")
    for name in ("blob", "lines.jsonl.gz"):
        file = str(tmp_path / name)
        assert [(line.place, line.record) for line in json_lines_at(FIELD, file)] == [
            (f"{file}:1", {"a": 1}), (f"{file}:2", {"a": 2}),
        ]  # fmt: skip


def test_an_ending_does_not_make_a_file_compressed(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl.gz").write_bytes(b'{"a": 1}')
    assert [line.record for line in json_lines_at(FIELD, str(tmp_path / "lines.jsonl.gz"))] == [{"a": 1}]


@pytest.mark.parametrize("packing", PACKED)
def test_a_truncated_compressed_file_is_refused(tmp_path: Path, packing: str) -> None:
    file = write(tmp_path, PACKED[packing](b'{"a": 1}\n' * 1000)[:-9])
    with pytest.raises(StageFailed, match=rf"^evaluate\.questions: cannot read {file}: ."):
        json_lines_at(FIELD, file)


@pytest.mark.parametrize(("line", "words"), [
    (b"{", r"not JSON \(.*\); write one JSON object a line"),
    (b"[" * 100_000, r"not JSON \(.*\); write one JSON object a line"),
    (b"[1]", "not a JSON object; write one a line"),
    ("{\"a\": \"\u00fc\"}".encode("latin-1"), r"not UTF-8 \(.*\); save the file as UTF-8"),
])  # fmt: skip
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, line: bytes, words: str) -> None:
    file = write(tmp_path, b"{}\n" + line + b"\n")
    with pytest.raises(StageFailed, match=rf"^evaluate\.questions: {file}:2: {words}$"):
        json_lines_at(FIELD, file)


@pytest.mark.parametrize("uri", ["", "nowhere.jsonl", "nothing://there"])
def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path, uri: str) -> None:
    place = uri if "://" in uri else str(tmp_path / uri)
    with pytest.raises(StageFailed, match=rf"^evaluate\.questions: cannot read {place}: ."):
        json_lines_at(FIELD, place)


def test_what_a_record_lacks_is_named_with_a_similar_key(tmp_path: Path) -> None:
    [line] = json_lines_at(FIELD, write(tmp_path, b'{"questoin": "When?", "text": "x"}'))

    def refusal(parse: Any) -> str:
        with pytest.raises(StageFailed, match=rf"^evaluate\.questions: {line.place}: ") as error:
            line.read(parse)
        return str(error.value).partition(f"{line.place}: ")[2]

    def both(record: JsonRecord) -> str:
        return one_key(record, ("questoin", "text"))

    assert line.read(lambda record: value_of(record, "text")) == "x"
    assert refusal(lambda record: value_of(record, "facts")) == "has no `facts`"
    renamed = "; rename `questoin` if that is meant"
    assert refusal(lambda record: value_of(record, "question")) == f"has no `question`{renamed}"
    assert line.read(lambda record: one_key(record, ("question", "text"))) == "text"
    assert refusal(both) == "must have exactly one of `questoin` and `text`, and has `questoin` and `text`"
    assert refusal(lambda record: one_key(record, ("turns", "messages", "question"))) == (
        f"must have exactly one of `turns`, `messages` and `question`, and has none{renamed}"
    )


def test_all_readers_name_field_file_and_line(tmp_path: Path) -> None:
    file = write(tmp_path, json.dumps({"fcats": [["x"]]}).encode())
    read = {
        "evaluate.questions": lambda: read_questions(file),
        "evaluate.judge.labels": lambda: read_labels(file),
        "evaluate.suites.0": lambda: read_suites(EvaluateSpec(suites=[SuiteSpec(path=file, scorer="facts")])),
    }
    for field, reader in read.items():
        with pytest.raises(StageFailed, match=f"^{field}: {file}:1: (has no|must have)"):
            reader()


def test_a_question_needs_its_facts(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r":1: has no `facts`; rename `fact` if that is meant$"):
        read_questions(write(tmp_path, b'{"question": "When?", "fact": [["x"]]}'))
    with pytest.raises(StageFailed, match=r":1: `facts` must be a list of facts"):
        read_questions(write(tmp_path, b'{"question": "When?", "facts": ["x"]}'))
    with pytest.raises(StageFailed, match="has no questions; leave the field out"):
        read_questions(write(tmp_path, b"\n"))
