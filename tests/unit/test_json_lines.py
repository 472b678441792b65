"""Files with one JSON object a line, and what reads them: each mistake with field, file and line."""

import json
from pathlib import Path
from typing import Any

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
