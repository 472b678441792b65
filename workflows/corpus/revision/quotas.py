"""data.filters.max_language_share: leave out conversations of languages that have too large a share of a corpus.

revise(filesystem, corpus, over_quota(filesystem, corpus, {"en": 0.5}))
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from workflows.corpus.revision.revise import Moves
from workflows.corpus.rows import numbers_of
from workflows.corpus.split import HELD_OUT, LEFT_OUT, TRAIN, all_sides

_FIELD = "data.filters.max_language_share"


def over_quota(filesystem: Any, corpus: str, shares: Mapping[str, float]) -> Moves:
    """The conversations to leave out, so that each language has at most its share of those that are kept.

    The same ones each time: a hash of a conversation's number decides.
    """
    parts = all_sides(filesystem, corpus)
    is_used = pa.dataset.field("split").isin([TRAIN, HELD_OUT])
    counted = parts.to_table(columns=["language"], filter=is_used)["language"].value_counts()
    counts = {each["values"].as_py(): each["counts"].as_py() for each in counted}
    kept = quotas(counts, shares)
    numbers: list[Any] = [np.empty(0, np.int64)]
    reasons: list[str] = []
    for language, quota in kept.items():
        is_own = is_used & (pc.field("language") == language)
        own = np.sort(numbers_of(parts.to_table(columns=["source", "line"], filter=is_own)))
        numbers.append(own[np.argsort(_mixed(own), kind="stable")[quota:]])
        reason = f"{_FIELD}: {language} has more than {shares[language]:g} of the conversations"
        reasons += [reason] * len(numbers[-1])
    left_out = np.concatenate(numbers)
    order = np.argsort(left_out)
    return Moves(left_out[order], [LEFT_OUT] * len(order), [reasons[at] for at in order])


def quotas(counts: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, int]:
    """How many conversations to keep of each language that has more than its share; each has at most its share of all
    that are kept.
    """
    over: set[str] = set()
    while True:
        fixed = sum(count for language, count in counts.items() if language not in over)
        total = fixed / (1 - sum(shares[language] for language in over))
        # Of fewer kept ones in all, others may have too large a share.
        more = {language for language in shares if counts.get(language, 0) > shares[language] * total} - over
        if not more:
            return {language: int(shares[language] * total) for language in over}
        over |= more


def _mixed(numbers: Any) -> Any:
    """A hash of each number (Steele et al. 2014, "Fast splittable pseudorandom number generators")."""
    mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(27))
