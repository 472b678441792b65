"""Inspect a written corpus: its counts by source, and examples of its faults.

examples = fault_examples(filesystem, corpus, data, files)
shown = list(examples.near_duplicates(near))            # before `data.deduplicate` leaves them out
inspection = inspect_corpus(examples, data, files, near, shown, contaminated)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from workflows.corpus.checks import private_details
from workflows.corpus.files.sources import SourceFile
from workflows.corpus.inspection.examples import FaultExamples
from workflows.corpus.inspection.tally import COLUMNS, FaultExample, Faults, Inspection, Tally
from workflows.corpus.revision.contamination import Contaminated
from workflows.corpus.revision.near_duplicates import NearDuplicates
from workflows.corpus.rows import numbers_of
from workflows.corpus.split import LEFT_OUT, all_sides
from workflows.spec import DataSpec


def fault_examples(filesystem: Any, corpus: str, data: DataSpec, files: Sequence[SourceFile]) -> FaultExamples:
    """What shows examples of a corpus that has been written."""
    return FaultExamples(filesystem, corpus, [file.path for file in files], private_details(data.private))


def inspect_corpus(
    examples: FaultExamples,
    data: DataSpec,
    files: Sequence[SourceFile],
    near: NearDuplicates,
    shown: Sequence[FaultExample],
    contaminated: Sequence[Contaminated],
) -> Inspection:
    """Go through the rows once, a batch at a time; `near`, with examples in `shown`, and `contaminated` are what was
    found in them.
    """
    tally = Tally([source.shown_name for source in data.sources], [file.entry for file in files])
    parts = all_sides(examples.filesystem, examples.corpus)
    for batch in parts.to_batches(columns=list(COLUMNS)):
        for row in batch.to_pylist():
            tally.add(row)
    found = [
        *shown,
        *examples.contaminated(contaminated),
        *examples.with_private(tally.first("private")),
        *examples.flagged(tally.first("flags")),
        *examples.set_aside(),
    ]
    return tally.inspection(_faults(parts, data, near, contaminated), found)


def _faults(parts: Any, data: DataSpec, near: NearDuplicates, contaminated: Sequence[Contaminated]) -> Faults:
    """The rows with faults, without those that are left out; of dropped duplicates no other one is left."""
    left_out = numbers_of(parts.to_table(columns=["source", "line"], filter=pc.field("split") == LEFT_OUT))
    members, is_exact = near.rows(near.members), near.similarity == 1
    if data.deduplicate.action == "drop":
        members, is_exact = members[:0], is_exact[:0]
    is_used = ~np.isin(members, left_out)
    found = np.array(sorted({each.number for each in contaminated}), np.int64)
    return Faults(
        exact=members[is_used & is_exact],
        near=members[is_used],
        contaminated=found[~np.isin(found, left_out)],
        are_replies=near.are_replies,
    )
