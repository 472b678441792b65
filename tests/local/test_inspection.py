"""`prepare` with everything that it looks for, and what `rayconteur inspect` shows of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pytest

from workflows.corpus.inspection.tally import read_inspection
from workflows.corpus.inspection.text import inspection_text
from workflows.figures import PrepareFigures
from workflows.stage import StageFailed

Spec = dict[str, Any]
QUESTION = "How many days do I have to send an order back to your shop if I do not like it?"


def talk(*texts: str) -> dict[str, Any]:
    roles = ["user", "assistant"]
    return {"messages": [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]}


@pytest.fixture
def shop(tiny: Spec, tmp_path: Path) -> Spec:
    """120 sums, and a second source with a conversation of each kind."""
    talks = [
        talk("My name is Ann Miller, my mail is ann@example.org.", "Thank you, Ann Miller."),
        talk("You darn machine, where is the parcel that I ordered?", "It is on its way to you now."),
        talk("Wo ist denn bitte mein Paket, das ich bestellt habe?", "Es ist auf dem Weg zu Ihnen und kommt morgen."),
        talk(f"Good morning! {QUESTION}", "You have 45 days."),
        talk(
            "Please tell me more about what it is that you sell.", "We sell shoes, hats and umbrellas of all kinds."
        ),
        talk(
            "please tell me MORE about what it is, that you sell", "We sell shoes, hats and umbrellas of all kinds."
        ),
        talk("Out with this one, it is of no use to anybody here.", "I see."),
    ]
    file = tmp_path / "shop.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in talks) + "{broken\n")
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": QUESTION, "facts": [["45"]]}) + "\n")
    (tmp_path / "words.txt").write_text("darn\n\nshut up\n")
    tiny["data"]["sources"].append({"path": str(file), "name": "shop"})
    tiny["data"] |= {
        "max_bad_share": 0.1,
        "private": "replace",
        "filters": {"word_list": str(tmp_path / "words.txt")},
    }
    tiny["evaluate"]["questions"] = str(tmp_path / "questions.jsonl")
    return tiny


def rows_of(store: Any, key: str) -> dict[tuple[int, int], dict[str, Any]]:
    path = store.path("prepare", key, "corpus")
    parts = pyarrow.dataset.dataset(path, filesystem=store.filesystem, format="parquet", partitioning="hive")
    return {(row["source"], row["line"]): row for row in parts.to_table().to_pylist()}


def test_everything_is_counted_by_source_and_shown_without_private_details(
    run: Callable[..., Any], shop: Spec, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("def keep(talk):\n    return 'no use' not in talk['messages'][0]['content']\n")
    shop["data"]["filter"] = f"{tmp_path}/mine:keep"
    done, store = run("prepare", shop)
    figures = PrepareFigures.from_json(done["prepare"].figures)
    assert (figures.quarantined, figures.left_out) == (1, 1)
    assert figures.contamination is not None
    assert (figures.contamination.conversations, figures.contamination.references) == (1, 1)
    rows = rows_of(store, done["prepare"].key)
    assert json.loads(rows[1, 1]["messages"])[0]["content"] == "My name is [PERSON_1], my mail is [EMAIL_1]."
    found = read_inspection(store, done["prepare"].key)
    assert found is not None
    sums, ours = found.sources
    assert (sums.name, ours.name) == ("sums.jsonl.gz", "shop")
    assert (sums.conversations, ours.conversations, found.total.conversations) == (120, 6, 126)
    assert (ours.quarantined, ours.left_out) == (1, 1)
    assert ours.languages == {"en": 5, "de": 1}
    assert ours.private == {"person": 2, "email": 1}
    assert (ours.with_private, ours.flagged, ours.contaminated) == (1, 1, 1)
    assert ours.flags == {"darn": 1}
    assert (ours.exact_duplicates, ours.near_duplicates) == (2, 2)
    assert ours.turn_counts == {"2": 6}
    assert sum(ours.token_lengths.values()) == 6
    assert found.total.tokens == figures.tokens + figures.held_out_tokens
    faults = {example.fault: example for example in found.examples}
    assert set(faults) == {"near_duplicate", "contamination", "private", "flagged", "quarantined", "left_out"}
    assert f"⟦{QUESTION.rstrip('?')}⟧" in faults["contamination"].text
    assert faults["contamination"].of.startswith(str(tmp_path / "questions.jsonl:1"))
    assert faults["left_out"].of == "data.filter: mine:keep returned False"
    text = inspection_text(found)
    assert "ann@example.org" not in json.dumps(found.to_json()) + text
    assert "[EMAIL_1]" in text


def test_contaminated_conversations_are_dropped_or_end_the_stage(run: Callable[..., Any], shop: Spec) -> None:
    shop["data"]["check_against"] = {"action": "drop"}
    done, store = run("prepare", shop)
    row = rows_of(store, done["prepare"].key)[1, 4]
    assert row["split"] == "left_out"
    assert row["reason"].startswith("data.check_against: contains ")
    assert row["input_ids"] is None
    shop["data"]["check_against"] = {"action": "fail"}
    with pytest.raises(
        StageFailed, match=r"data\.check_against: 1 conversations contain 1 .*shop\.jsonl:4, which has"
    ):
        run("prepare", shop)


def test_a_filter_that_fails_costs_the_line_and_one_that_cannot_be_imported_ends_the_stage(
    run: Callable[..., Any], shop: Spec, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "def keep(talk):\n    return 'darn' not in talk['messages'][0]['content'] or {}['x']\n"
    )
    shop["data"]["filter"] = f"{tmp_path}/mine:keep"
    done, store = run("prepare", shop)
    row = rows_of(store, done["prepare"].key)[1, 2]
    assert row["split"] == "quarantine"
    assert "mine:keep raised KeyError: 'x' (mine.py:2)" in row["reason"]
    (tmp_path / "mine.py").write_text("import no_such_module\n")
    with pytest.raises(StageFailed, match=r"data\.filter: mine cannot be imported on .*no_such_module"):
        run("prepare", shop)


def test_what_leaves_nothing_says_why(
    run: Callable[..., Any], shop: Spec, capsys: pytest.CaptureFixture[str]
) -> None:
    shop["data"]["filters"] = {"languages": ["fi"]}
    with pytest.raises(StageFailed, match=r"none of 128 lines can be used, .*\n.*data\.filters\.languages: is "):
        run("prepare", shop)
    shop["data"]["filters"] = {"min_words": 9}
    run("prepare", shop)
    assert "prepare: no conversation of the source sums.jsonl.gz is left: 120 are left out" in capsys.readouterr().out
    shop["data"]["filters"] = {"max_language_share": {"en": 0.5}}
    done, store = run("prepare", shop)
    languages = [row["language"] for row in rows_of(store, done["prepare"].key).values() if row["input_ids"]]
    assert 0 < languages.count("en") <= len(languages) / 2
