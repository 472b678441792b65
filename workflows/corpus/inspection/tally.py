"""What a corpus is made of, by source and in all: counts, languages, lengths, and what is wrong with it.

tally = Tally(names)                       # of the sources
for row in corpus: tally.add(row)
inspection = tally.inspection(faults, examples)
read_inspection(store, key)                # what `prepare` has stored, for `rayconteur inspect` and the run's page

Its size depends on the number of sources and languages, not on the number of conversations.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs

from workflows.corpus.rows import CorpusRow, number_of, place_of
from workflows.corpus.split import HELD_OUT, LEFT_OUT, QUARANTINE
from workflows.record import Record, optional
from workflows.store import Store

MAX_EXAMPLES = 10
"""of each fault"""
_MAX_FLAGS = 20


@dataclass(frozen=True, kw_only=True)
class Labels(Record):
    """Labelled replies, for KTO."""

    desirable: int
    undesirable: int


@dataclass(frozen=True, kw_only=True)
class SourceInspection(Record):
    """One source, or all together. All but `quarantined` and `left_out` count usable conversations."""

    name: str
    conversations: int
    held_out: int
    """of the conversations"""
    turns: int
    tokens: int
    supervised_tokens: int
    quarantined: int
    """lines that cannot be used"""
    left_out: int
    """conversations that the settings of `data` leave out"""
    truncated: int
    languages: Mapping[str, int]
    """conversations by BCP 47 tag, the most frequent first"""
    token_lengths: Mapping[str, int]
    """conversations by their length: the key is the power of two, in tokens, that is the next larger one"""
    turn_counts: Mapping[str, int]
    """conversations by their number of messages"""
    exact_duplicates: int
    """with the same words as another one; like the next one, 0 if replies are compared"""
    near_duplicates: int
    """with nearly the same words as another one, the exact ones among them"""
    exact_duplicate_replies: int | None = optional()
    """single replies with the same words as another one, if replies are compared; like the next one"""
    near_duplicate_replies: int | None = optional()
    contaminated: int
    """that contain a text of `data.check_against` or `evaluate.questions`"""
    with_private: int
    """that have private details"""
    private: Mapping[str, int]
    """details by kind"""
    flagged: int
    """that have an entry of the word list"""
    flags: Mapping[str, int]
    """conversations by entry, the most frequent ones"""
    labels: Labels | None = optional()


@dataclass(frozen=True, kw_only=True)
class FaultExample(Record):
    """A conversation with a fault."""

    fault: str
    """near_duplicate, near_duplicate_reply, contamination, private, flagged, quarantined or left_out"""
    place: str
    """its file and line; of a near-duplicate reply also the message"""
    text: str
    """the beginning of it, with placeholders for private details; of a contamination what is shared, with what is
    around it; of a near-duplicate reply the reply"""
    of: str = ""
    """the conversation, reply or text that it repeats, the reason, or the entries"""
    other: str = ""
    """the beginning of the conversation or reply that it repeats"""


@dataclass(frozen=True, kw_only=True)
class Inspection(Record):
    """A corpus: `inspection.json` of the artifact of `prepare`."""

    total: SourceInspection
    sources: tuple[SourceInspection, ...]
    examples: tuple[FaultExample, ...]


@dataclass(frozen=True)
class Faults:
    """The numbers of the rows with faults that only the whole corpus shows; each an int64 array."""

    exact: Any
    near: Any
    contaminated: Any
    are_replies: bool = False
    """whether `exact` and `near` have the row of each reply, and not rows that are duplicates as a whole"""


@dataclass
class _Counts:
    """Of one source."""

    plain: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    private: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)

    def add(self, row: CorpusRow) -> None:
        if row["split"] in (QUARANTINE, LEFT_OUT):
            self.plain["quarantined" if row["split"] == QUARANTINE else "left_out"] += 1
            return
        self.plain.update(
            conversations=1,
            held_out=row["split"] == HELD_OUT,
            turns=row["num_messages"],
            tokens=row["num_tokens"],
            supervised_tokens=row["num_targets"],
            truncated=row["truncated"],
            with_private=row["private"] is not None,
            flagged=row["flags"] is not None,
        )
        if (desirable := row["desirable"]) is not None:
            self.plain["desirable" if desirable else "undesirable"] += 1
        self.languages[row["language"] or ""] += 1
        self.lengths[(row["num_tokens"] - 1).bit_length()] += 1
        self.turns[row["num_messages"]] += 1
        self.private.update(json.loads(row["private"] or "{}"))
        self.flags.update(json.loads(row["flags"] or "[]"))

    def plus(self, other: "_Counts") -> "_Counts":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Counts(*(one + another for one, another in pairs))

    def inspection(self, name: str, duplicates: Mapping[str, int], contaminated: int) -> SourceInspection:
        plain = self.plain
        is_labelled = plain["desirable"] + plain["undesirable"] > 0
        return SourceInspection(
            name=name,
            languages=dict(self.languages.most_common()),
            token_lengths={str(1 << power): count for power, count in sorted(self.lengths.items())},
            turn_counts={str(turns): count for turns, count in sorted(self.turns.items())},
            contaminated=contaminated,
            private=dict(self.private.most_common()),
            flags=dict(self.flags.most_common(_MAX_FLAGS)),
            labels=Labels(**{each: plain[each] for each in ("desirable", "undesirable")}) if is_labelled else None,
            **{each: plain[each] for each in _PLAIN},
            **{"exact_duplicates": 0, "near_duplicates": 0, **duplicates},
        )


_PLAIN = ("conversations", "held_out", "turns", "tokens", "supervised_tokens", "quarantined", "left_out", "truncated",
          "with_private", "flagged")  # fmt: skip
COLUMNS = ("source", "line", "split", "num_tokens", "num_targets", "num_messages", "truncated", "desirable",
           "language", "private", "flags")  # fmt: skip
"""of the rows that a `Tally` takes"""


class Tally:
    """Counts the rows of a corpus."""

    def __init__(self, names: Sequence[str], entry_of: Sequence[int]) -> None:
        """`names`: of the entries of `data.sources`. `entry_of`: of each file the number of its entry."""
        self._names, self._entry_of = names, entry_of
        self._counts = [_Counts() for _ in names]
        self._first: dict[str, list[int]] = {"private": [], "flags": []}

    def add(self, row: CorpusRow) -> None:
        """Count one row, with `COLUMNS`."""
        self._counts[self._entry_of[row["source"]]].add(row)
        if row["split"] in (QUARANTINE, LEFT_OUT):
            return
        for column, found in self._first.items():
            if row[column] is not None:  # type: ignore[literal-required]
                found.append(number_of(row["source"], row["line"]))
                if len(found) > 100 * MAX_EXAMPLES:
                    found[:] = sorted(found)[:MAX_EXAMPLES]

    def first(self, column: str) -> list[int]:
        """The numbers of the first rows that have `private` details or `flags`, in the order of the sources."""
        return sorted(self._first[column])[:MAX_EXAMPLES]

    def inspection(self, faults: Faults, examples: Sequence[FaultExample]) -> Inspection:
        """The counts, with what was found in the whole corpus."""
        contaminated = self._by_entry(faults.contaminated)
        duplicates = {name: self._by_entry(numbers) for name, numbers in _duplicates(faults).items()}
        sources = [
            counts.inspection(name, {each: found[entry] for each, found in duplicates.items()}, contaminated[entry])
            for entry, (name, counts) in enumerate(zip(self._names, self._counts, strict=True))
        ]
        total = _Counts()
        for counts in self._counts:
            total = total.plus(counts)
        return Inspection(
            total=total.inspection(
                "all", {each: sum(found) for each, found in duplicates.items()}, sum(contaminated)
            ),
            sources=tuple(sources),
            examples=tuple(examples),
        )

    def _by_entry(self, numbers: Any) -> list[int]:
        """How many of these rows each entry of `data.sources` has."""
        found = [0] * len(self._names)
        for file, count in Counter(place_of(numbers)[0].tolist()).items():
            found[self._entry_of[file]] += count
        return found


def _duplicates(faults: Faults) -> dict[str, Any]:
    """The duplicates by the field of `SourceInspection` that counts them."""
    what = "duplicate_replies" if faults.are_replies else "duplicates"
    return {f"exact_{what}": faults.exact, f"near_{what}": faults.near}


def inspection_file(store: Store, key: str) -> str:
    """Where the inspection of an artifact of `prepare` is."""
    return store.path("prepare", key, "inspection.json")


def read_inspection(store: Store, key: str) -> Inspection | None:
    """The inspection of an artifact of `prepare`; None of one that was made before there were any."""
    file = inspection_file(store, key)
    if store.filesystem.get_file_info(file).type == pyarrow.fs.FileType.NotFound:
        return None
    with store.filesystem.open_input_stream(file) as stream:
        return Inspection.from_json(json.loads(stream.read()))
