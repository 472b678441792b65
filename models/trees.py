"""Conversations that branch, as trees of pieces: not all their replies are learned after the same tokens.

tree = tree_of(row)              # for models.packing.pack_trees: the model reads shared beginnings once
for input_ids, supervised in sequences_of(row): ...          # the same tree as whole conversations
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

COLUMNS = ("input_ids", "supervised", "piece_lengths", "piece_parents")
"""a conversation's columns in a row of the corpus"""


class Tree(NamedTuple):
    """A conversation that branches: each piece continues another one."""

    pieces: Sequence[Sequence[int]]
    parents: Sequence[int]
    """for each piece the earlier piece that it continues; -1 if it starts a conversation"""
    supervised: Sequence[Sequence[bool]]
    """for each piece which of its tokens are supervised"""


def tree_of(row: Mapping[str, Any]) -> Tree:
    """The tree of a row of the corpus: `input_ids` and `supervised`, split by `piece_lengths`, with their
    `piece_parents`; a row without these columns is one piece.
    """
    ids, supervised = row["input_ids"], row["supervised"]
    lengths = row.get("piece_lengths")
    if lengths is None or not len(lengths):
        return Tree([ids], [-1], [supervised])
    ends = list(accumulate(lengths))
    cuts = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    return Tree([ids[cut] for cut in cuts], list(row["piece_parents"]), [supervised[cut] for cut in cuts])


def sequences_of(row: Mapping[str, Any]) -> list[tuple[list[int], list[bool]]]:
    """The row as whole conversations, (input_ids, supervised) of each path from a root to a leaf. A token that
    several share is supervised only in the first of them.
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
    """The supervised parts of a row, each with the tokens before it, in order; never the row's first token."""
    found = []
    for ids, supervised in sequences_of(row):
        marks = [False, *map(bool, supervised[1:]), False]
        edges = [place for place in range(1, len(marks)) if marks[place] != marks[place - 1]]
        found += [(ids[:begin], ids[begin:end]) for begin, end in zip(edges[::2], edges[1::2], strict=True)]
    return found


def paths(parents: Sequence[int]) -> Iterator[list[int]]:
    """The pieces on the path from the root to each leaf."""
    inner = set(parents)
    for last in range(len(parents)):
        if last not in inner:
            yield [*ancestors(parents, last), last]


def ancestors(parents: Sequence[int], piece: int) -> list[int]:
    """The pieces before one in its conversation, first to last."""
    found: list[int] = []
    while (piece := parents[piece]) >= 0:
        found.append(piece)
    return found[::-1]
