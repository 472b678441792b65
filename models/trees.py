"""Conversations whose replies are not all learned after the same words, as trees of pieces.

tree = tree_of(row)              # for models.packing.pack_trees: what replies have in common is read once
for input_ids, supervised in sequences_of(row): ...          # the same as whole conversations
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

COLUMNS = ("input_ids", "supervised", "piece_lengths", "piece_parents")
"""what a row of the corpus has of a conversation"""


class Tree(NamedTuple):
    """A conversation whose replies are not all learned after the same words: each piece goes on from another one."""

    pieces: Sequence[Sequence[int]]
    parents: Sequence[int]
    """for each piece the earlier one that it goes on from, -1 where it begins"""
    supervised: Sequence[Sequence[bool]]
    """for each piece which of its tokens are learned"""


def tree_of(row: Mapping[str, Any]) -> Tree:
    """A row of the corpus: `input_ids` and `supervised`, cut by `piece_lengths` with their `piece_parents`; one piece
    where there are none.
    """
    ids, supervised = row["input_ids"], row["supervised"]
    lengths = row.get("piece_lengths")
    if lengths is None or not len(lengths):
        return Tree([ids], [-1], [supervised])
    ends = list(accumulate(lengths))
    cuts = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    return Tree([ids[cut] for cut in cuts], list(row["piece_parents"]), [supervised[cut] for cut in cuts])


def sequences_of(row: Mapping[str, Any]) -> list[tuple[list[int], list[bool]]]:
    """The same row as whole conversations, (input_ids, supervised) of each way from a beginning to an end. A token
    that several have in common is supervised in the first of them alone.
    """
    tree = tree_of(row)
    found, is_done = [], [False] * len(tree.pieces)
    for path in paths(tree.parents):
        ids: list[int] = []
        supervised: list[bool] = []
        for piece in path:
            ids += list(tree.pieces[piece])
            supervised += [bool(mark) and not is_done[piece] for mark in tree.supervised[piece]]
            is_done[piece] = True
        found.append((ids, supervised))
    return found


def replies_of(row: Mapping[str, Any]) -> list[tuple[list[int], list[int]]]:
    """The learned parts of a row, each with the tokens before it, in order; never the row's first token."""
    found = []
    for ids, supervised in sequences_of(row):
        marks = [False, *map(bool, supervised[1:]), False]
        edges = [place for place in range(1, len(marks)) if marks[place] != marks[place - 1]]
        found += [(ids[:begin], ids[begin:end]) for begin, end in zip(edges[::2], edges[1::2], strict=True)]
    return found


def paths(parents: Sequence[int]) -> Iterator[list[int]]:
    """The pieces from a beginning to each that no other goes on from."""
    inner = set(parents)
    for last in range(len(parents)):
        if last not in inner:
            yield [*ancestors(parents, last), last]


def ancestors(parents: Sequence[int], piece: int) -> list[int]:
    """The pieces that stand before one, first to last."""
    found: list[int] = []
    while (piece := parents[piece]) >= 0:
        found.append(piece)
    return found[::-1]
