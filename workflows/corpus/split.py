"""Which conversations are held out: by their text alone, so that the same one is on the same side in every corpus."""

import hashlib
import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet

TRAIN, HELD_OUT, QUARANTINE = "train", "held_out", "quarantine"


def split_key(messages: list[Any], is_pair: bool) -> str:
    """The text that decides the side: of pairs and judged replies the prompt, so that its replies stay together."""
    return json.dumps(messages[:-1] if is_pair else messages, ensure_ascii=False)


def side_of(key: str, held_out_share: float) -> str:
    """The side of a conversation with that key."""
    return HELD_OUT if _falls(key) < held_out_share else TRAIN


def fill_empty_side(filesystem: Any, corpus: str, empty: str, is_pair: bool) -> int:
    """Move the conversations whose key is nearest to the share from the other side to the `empty` one.

    `corpus` is a folder of Parquet files by side (`split=...`). Returns how many were moved: 0 where all have the
    same key, and then nothing is changed.
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
    """A number in [0, 1) that belongs to this text."""
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") / 2**64
