"""A row of the corpus, written by `prepare` and read by workers; the numbers by which it and its replies are known.

place_of(number_of(source=2, line=17))                              # (2, 17)
reply_of(reply_numbers(number_of(source=2, line=17), message=5))    # (number_of(2, 17), 5)
"""

import itertools
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa

from workflows.stage import StageFailed

_LINE_BITS = 40
"""of a row's number; the rest is its source"""
_REPLY_BITS = {"files": 16, "lines of a file": 33, "messages of a conversation": 14}
"""of a reply's number, 63 bits in all: its file, its line, its place among the messages"""


class CorpusRow(TypedDict, total=False):
    """A conversation as tokens; a reader gets the requested columns, with source and line."""

    source: int
    """index of the file among the sources, from 0"""
    line: int
    input_ids: list[int]
    supervised: list[bool]
    """which tokens are supervised"""
    other_input_ids: list[int] | None
    """for a pair, the prompt with its rejected reply; for a labelled reply, with a reply to another prompt; otherwise
    None
    """
    other_supervised: list[bool] | None
    piece_lengths: list[int] | None
    """for a tree (models/trees.py), like the next one"""
    piece_parents: list[int] | None
    desirable: bool | None
    """for a labelled reply"""
    num_tokens: int
    num_targets: int
    truncated: bool
    num_messages: int
    messages: str
    """the conversation, as JSON"""
    tools: str | None
    """as JSON"""
    group: str | None
    """the value of `data.group_by`, as JSON"""
    language: str | None
    """as a BCP 47 tag"""
    private: str | None
    """how many private details it has of each kind, as a JSON object; None without any"""
    flags: str | None
    """the entries of the word list in it, as a JSON list; None without any"""
    split: str
    reason: str | None
    """why a line cannot be used, or why a conversation is left out"""
    reference_log_probability: float
    """of its reply under the base model, in nats; like the next one, a reference value from the stage `reference`"""
    other_reference_log_probability: float
    teacher_tokens: list[int]
    """the teacher's most likely tokens at every supervised position; like the next one, a reference value"""
    teacher_log_probabilities: list[float]


def number_of(source: Any, line: Any) -> Any:
    """The number of a row, or of arrays of rows: by it they are in the order of the sources."""
    return source << _LINE_BITS | line


def place_of(number: Any) -> tuple[Any, Any]:
    """The source and the line of a row, or of an array of rows."""
    return number >> _LINE_BITS, number & (1 << _LINE_BITS) - 1


def numbers_of(table: Any) -> Any:
    """(N,) the numbers of the rows of a table or a batch that has their `source` and `line`."""
    return number_of(*(table[name].to_numpy().astype("int64") for name in ("source", "line")))


def reply_numbers(row: Any, message: Any) -> Any:
    """The numbers of replies, arrays of the numbers of their rows and of their places among the messages, from 0: by
    it they are in the order of the sources and of the messages.

    Raises StageFailed for a place beyond 65,536 files, 2^33 lines or 16,384 messages.
    """
    number: Any = 0
    for (name, bits), values in zip(_REPLY_BITS.items(), (*place_of(row), message), strict=True):
        if np.max(values, initial=0) >> bits:
            raise StageFailed(
                f"data.deduplicate.compare: replies numbers up to {1 << bits:,} {name}, and there are more; compare "
                "conversations, or divide the data"
            )
        number = number << bits | values
    return number


def reply_of(number: Any) -> tuple[Any, Any]:
    """The number of the row of a reply and its place among the messages, or those of an array of replies."""
    *_, line_bits, message_bits = _REPLY_BITS.values()
    row = number >> message_bits
    return number_of(row >> line_bits, row & (1 << line_bits) - 1), number & (1 << message_bits) - 1


def table_of(rows: Sequence[CorpusRow], schema: pa.Schema) -> pa.Table:
    """The rows as a table; a column that a row lacks is null."""
    return pa.table([_column([row.get(field.name) for row in rows], field.type) for field in schema], schema=schema)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """`values` as a column; converts lists of numbers through one long array, which is ten times as fast."""
    if not pa.types.is_list(kind) or all(value is None for value in values):
        return pa.array(values, kind)
    lengths = [len(value) if value is not None else 0 for value in values]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat = np.fromiter(
        itertools.chain.from_iterable(value or () for value in values), kind.value_type.to_pandas_dtype()
    )
    is_null = pa.array([value is None for value in values])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, kind.value_type), mask=is_null)
