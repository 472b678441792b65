"""Decide which conversations are held out by their text, so that the same one has the same side in every corpus."""

import hashlib
import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet

TRAIN, HELD_OUT, QUARANTINE = "train", "held_out", "quarantine"


def split_key(messages: list[Any], is_pair: bool) -> str:
    """The text that decides the side: for pairs and labelled replies the prompt, so its replies stay together."""
    return json.dumps(messages[:-1] if is_pair else messages, ensure_ascii=False)


def group_of(text: bytes, field: str) -> str | None:
    """The value of a record's key, or of a key within another (`metadata.user`), as JSON; None if it has none."""
    value = json.loads(text.decode().removeprefix("\ufeff"))
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return None if value is None else json.dumps(value, sort_keys=True, ensure_ascii=False)


def side_of(key: str, held_out_share: float) -> str:
    """The side of a conversation with this key."""
    return HELD_OUT if _falls(key) < held_out_share else TRAIN


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
        moves = pa.array([place == nearest for place in places])
        taken, kept = rows.filter(moves), rows.filter(pc.invert(moves))
        filesystem.create_dir(f"{corpus}/split={empty}", recursive=True)
        name = file.rpartition("/")[2]
        pa.parquet.write_table(taken, f"{corpus}/split={empty}/{name}", filesystem=filesystem)
        if kept.num_rows:
            pa.parquet.write_table(kept, file, filesystem=filesystem)
        else:
            filesystem.delete_file(file)
        moved += taken.num_rows
    return moved


def _falls(content: str) -> float:
    """A number in [0, 1), computed from the text's hash."""
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") / 2**64
