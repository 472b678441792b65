"""Changes to rows of a corpus that is already written, by a task for each of its files.

revise(filesystem, corpus, Moves(numbers, splits, reasons))

A corpus is a folder of Parquet files by side (`split=train/...`). Rows are moved between sides; a row that is left
out loses its tokens and keeps an excerpt, as a line that could not be read does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet
import ray

from workflows.corpus.rows import numbers_of
from workflows.corpus.set_aside import EXCERPT_CHARACTERS
from workflows.corpus.split import LEFT_OUT, all_sides, write_sides

_KEPT_OF_LEFT_OUT = ("source", "line", "reason")


@dataclass(frozen=True)
class Moves:
    """Where rows belong; all arrays are (M,), in the order of the numbers."""

    numbers: Any
    """of the rows, int64"""

    splits: Sequence[str]
    reasons: Sequence[str | None]
    """why a row is left out"""


def revise(filesystem: Any, corpus: str, moves: Moves) -> None:
    """Bring every row of `moves` to its side."""
    if not len(moves.numbers):
        return
    targets = pa.table({"split": list(moves.splits), "reason": pa.array(moves.reasons, pa.string())})
    shared = ray.put((moves.numbers, targets))
    task = ray.remote(num_cpus=1)(_revise_file)
    ray.get([task.remote(filesystem, corpus, file, shared) for file in all_sides(filesystem, corpus).files])


def _revise_file(filesystem: Any, corpus: str, file: str, moves: tuple[Any, pa.Table]) -> None:
    if filesystem.get_file_info(file).type == pa.fs.FileType.NotFound:
        return  # an attempt that was lost had moved all of its rows
    numbers, targets = moves
    side = file.rpartition("split=")[2].partition("/")[0]
    own = numbers_of(pyarrow.parquet.read_table(file, columns=["source", "line"], filesystem=filesystem))
    at = np.minimum(np.searchsorted(numbers, own), len(numbers) - 1)
    is_moved = numbers[at] == own
    target = targets.take(at[is_moved])
    splits = np.full(len(own), side, object)
    splits[is_moved] = target["split"].to_pylist()
    if all(splits == side):
        return
    rows = pyarrow.parquet.read_table(file, filesystem=filesystem, partitioning=None)
    reasons = np.array(rows["reason"].to_pylist(), object)
    reasons[is_moved] = target["reason"].to_pylist()
    rows = rows.set_column(rows.schema.get_field_index("reason"), "reason", pa.array(reasons, pa.string()))
    write_sides(filesystem, corpus, file, without_tokens(rows, splits == LEFT_OUT), splits.tolist())


def without_tokens(rows: pa.Table, is_left_out: Any) -> pa.Table:
    """The rows; of those that are left out only where they stand, why, and an excerpt."""
    columns = {}
    for field in rows.schema:
        column = rows[field.name]
        if field.name == "messages":
            shown = pc.utf8_slice_codeunits(column, 0, EXCERPT_CHARACTERS)
        elif field.name in _KEPT_OF_LEFT_OUT:
            shown = column
        else:
            shown = pa.scalar(None, field.type)
        columns[field.name] = pc.if_else(pa.array(is_left_out), shown, column)
    return pa.table(columns, schema=rows.schema)
