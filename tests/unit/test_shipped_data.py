"""The data of the shipped pipelines beside the demo: counts as their READMEs state them, and suites held out."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.chat import check_messages
from models.scorers.facts import count_facts
from models.text.texts import Texts
from workflows.pipelines.style_form import kept_rules
from workflows.spec.read import read_spec
from workflows.suites.leaks import AskedTexts
from workflows.suites.read import read_suites
from workflows.suites.suite import Suite

PIPELINES = Path(__file__).parents[2] / "workflows" / "pipelines"


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (PIPELINES / name).read_text().splitlines()]


def suites(pipeline: str) -> dict[str, Suite]:
    return {suite.name: suite for suite in read_suites(read_spec(PIPELINES / f"{pipeline}.yaml").evaluate)}


@pytest.mark.parametrize(("pipeline", "count"), [("summaries", 60), ("style", 163)])
def test_conversations_are_one_turn_each_and_differ(pipeline: str, count: int) -> None:
    conversations = [record["messages"] for record in read(f"{pipeline}/conversations.jsonl")]
    for messages in conversations:
        check_messages(messages)
        assert [message["role"] for message in messages] == ["user", "assistant"]
    for turn in (0, 1):
        assert len({messages[turn]["content"].lower() for messages in conversations}) == count == len(conversations)
    assert f"`conversations.jsonl`: {count} " in (PIPELINES / pipeline / "README.md").read_text()


@pytest.mark.parametrize(("pipeline", "name", "scorer", "count", "tags"), [
    ("summaries", "notes", "rouge_l", 24, {"length", "specialty"}),
    ("summaries", "kept", "facts", 24, {"length", "specialty"}),
    ("style", "labels", "perplexity", 30, set()),
    ("style", "form", "style_form:kept_rules", 30, set()),
])  # fmt: skip
def test_a_suite_is_as_the_readme_says_and_held_out(
    pipeline: str, name: str, scorer: str, count: int, tags: set[str]
) -> None:
    suite = suites(pipeline)[name]
    assert (suite.scorer_name, len(suite.items)) == (scorer, count)
    assert f"`{name}.jsonl`: {count} " in (PIPELINES / pipeline / "README.md").read_text()
    assert all(item.tags.keys() == tags for item in suite.items)
    asked = [item.turns[0].messages[-1]["content"].lower() for item in suite.items]
    assert len(set(asked)) == count
    taught = [[m["content"] for m in record["messages"]] for record in read(f"{pipeline}/conversations.jsonl")]
    assert not {text.lower() for texts in taught for text in texts} & set(asked)
    index = AskedTexts.of({}, [suite]).index()
    assert index is not None
    assert index.find(Texts.of(taught)) == []


def test_summaries_have_one_instruction_and_facts_that_are_said() -> None:
    lines = read("summaries/conversations.jsonl")
    notes, kept = read("summaries/suites/notes.jsonl"), read("summaries/suites/kept.jsonl")
    asked = [record["messages"][0]["content"] for record in lines + notes]
    assert len({text.partition("\n\n")[0] for text in asked}) == 1
    assert [record["messages"] for record in notes] == [record["messages"] for record in kept]
    for note, record in zip(notes, kept, strict=True):
        for text in (record["messages"][0]["content"], note["reference"]):
            assert count_facts(text, record["facts"]) == len(record["facts"]), record["id"]


def test_labels_of_the_style_have_its_form() -> None:
    given = [(record["question"], record["reply"]) for record in read("style/suites/labels.jsonl")]
    trained = [tuple(m["content"] for m in record["messages"]) for record in read("style/conversations.jsonl")]
    for thing, label in [*given, *trained]:
        assert kept_rules({"question": thing}, {"content": label}) == 1, thing
    assert [record["question"] for record in read("style/suites/form.jsonl")] == [thing for thing, _ in given]


LABEL = (
    "Vessel with Spout\nSteel and plastic, early 21st century\nIt was filled. It sang!\n"
    "Height 24.5 cm. Found in a kitchen, Room 12."
)


@pytest.mark.parametrize(("old", "new", "share"), [
    ("", "", 1), ("\n", "\n\n", 1),
    ("Vessel with Spout", "Kettles with Spout", 0.8),
    ("early 21st century", "our time", 0.8), ("Steel and plastic, ", "", 0.8),
    (" It sang!", "", 0.8), ("It sang!", "It sang! So it seems.", 0.8),
    (" cm", "", 0.8), (", Room 12", "", 0.8), ("Found", "Lost", 0.8),
    ("It was filled. It sang!", "It was filled.\nIt sang!", 0.4),
    ("\nHeight 24.5 cm. Found in a kitchen, Room 12.", "", 0.6), (LABEL, "", 0), (LABEL, "Room", 0.2),
])  # fmt: skip
def test_each_rule_of_the_form_counts(old: str, new: str, share: float) -> None:
    assert kept_rules({"question": "A kettle"}, {"content": LABEL.replace(old, new)}) == pytest.approx(share)
