"""An inspection as text for the terminal: a table of the sources, and examples of each fault."""

from collections.abc import Mapping

from workflows.corpus.inspection.tally import Inspection, SourceInspection
from workflows.progress import table_text

_MOST_NAMED = 3
_EXAMPLES_SHOWN = 2
_MAX_CHARACTERS = 240
FAULT_TITLES = {
    "near_duplicate": "near-duplicates",
    "near_duplicate_reply": "near-duplicate replies",
    "contamination": "texts of data.check_against and evaluate.questions",
    "private": "private details",
    "flagged": "entries of the word list",
    "left_out": "left out",
    "quarantined": "cannot be used",
}
"""the titles of the faults of `FaultExample`, in the order in which they are shown"""


def inspection_text(inspection: Inspection) -> str:
    """The table, a source in each column, and the first examples of each fault."""
    headings, rows = inspection_table(inspection)
    parts = [table_text(headings, rows, right=range(1, len(headings)))]
    for fault, title in FAULT_TITLES.items():
        examples = [each for each in inspection.examples if each.fault == fault]
        if not examples:
            continue
        parts.append(f"\n{title}, for example:")
        for example in examples[:_EXAMPLES_SHOWN]:
            of = f" ({example.of})" if example.of else ""
            parts += [f"  {example.place}{of}", f"    {_short(example.text)}"]
            parts += [f"    {_short(example.other)}"] if example.other else []
    return "\n".join(parts)


def inspection_table(inspection: Inspection) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows: a column for each source and, if there are several, for all; without rows of zeros alone."""
    columns = list(inspection.sources)
    if len(columns) > 1:
        columns.append(inspection.total)
    rows = [(title, *(value(each) for each in columns)) for title, value in _ROWS]
    shown = [row for row in rows if any(value not in ("", "0") for value in row[1:])]
    return ("", *(each.name for each in columns)), shown


def _named(counts: Mapping[str, int], whole: int | None = None) -> str:
    """The most frequent ones; as shares of `whole` if that is given."""
    shown = [
        f"{name} {count / whole:.0%}" if whole else f"{name} {count:,}"
        for name, count in list(counts.items())[:_MOST_NAMED]
    ]
    return ", ".join([*shown, *(["..."] if len(counts) > _MOST_NAMED else [])])


def median_of(counts: Mapping[str, int]) -> int:
    """The median of values that are counted by their text."""
    half, total = sum(counts.values()) / 2, 0
    for value in sorted(map(int, counts)):
        total += counts[str(value)]
        if total >= half:
            return value
    return 0


def _labels(each: SourceInspection) -> str:
    return "" if each.labels is None else f"{each.labels.desirable:,} / {each.labels.undesirable:,}"


def _length(each: SourceInspection) -> str:
    return f"{each.tokens / each.conversations:,.0f}" if each.conversations else ""


_ROWS = (
    ("conversations", lambda each: f"{each.conversations:,}"),
    ("of them held out", lambda each: f"{each.held_out:,}"),
    ("cannot be used", lambda each: f"{each.quarantined:,}"),
    ("left out", lambda each: f"{each.left_out:,}"),
    ("messages", lambda each: f"{each.turns:,}"),
    ("messages, median", lambda each: f"{median_of(each.turn_counts):,}"),
    ("tokens", lambda each: f"{each.tokens:,}"),
    ("tokens, mean", _length),
    ("supervised tokens", lambda each: f"{each.supervised_tokens:,}"),
    ("cut", lambda each: f"{each.truncated:,}"),
    ("languages", lambda each: _named(each.languages, each.conversations)),
    ("desirable / undesirable", _labels),
    ("exact duplicates", lambda each: f"{each.exact_duplicates:,}"),
    ("near-duplicates", lambda each: f"{each.near_duplicates:,}"),
    ("exact duplicate replies", lambda each: f"{each.exact_duplicate_replies or 0:,}"),
    ("near-duplicate replies", lambda each: f"{each.near_duplicate_replies or 0:,}"),
    ("contaminated", lambda each: f"{each.contaminated:,}"),
    ("with private details", lambda each: f"{each.with_private:,}"),
    ("private details", lambda each: _named(each.private)),
    ("flagged", lambda each: f"{each.flagged:,}"),
    ("flags", lambda each: _named(each.flags)),
)


def _short(text: str) -> str:
    line = " / ".join(text.split("\n"))
    return line if len(line) <= _MAX_CHARACTERS else f"{line[:_MAX_CHARACTERS]} ..."
