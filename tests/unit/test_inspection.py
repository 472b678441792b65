"""An inspection: counted by source, as a table, on a run's page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored import run_record

from models.text.private import Detail, PatternTooSlow, PrivateDetails
from workflows.corpus.inspection.examples import FaultExamples
from workflows.corpus.inspection.tally import (
    COLUMNS,
    FaultExample,
    Faults,
    Inspection,
    Tally,
    inspection_file,
    read_inspection,
)
from workflows.corpus.inspection.text import inspection_text, median_of
from workflows.corpus.rows import number_of
from workflows.runs.page.report import write_report
from workflows.store import Artifact, Store

GOOD = {
    "split": "train", "num_tokens": 100, "num_targets": 40, "num_messages": 4, "truncated": False, "desirable": None,
    "language": "en", "private": None, "flags": None,
}  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {"source": 0, "line": 1, **GOOD},
    {"source": 0, "line": 2, **GOOD, "private": '{"email": 2}', "num_tokens": 128, "split": "held_out"},
    {"source": 1, "line": 1, **GOOD, "flags": '["darn"]', "num_messages": 2, "truncated": True},
    {"source": 2, "line": 1, **GOOD, "language": "de", "desirable": True},
    {"source": 2, "line": 2, **GOOD, "language": "de", "desirable": False},
    {"source": 2, "line": 3, **GOOD, "split": "quarantine", "private": None},
    {"source": 2, "line": 4, **GOOD, "split": "left_out", "flags": '["darn"]'},
]


@pytest.fixture
def inspection() -> Inspection:
    """Of two sources, the first of which has two files."""
    tally = Tally(["shop", "news"], entry_of=[0, 0, 1])
    for row in ROWS:
        assert set(row) == set(COLUMNS)
        tally.add(row)  # type: ignore[arg-type]
    assert tally.first("flags") == [number_of(1, 1)]
    near = np.array([number_of(0, 1), number_of(1, 1), number_of(2, 1)])
    text, other = "user: <b>hi</b>", "user: Hi"
    example = FaultExample(fault="near_duplicate", place="a.jsonl:1", text=text, of="b.jsonl:1", other=other)
    return tally.inspection(Faults(exact=near[:2], near=near, contaminated=near[:0]), [example])


def test_sources_are_counted_by_their_entry_and_in_all(inspection: Inspection) -> None:
    shop, news = inspection.sources
    assert (shop.conversations, news.conversations, inspection.total.conversations) == (3, 2, 5)
    assert (shop.tokens, shop.turns, shop.held_out, shop.truncated) == (328, 10, 1, 1)
    assert (news.quarantined, news.left_out, news.flagged) == (1, 1, 0)
    assert (shop.near_duplicates, shop.exact_duplicates, news.near_duplicates) == (2, 2, 1)
    assert shop.token_lengths == {"128": 3}, "128 tokens are not above 128"
    assert inspection.total.languages == {"en": 3, "de": 2}
    assert (shop.private, shop.with_private) == ({"email": 2}, 1)
    assert news.labels is not None
    assert (news.labels.desirable, news.labels.undesirable, shop.labels) == (1, 1, None)
    assert Inspection.from_json(json.loads(json.dumps(inspection.to_json()))) == inspection


def test_a_text_on_which_a_pattern_is_too_slow_is_not_shown() -> None:
    class Slow(PrivateDetails):
        def find_in_conversation(self, texts: Sequence[str]) -> list[list[Detail]]:
            raise PatternTooSlow("data.private.patterns.ticket: takes more than 1 s")

    examples = FaultExamples(None, "", [], Slow())
    assert examples._hidden(["one", "two"]) == ["(not shown: data.private.patterns takes too long on it)"] * 2
    assert FaultExamples(None, "", [], PrivateDetails())._hidden(["Mail ann@example.org"]) == ["Mail [EMAIL_1]"]


def test_the_table_has_a_column_for_each_source_and_no_rows_of_zeros(inspection: Inspection) -> None:
    text = inspection_text(inspection)
    lines = {line[:24].strip(): line[24:].split() for line in text.splitlines()}
    assert lines["conversations"] == ["3", "2", "5"]
    assert lines["near-duplicates"] == ["2", "1", "3"]
    assert "contaminated" not in text
    assert "a.jsonl:1 (b.jsonl:1)" in text
    assert median_of({"2": 1, "4": 3, "10": 1}) == 4


def test_a_runs_page_shows_it_and_a_run_before_it_has_none(inspection: Inspection, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    store.finish(Artifact("prepare", "key", "shop", {}, {}, {"conversations": 5}, {}, "2026", 1.0))
    stages = {"prepare": {"key": "key", "seconds": 1.0}}
    store.write_run(run_record(run="one", pipeline="shop", started="2026", ended="2026", spec={}, stages=stages))
    assert read_inspection(store, "key") is None
    assert '<h2 id="data">Data</h2>' not in write_report(store, "shop", None, str(tmp_path / "a.html"))[0].read_text()
    store.write_file(inspection_file(store, "key"), json.dumps(inspection.to_json()).encode())
    text = write_report(store, "shop", None, str(tmp_path / "b.html"))[0].read_text()
    assert '<h2 id="data">Data</h2>' in text
    assert "user: &lt;b&gt;hi&lt;/b&gt;" in text
    assert "languages" in text
