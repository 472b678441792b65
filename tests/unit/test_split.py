"""Which conversations are held out, also in corpora so small that one side would be empty."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import pytest

from workflows.corpus.split import HELD_OUT, TRAIN, fill_empty_side, side_of, split_key

LOCAL = pa.fs.LocalFileSystem()


def talk(number: int, reply: str = "Yes.") -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": reply}]


def write(corpus: Path, side: str, files: dict[str, list[list[dict[str, str]]]]) -> None:
    (corpus / f"split={side}").mkdir(parents=True)
    for name, talks in files.items():
        columns: dict[str, Any] = {"messages": [json.dumps(each) for each in talks], "line": list(range(len(talks)))}
        pa.parquet.write_table(pa.table(columns), corpus / f"split={side}" / name)


def read(corpus: Path, side: str) -> list[list[dict[str, str]]]:
    files = sorted((corpus / f"split={side}").glob("*.parquet"))
    return [json.loads(text) for file in files for text in pa.parquet.read_table(file)["messages"].to_pylist()]


@pytest.mark.parametrize(("empty", "full"), [(HELD_OUT, TRAIN), (TRAIN, HELD_OUT)])
def test_the_nearest_conversation_goes_to_the_empty_side(empty: str, full: str, tmp_path: Path) -> None:
    talks = [talk(number) for number in range(12)]
    write(tmp_path, full, {"0.parquet": talks[:5], "1.parquet": talks[5:]})
    assert fill_empty_side(LOCAL, str(tmp_path), empty, is_pair=False) == 1
    [moved] = read(tmp_path, empty)
    left = read(tmp_path, full)
    assert moved not in left
    assert sorted(map(json.dumps, [*left, moved])) == sorted(map(json.dumps, talks))
    # At the share that holds out exactly one conversation, or all but one, it is the same one.
    shares = [number / 1000 for number in range(1, 1000)]
    sides = ([side_of(split_key(each, False), share) for each in talks] for share in shares)
    alone = next(row for row in sides if row.count(HELD_OUT) == (1 if empty == HELD_OUT else len(talks) - 1))
    assert talks[alone.index(empty)] == moved


def test_replies_to_one_prompt_move_together_and_a_file_may_become_empty(tmp_path: Path) -> None:
    prompts = [talk(number) for number in range(6)]
    first = min(
        prompts, key=lambda each: [side_of(split_key(each, True), s / 999) for s in range(999)].index(HELD_OUT)
    )
    others = [each for each in prompts if each is not first]
    twin = [first[0], {"role": "assistant", "content": "No."}]
    write(tmp_path, TRAIN, {"0.parquet": [first], "1.parquet": [*others, twin]})
    assert fill_empty_side(LOCAL, str(tmp_path), HELD_OUT, is_pair=True) == 2
    assert read(tmp_path, HELD_OUT) == [first, twin]
    assert read(tmp_path, TRAIN) == others


def test_one_text_alone_cannot_be_on_both_sides(tmp_path: Path) -> None:
    write(tmp_path, TRAIN, {"0.parquet": [talk(1), talk(1)]})
    assert fill_empty_side(LOCAL, str(tmp_path), HELD_OUT, is_pair=False) == 0
    assert read(tmp_path, TRAIN) == [talk(1), talk(1)]
