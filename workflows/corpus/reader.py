"""Read the corpus in a worker: memory-mapped, in the order of the sources, with the rows' reference values."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from models.chat.form import Message
from models.files import cache_folder
from workflows.corpus.rows import CorpusRow, numbers_of
from workflows.store import Store

_PLACE = ["source", "line"]
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Examples:
    """The rows of one split, with columns from several datasets."""

    parts: tuple[Any, ...]
    """memory-mapped `datasets.Dataset`s with the same order of rows; of equal columns, the last is read
    """

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, number: int) -> CorpusRow:
        return cast(CorpusRow, {name: value for part in self.parts for name, value in part[number].items()})

    def __iter__(self) -> Iterator[CorpusRow]:
        return (self[number] for number in range(len(self)))

    def largest_token(self) -> int:
        """The largest token id of all rows."""
        columns = [part.data.column(name) for part in self.parts for name in part.column_names if "input_ids" in name]
        chunks = [chunk.flatten() for column in columns for chunk in column.chunks]
        return max((pyarrow.compute.max(chunk).as_py() or 0 for chunk in chunks if len(chunk)), default=0)

    def column(self, name: str) -> Sequence[int]:
        """A whole column, such as `num_tokens`."""
        values: Sequence[int] = next(part[name] for part in reversed(self.parts) if name in part.column_names)
        return values


def open_examples(store: Store, keys: Mapping[str, str], split: str, columns: Sequence[str]) -> Examples:
    """A split of the corpus, with its reference values if `keys` (by stage) has them: `columns` and the counts.

    Values and rows are matched by (source, line).
    """
    wanted = [*columns, "num_tokens", "num_targets"]
    corpus = open_split(store, "prepare", keys["prepare"], "corpus", split, wanted)
    if "reference" not in keys:
        return Examples((corpus,))
    values = open_split(store, "reference", keys["reference"], "values", split, wanted)
    for name in _PLACE:
        mine, theirs = (np.asarray(part.with_format("numpy")[name][:]) for part in (corpus, values))
        assert np.array_equal(mine, theirs), f"prepare and reference have different rows: {name}"
    return Examples((corpus, values))


def corpus_files(store: Store, key: str, split: str) -> Any:
    """A split of the corpus as a `pyarrow.dataset.Dataset` where it lies, for those who read a part of it alone."""
    import pyarrow.dataset

    path = store.path("prepare", key, "corpus", f"split={split}")
    return pyarrow.dataset.dataset(path, filesystem=store.filesystem, format="parquet")


def conversations_of(filesystem: Any, file: str, only: Any = None) -> Iterator[tuple[Any, list[list[Message]]]]:
    """The numbers and the messages of the rows of one of the corpus's files, some at a time; `only` rows of these
    numbers, which costs less than reading all.
    """
    with pyarrow.parquet.ParquetFile(file, filesystem=filesystem) as opened:
        for batch in opened.iter_batches(_ROWS_AT_ONCE, columns=[*_PLACE, "messages"]):
            numbers, messages = numbers_of(batch), batch["messages"]
            if only is not None:
                taken = np.isin(numbers, only)
                numbers, messages = numbers[taken], messages.filter(pa.array(taken))
            yield numbers, [json.loads(each) for each in messages.to_pylist()]


def open_split(store: Store, stage: str, key: str, name: str, split: str, columns: Sequence[str]) -> Any:
    """Parquet files of an artifact as a `datasets.Dataset` on this machine, sorted by (source, line).

    It has these two columns, and those of `columns` that the files have.
    """
    import datasets

    datasets.disable_progress_bars()
    folder = store.local_folder(stage, key, name)
    files = sorted(str(path) for path in (folder / f"split={split}").glob("*.parquet"))
    found = [column for column in pyarrow.parquet.read_schema(files[0]).names if column in (*_PLACE, *columns)]
    cache = cache_folder() / "corpus" / key  # one copy for all workers on this machine
    return datasets.Dataset.from_parquet(files, columns=found, cache_dir=str(cache)).sort(_PLACE)
