"""A row of the corpus, written by `prepare` and read by workers, and the number by which a row is known.

place_of(number_of(source=2, line=17))      # (2, 17)
"""

from typing import Any, TypedDict

_LINE_BITS = 40
"""of a row's number; the rest is its source"""


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
    reason: str
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
