"""What becomes of near-duplicates in a written corpus, by `data.deduplicate`.

figures = separate(filesystem, corpus, data, shared, found)     # as find_near_duplicates has found them
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from models.text.near_duplicates import Numbers, components
from workflows.corpus.lines import Shared
from workflows.corpus.revision.near_duplicates import NearDuplicates
from workflows.corpus.revision.repeats import Repeats, stop_training_on
from workflows.corpus.revision.revise import Moves, revise
from workflows.corpus.rows import numbers_of
from workflows.corpus.split import HELD_OUT, LEFT_OUT, TRAIN, all_sides
from workflows.figures import NearDuplicateFigures
from workflows.spec import DataSpec


def separate(
    filesystem: Any, corpus: str, data: DataSpec, shared: Shared, found: NearDuplicates
) -> NearDuplicateFigures:
    """Move, leave out or encode again rows of a corpus, as `data.deduplicate` says; `shared` encoded them."""
    parts = all_sides(filesystem, corpus)
    action = data.deduplicate.action
    on_both_sides = 0
    if action == "drop":
        _drop(filesystem, corpus, shared, found)
    elif action == "split":
        revise(filesystem, corpus, _one_side(parts, found, has_groups=data.group_by is not None))
    else:
        on_both_sides = _on_both_sides(found, _is_held_out(parts, found.rows(found.members)))
    return NearDuplicateFigures(
        conversations=len(np.unique(found.rows(found.members))),
        replies=len(found.members) if found.are_replies else None,
        clusters=len(np.unique(found.kept)),
        exact=int((found.similarity == 1).sum()),
        on_both_sides=on_both_sides,
    )


def _drop(filesystem: Any, corpus: str, shared: Shared, found: NearDuplicates) -> None:
    """All but the longest of each cluster: conversations are left out, replies are no longer trained on."""
    others = np.flatnonzero(found.members != found.kept)
    numbers = found.members[others]
    originals = [
        f"{found.place(kept, shared.paths)} (Jaccard index {alike:.2f})"
        for kept, alike in zip(found.kept[others].tolist(), found.similarity[others].tolist(), strict=True)
    ]
    if found.are_replies:
        stop_training_on(filesystem, corpus, shared, Repeats(numbers, originals))
    else:
        reasons = [f"data.deduplicate: near-duplicate of {original}" for original in originals]
        revise(filesystem, corpus, Moves(numbers, [LEFT_OUT] * len(others), reasons))


def _one_side(parts: Any, found: NearDuplicates, has_groups: bool) -> Moves:
    """All of a cluster go where its longest is; with groups, all of the groups that clusters join, and with replies,
    all conversations that clusters join, go where the first of them is.
    """
    members, firsts = found.rows(found.members), found.rows(found.kept)
    if has_groups or found.are_replies:
        pairs = np.stack([members, firsts], axis=1)
        if has_groups:
            pairs = np.concatenate([pairs, _group_pairs(parts)])
        members, firsts = components(pairs[pairs[:, 0] != pairs[:, 1]])
    is_held_out = _is_held_out(parts, firsts)
    if found.are_replies:
        # A reply that stands everywhere, such as a greeting, may join most conversations: they are trained on.
        _, group, sizes = np.unique(firsts, return_inverse=True, return_counts=True)
        is_held_out &= sizes[group] <= parts.count_rows(filter=pa.dataset.field("split") == HELD_OUT)
    sides = np.where(is_held_out, HELD_OUT, TRAIN)
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
    """How many of those that are held out have a near-duplicate among those to train on."""
    trained = np.unique(found.kept[~is_held_out])
    return int(np.isin(found.kept[is_held_out], trained).sum())
