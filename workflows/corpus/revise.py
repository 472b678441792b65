"""Changes to rows of a corpus that is already written, by a task for each of its files.

revise(filesystem, corpus, sides=Sides(numbers, splits, reasons))

A corpus is a folder of Parquet files by side (`split=train/...`). Rows are moved between sides; a row that is set
aside loses its tokens and keeps an excerpt, as a line that could not be read does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet
import ray

from workflows.corpus.near_duplicates import number_of
from workflows.corpus.split import QUARANTINE

EXCERPT_CHARACTERS = 200
_KEPT_OF_SET_ASIDE = ("source", "line", "messages", "reason")


@dataclass(frozen=True)
class Moves:
    """Where rows belong; all arrays are (M,), in the order of the numbers."""

    numbers: Any
    """of the rows, int64"""

    splits: Sequence[str]
    reasons: Sequence[str | None]
    """why a row is set aside"""


def revise(filesystem: Any, corpus: str, moves: Moves) -> None:
    """Bring every row of `moves` to its side."""
    files = pa.dataset.dataset(corpus, filesystem=filesystem, format="parquet", partitioning="hive").files
    table = pa.table({"split": list(moves.splits), "reason": pa.array(moves.reasons, pa.string())})
    shared = ray.put((moves.numbers, table))
    task = ray.remote(num_cpus=1)(_revise_file)
    ray.get([task.remote(filesystem, corpus, file, shared) for file in files])


def _revise_file(filesystem: Any, corpus: str, file: str, moves: tuple[Any, pa.Table]) -> None:
    numbers, places = moves
    side = file.rpartition("split=")[2].partition("/")[0]
    name = file.rpartition("/")[2]
    place = pyarrow.parquet.read_table(file, columns=["source", "line"], filesystem=filesystem)
    own = number_of(*(place[column].to_numpy().astype(np.int64) for column in ("source", "line")))
    at = np.minimum(np.searchsorted(numbers, own), max(0, len(numbers) - 1))
    is_moved = (numbers[at] == own) if len(numbers) else np.zeros(len(own), bool)
    targets = places.take(at[is_moved])
    splits = np.full(len(own), side, object)
    splits[is_moved] = targets["split"].to_pylist()
    if all(split == side for split in splits):
        return
    rows = pyarrow.parquet.read_table(file, filesystem=filesystem, partitioning=None)
    reasons = np.array(rows["reason"].to_pylist(), object)
    reasons[is_moved] = targets["reason"].to_pylist()
    rows = rows.set_column(rows.schema.get_field_index("reason"), "reason", pa.array(reasons, pa.string()))
    for split in sorted(set(splits) - {side}):
        taken = rows.filter(pa.array(splits == split))
        filesystem.create_dir(f"{corpus}/split={split}", recursive=True)
        pyarrow.parquet.write_table(
            _set_aside(taken) if split == QUARANTINE else taken,
            f"{corpus}/split={split}/from-{side}-{name}", filesystem=filesystem,
        )  # fmt: skip
    kept = rows.filter(pa.array(splits == side))
    if kept.num_rows:
        pyarrow.parquet.write_table(kept, file, filesystem=filesystem)
    else:
        filesystem.delete_file(file)


def _set_aside(rows: pa.Table) -> pa.Table:
    """Without tokens."""
    columns = {}
    for field in rows.schema:
        kept = rows[field.name] if field.name in _KEPT_OF_SET_ASIDE else pa.nulls(rows.num_rows, field.type)
        columns[field.name] = (
            pc.utf8_slice_codeunits(kept, 0, EXCERPT_CHARACTERS) if field.name == "messages" else kept
        )
    return pa.table(columns, schema=rows.schema)
