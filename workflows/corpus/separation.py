"""What becomes of near-duplicates in a written corpus, by `data.deduplicate`.

figures = separate(filesystem, corpus, data, paths, board)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from models.text.near_duplicates import Numbers, components
from workflows.corpus.near_duplicates import NearDuplicates, find_near_duplicates, number_of, place_of
from workflows.corpus.revise import Moves, revise
from workflows.corpus.split import HELD_OUT, QUARANTINE, TRAIN
from workflows.figures import NearDuplicateFigures
from workflows.spec import DataSpec


def separate(filesystem: Any, corpus: str, data: DataSpec, paths: Sequence[str], board: Any) -> NearDuplicateFigures:
    """Find near-duplicates among the rows of a corpus, and move or set aside rows as `data.deduplicate` says.

    `paths`: of the files, by the number of each source.
    """
    parts = pa.dataset.dataset(corpus, filesystem=filesystem, format="parquet", partitioning="hive")
    files = [file for file in parts.files if f"split={QUARANTINE}/" not in file]
    settings = data.deduplicate
    found = find_near_duplicates(filesystem, files, settings, board)
    is_held_out = _is_held_out(parts, found.members)
    moves = None
    if settings.action == "drop":
        moves = _drops(found, paths)
    elif settings.action == "split":
        moves = _one_side(parts, found, has_groups=data.group_by is not None)
    if moves is not None:
        revise(filesystem, corpus, moves)
    return NearDuplicateFigures(
        conversations=len(found.members),
        clusters=len(np.unique(found.kept)),
        exact=int((found.similarity == 1).sum()),
        on_both_sides=0 if moves is not None else _on_both_sides(found, is_held_out),
    )


def _drops(found: NearDuplicates, paths: Sequence[str]) -> Moves:
    """All but the longest of each cluster are set aside."""
    others = np.flatnonzero(found.members != found.kept)
    reasons = []
    for place in others:
        source, line = place_of(int(found.kept[place]))
        alike = float(found.similarity[place])
        reasons.append(f"data.deduplicate: near-duplicate of {paths[source]}:{line} (Jaccard index {alike:.2f})")
    return Moves(found.members[others], [QUARANTINE] * len(others), reasons)


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
    numbers = number_of(*(table[name].to_numpy().astype(np.int64) for name in ("source", "line")))
    codes = table["group"].combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.full(codes.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, codes, numbers)
    return np.stack([numbers, first[codes]], axis=1)


def _is_held_out(parts: Any, numbers: Numbers) -> Any:
    """Whether the rows of these numbers are held out."""
    found = np.zeros(len(numbers), bool)
    held_out = parts.to_table(columns=["source", "line"], filter=pa.dataset.field("split") == HELD_OUT)
    own = np.sort(number_of(*(held_out[name].to_numpy().astype(np.int64) for name in ("source", "line"))))
    if len(own):
        place = np.minimum(np.searchsorted(own, numbers), len(own) - 1)
        found = own[place] == numbers
    return found


def _on_both_sides(found: NearDuplicates, is_held_out: Any) -> int:
    """Held-out rows that have a near-duplicate among those to train on."""
    trained = np.unique(found.kept[~is_held_out])
    return int(np.isin(found.kept[is_held_out], trained).sum())
