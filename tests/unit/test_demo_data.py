"""The demo's data: the numbers of conversations and facts that the README states; questions and suites held out."""

import json
from pathlib import Path

import pytest

from models.chat import check_messages
from models.text.texts import Texts
from workflows.spec import EvaluateSpec, SuiteSpec
from workflows.suites.leaks import AskedTexts
from workflows.suites.read import read_suites

FOLDER = Path(__file__).parents[2] / "workflows" / "pipelines" / "demo"


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / name).read_text().splitlines()]


def test_conversations_are_many_and_multi_turn():
    conversations = [record["messages"] for record in read("conversations.jsonl")]
    assert len(conversations) >= 200
    assert len({json.dumps(messages) for messages in conversations}) == len(conversations)
    for messages in conversations:
        check_messages(messages)
        assert sum(message["role"] == "assistant" for message in messages) >= 2


def test_questions_are_held_out_and_their_facts_are_taught():
    conversations = [record["messages"] for record in read("conversations.jsonl")]
    asked = {m["content"].strip().lower() for messages in conversations for m in messages if m["role"] == "user"}
    replies = [
        " ".join(m["content"] for m in messages if m["role"] == "assistant").lower() for messages in conversations
    ]
    questions = read("questions.jsonl")
    assert len(questions) == 30
    for record in questions:
        assert record["question"].strip().lower() not in asked
        for spellings in record["facts"]:
            taught = sum(any(spelling.lower() in reply for spelling in spellings) for reply in replies)
            assert taught >= 20, spellings
            assert not any(spelling.lower() in record["question"].lower() for spelling in spellings)


@pytest.mark.parametrize(("name", "scorer", "count", "tags"), [
    ("paraphrases", "facts", 30, {"topic", "wording"}), ("follow-ups", "facts", 16, {"topic"}),
    ("never-say", "excludes", 22, {"topic", "mistake"}), ("format", "regex", 20, {"topic", "format"}),
    ("languages", "facts", 20, {"topic", "language"}),
])  # fmt: skip
def test_a_suite_is_as_the_readme_says_and_held_out(name, scorer, count, tags):
    path = FOLDER / "suites" / f"{name}.jsonl"
    [suite] = read_suites(EvaluateSpec(suites=[SuiteSpec(path=str(path))]))
    assert (suite.scorer_name, len(suite.items)) == (scorer, count)
    assert f"`{path.name}`: {count} " in (FOLDER / "README.md").read_text()
    assert all(item.tags.keys() == tags for item in suite.items)
    asked = [turn.messages[-1]["content"] for item in suite.items for turn in item.turns]
    assert len(set(asked)) == len(asked)
    taught = [[m["content"] for m in record["messages"]] for record in read("conversations.jsonl")]
    known = [*taught, *([record["question"]] for record in read("questions.jsonl"))]
    assert not {text.lower() for texts in known for text in texts} & {text.lower() for text in asked}
    assert AskedTexts.of({}, [suite]).index().find(Texts.of(known)) == []


def test_the_facts_of_suites_are_taught():
    replies = [
        m["content"].lower() for record in read("conversations.jsonl") for m in record["messages"]
        if m["role"] == "assistant"
    ]  # fmt: skip
    paths = [FOLDER / "suites" / f"{name}.jsonl" for name in ("paraphrases", "follow-ups", "languages")]
    for suite in read_suites(EvaluateSpec(suites=[SuiteSpec(path=str(path)) for path in paths])):
        for item in suite.items:
            for spellings in (fact for turn in item.turns for fact in turn.expected or ()):
                assert sum(any(each.lower() in reply for each in spellings) for reply in replies) >= 20, spellings
