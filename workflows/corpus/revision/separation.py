"""What becomes of near-duplicates in a written corpus, by `data.deduplicate`.

figures, found = separate(filesystem, corpus, data, paths, board)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from models.text.near_duplicates import Numbers, components
from workflows.corpus.revision.near_duplicates import NearDuplicates, find_near_duplicates
from workflows.corpus.revision.revise import Moves, revise
from workflows.corpus.rows import numbers_of, place_of
from workflows.corpus.split import HELD_OUT, LEFT_OUT, TRAIN, all_sides, used_files
from workflows.figures import NearDuplicateFigures
from workflows.spec import DataSpec


def separate(
    filesystem: Any, corpus: str, data: DataSpec, paths: Sequence[str], board: Any
) -> tuple[NearDuplicateFigures, NearDuplicates]:
    """Find near-duplicates among the rows of a corpus, and move or leave out rows as `data.deduplicate` says.

    `paths`: of the files, by the number of each source.
    """
    parts = all_sides(filesystem, corpus)
    settings = data.deduplicate
    found = find_near_duplicates(filesystem, used_files(filesystem, corpus), settings, board)
    on_both_sides = 0
    if settings.action == "drop":
        revise(filesystem, corpus, _drops(found, paths))
    elif settings.action == "split":
        revise(filesystem, corpus, _one_side(parts, found, has_groups=data.group_by is not None))
    else:
        on_both_sides = _on_both_sides(found, _is_held_out(parts, found.members))
    figures = NearDuplicateFigures(
        conversations=len(found.members),
        clusters=len(np.unique(found.kept)),
        exact=int((found.similarity == 1).sum()),
        on_both_sides=on_both_sides,
    )
    return figures, found


def _drops(found: NearDuplicates, paths: Sequence[str]) -> Moves:
    """All but the longest of each cluster are left out."""
    others = np.flatnonzero(found.members != found.kept)
    reasons = []
    for place in others:
        source, line = place_of(int(found.kept[place]))
        alike = float(found.similarity[place])
        reasons.append(f"data.deduplicate: near-duplicate of {paths[source]}:{line} (Jaccard index {alike:.2f})")
    return Moves(found.members[others], [LEFT_OUT] * len(others), reasons)


def _one_side(parts: Any, found: NearDuplicates, has_groups: bool) -> Moves:
    """All of a cluster go where its longest is; with groups, all of the groups that clusters join."""
    members, firsts = found.members, found.kept
    if has_groups:
        pairs = np.concatenate([np.stack([members, firsts], axis=1), _group_pairs(parts)])
        members, firsts = components(pairs[pairs[:, 0] != pairs[:, 1]])
    sides = np.where(_is_held_out(parts, firsts), HELD_OUT, TRAIN)
    return Moves(members, sides.tolist(), [None] * len(members))


def _group_pairs(parts: Any) -> Numbers:
    """(P, 2) each row that has a group with the first row of that group."""
    table = parts.to_table(columns=["source", "line", "group"], filter=pa.dataset.field("group").is_valid())
    numbers = numbers_of(table)
    codes = table["group"].combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.full(codes.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, codes, numbers)
    return np.stack([numbers, first[codes]], axis=1)


def _is_held_out(parts: Any, numbers: Numbers) -> Any:
    """Whether the rows of these numbers are held out."""
    held_out = parts.to_table(columns=["source", "line"], filter=pa.dataset.field("split") == HELD_OUT)
    return np.isin(numbers, numbers_of(held_out))


def _on_both_sides(found: NearDuplicates, is_held_out: Any) -> int:
    """Held-out rows that have a near-duplicate among those to train on."""
    trained = np.unique(found.kept[~is_held_out])
    return int(np.isin(found.kept[is_held_out], trained).sum())
