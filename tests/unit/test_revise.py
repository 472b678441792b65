"""Rows of a written corpus change sides, also if an attempt is lost halfway."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import pytest
from lost_writes import Writes

from workflows.corpus.revision.revise import _revise_file
from workflows.corpus.rows import numbers_of
from workflows.corpus.split import HELD_OUT, LEFT_OUT, TRAIN, all_sides

LOCAL = pa.fs.LocalFileSystem()
Rows = list[tuple[int, str, str | None]]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Six conversations to train on, in one file."""
    folder = tmp_path / "corpus" / "split=train"
    folder.mkdir(parents=True)
    rows = {
        "source": pa.array([0] * 6, pa.int32()), "line": pa.array(range(1, 7), pa.int64()),
        "reason": pa.array([None] * 6, pa.string()), "messages": [f"m{line}" for line in range(1, 7)],
    }  # fmt: skip
    pyarrow.parquet.write_table(pa.table(rows), folder / "a.parquet")
    return tmp_path / "corpus"


def attempt(corpus: Path, sides: dict[int, str]) -> None:
    moved = pa.table({"source": pa.array([0] * len(sides), pa.int32()), "line": pa.array(list(sides), pa.int64())})
    targets = pa.table({"split": list(sides.values()), "reason": pa.array(["why"] * len(sides))})
    _revise_file(LOCAL, str(corpus), f"{corpus}/split=train/a.parquet", (numbers_of(moved), targets))


def rows_of(corpus: Path) -> Rows:
    rows = all_sides(LOCAL, str(corpus)).to_table(columns=["line", "split", "reason"]).to_pylist()
    return sorted((row["line"], row["split"], row["reason"]) for row in rows)


SOME = {2: LEFT_OUT, 5: HELD_OUT}
ALL = dict.fromkeys(range(1, 7), LEFT_OUT)


@pytest.mark.parametrize("sides", [SOME, ALL])
def test_an_attempt_after_a_lost_one_comes_to_the_same(
    corpus: Path, sides: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [(line, sides.get(line, TRAIN), "why" if line in sides else None) for line in range(1, 7)]
    whole = corpus.parent / "whole"
    shutil.copytree(corpus, whole)
    writes = Writes()
    monkeypatch.setattr(pyarrow.parquet, "write_table", writes)
    attempt(whole, sides)
    attempt(whole, sides)  # its end was not known before the worker was lost
    assert rows_of(whole) == expected
    for lost_at in range(1, writes.count + 1):
        copy = corpus.parent / f"lost{lost_at}"
        shutil.copytree(corpus, copy)
        monkeypatch.setattr(pyarrow.parquet, "write_table", Writes(lost_at))
        with pytest.raises(ConnectionError):
            attempt(copy, sides)
        monkeypatch.setattr(pyarrow.parquet, "write_table", Writes())
        attempt(copy, sides)
        assert rows_of(copy) == expected
