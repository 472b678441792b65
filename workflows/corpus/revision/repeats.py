"""Replies of a written corpus that repeat another one are no longer trained on, by a task for each of its files.

stop_training_on(filesystem, corpus, shared, Repeats(numbers, originals))

Such a reply gets `train: false` among the messages of its conversation, which is encoded again: the row becomes that
of a line with this mark. A conversation in which no other reply is left to train on is left out.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import ray

from models.chat.form import Message
from models.text.near_duplicates import Numbers
from workflows.corpus.encoding import Encoding
from workflows.corpus.errors import UnusableLine
from workflows.corpus.lines import Shared, encoding_of
from workflows.corpus.revision.revise import without_tokens
from workflows.corpus.rows import CorpusRow, numbers_of, reply_of, table_of
from workflows.corpus.split import LEFT_OUT, used_files, write_sides

_CHANGED = ("input_ids", "supervised", "piece_lengths", "piece_parents", "num_tokens", "num_targets", "truncated",
            "messages", "reason")  # fmt: skip


@dataclass(frozen=True)
class Repeats:
    """Replies by their numbers, and what each repeats; both (M,), in the order of the numbers."""

    numbers: Numbers
    originals: Sequence[str]
    """its file, line and message"""


def stop_training_on(filesystem: Any, corpus: str, shared: Shared, repeats: Repeats) -> None:
    """Mark all of these replies, and encode their conversations again."""
    if not len(repeats.numbers):
        return
    everything = ray.put(repeats)
    task = ray.remote(num_cpus=1)(_in_file)
    ray.get([task.remote(filesystem, corpus, file, shared, everything) for file in used_files(filesystem, corpus)])


def _in_file(filesystem: Any, corpus: str, file: str, shared: Shared, repeats: Repeats) -> None:
    revise_file(filesystem, corpus, file, encoding_of(shared.spec, shared.tokenizer), repeats)


def revise_file(filesystem: Any, corpus: str, file: str, encoding: Encoding, repeats: Repeats) -> None:
    """The same for one file of the corpus; a second time, it changes nothing."""
    if filesystem.get_file_info(file).type == pa.fs.FileType.NotFound:
        return  # an attempt that was lost had left out all of its rows
    own = numbers_of(pyarrow.parquet.read_table(file, columns=["source", "line"], filesystem=filesystem))
    affected = np.flatnonzero(np.isin(own, reply_of(repeats.numbers)[0]))
    if not len(affected):
        return
    rows = pyarrow.parquet.read_table(file, filesystem=filesystem, partitioning=None)
    found = rows.select(["messages", "tools"]).take(pa.array(affected)).to_pylist()
    changed = [
        _changed(encoding, row, number, repeats) for row, number in zip(found, own[affected].tolist(), strict=True)
    ]
    splits = np.full(len(own), file.rpartition("split=")[2].partition("/")[0], object)
    splits[affected[[row["reason"] is not None for row in changed]]] = LEFT_OUT
    rows = without_tokens(_with(rows, affected, changed), splits == LEFT_OUT)
    write_sides(filesystem, corpus, file, rows, splits.tolist())


def _changed(encoding: Encoding, row: CorpusRow, number: int, repeats: Repeats) -> CorpusRow:
    """The changed columns of the row of this number; with a reason if it is left out."""
    of, places = reply_of(repeats.numbers)
    first, end = np.searchsorted(of, [number, number + 1])
    messages: list[Message] = json.loads(row["messages"])
    for place in places[first:end]:
        messages[place]["train"] = False
    try:
        return {**encoding.again(json.dumps(messages, ensure_ascii=False), row["tools"]), "reason": None}
    except UnusableLine:
        repeated = f"message {places[first]} is a near-duplicate of {repeats.originals[first]}"
        return {
            "messages": row["messages"],
            "reason": f"data.deduplicate: no other reply to train on is left; {repeated}",
        }


def _with(rows: pa.Table, affected: Any, changed: Sequence[CorpusRow]) -> pa.Table:
    """The rows with the changed columns of those that are `affected`, given by their places."""
    schema = pa.schema([rows.schema.field(name) for name in _CHANGED])
    new = table_of(changed, schema)
    taken = np.arange(len(rows))
    taken[affected] = len(rows) + np.arange(len(affected))
    for field in schema:
        column = pa.chunked_array([*rows[field.name].chunks, *new[field.name].chunks], field.type)
        at = rows.schema.get_field_index(field.name)
        rows = rows.set_column(at, field, column.take(pa.array(taken)))
    return rows
