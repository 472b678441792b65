"""Decide which conversations are held out by their text, so that the same one has the same side in every corpus."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet

TRAIN, HELD_OUT = "train", "held_out"
QUARANTINE = "quarantine"
"""of lines that cannot be used"""
LEFT_OUT = "left_out"
"""of conversations that the settings of `data` leave out"""


def split_key(messages: list[Any], is_pair: bool) -> str:
    """The text that decides the side: for pairs and labelled replies the prompt, so its replies stay together."""
    return json.dumps(messages[:-1] if is_pair else messages, ensure_ascii=False)


def side_of(key: str, held_out_share: float) -> str:
    """The side of a conversation with this key."""
    return HELD_OUT if _falls(key) < held_out_share else TRAIN


def all_sides(filesystem: Any, corpus: str) -> Any:
    """A corpus, a folder of Parquet files by side, as a `pyarrow.dataset.Dataset` with the column `split`."""
    return pa.dataset.dataset(corpus, filesystem=filesystem, format="parquet", partitioning="hive")


def used_files(filesystem: Any, corpus: str, sides: Sequence[str] = (TRAIN, HELD_OUT)) -> list[str]:
    """The files of the conversations of these sides."""
    folders = {f"split={side}" for side in sides}
    return [file for file in all_sides(filesystem, corpus).files if file.split("/")[-2] in folders]


def write_sides(filesystem: Any, corpus: str, file: str, rows: pa.Table, splits: Sequence[str]) -> None:
    """Write all rows of a file of the corpus again, each into a file of its side.

    An attempt that is lost halfway leaves the file as it was, so that another one writes the same.
    """
    side, _, name = file.rpartition("split=")[2].partition("/")
    sides = pa.array(splits, pa.string())
    for split in sorted({*splits} - {side}):
        filesystem.create_dir(f"{corpus}/split={split}", recursive=True)
        taken = rows.filter(pc.equal(sides, split))
        pa.parquet.write_table(taken, f"{corpus}/split={split}/from-{side}-{name}", filesystem=filesystem)
    kept = rows.filter(pc.equal(sides, side))
    if kept.num_rows:
        folder, _, name = file.rpartition("/")
        unfinished = f"{folder}/.{name}"  # no reader takes a hidden file
        pa.parquet.write_table(kept, unfinished, filesystem=filesystem)
        filesystem.move(unfinished, file)
    else:
        filesystem.delete_file(file)


def fill_empty_side(filesystem: Any, corpus: str, empty: str, is_pair: bool) -> int:
    """Move the conversations whose key is nearest to the share from the other side to the `empty` one.

    `corpus` is a folder of Parquet files by side (`split=...`). Returns the number of moved conversations: 0, without
    a change, if all have the same key.
    """
    other = TRAIN if empty == HELD_OUT else HELD_OUT
    folder = f"{corpus}/split={other}"
    files = pa.dataset.dataset(folder, filesystem=filesystem, format="parquet").files
    falls: dict[str, list[float]] = {}
    for file in files:
        column = pa.parquet.read_table(file, columns=["messages"], filesystem=filesystem)["messages"].to_pylist()
        falls[file] = [_falls(split_key(json.loads(text), is_pair)) for text in column]
    everything = {place for places in falls.values() for place in places}
    if len(everything) < 2:
        return 0
    nearest = min(everything) if empty == HELD_OUT else max(everything)
    moved = 0
    for file, places in falls.items():
        if nearest not in places:
            continue
        rows = pa.parquet.read_table(file, filesystem=filesystem, partitioning=None)
        splits = [empty if place == nearest else other for place in places]
        write_sides(filesystem, corpus, file, rows, splits)
        moved += splits.count(empty)
    return moved


def _falls(content: str) -> float:
    """A number in [0, 1), computed from the text's hash."""
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") / 2**64
