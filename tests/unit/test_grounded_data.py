"""The data for answers from passages: what their README states; each reply cites a passage; suites are held out."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from models.chat import check_messages
from models.text.texts import Texts
from workflows.spec import EvaluateSpec, SuiteSpec
from workflows.suites.leaks import AskedTexts
from workflows.suites.read import read_suites

FOLDER = Path(__file__).parents[2] / "workflows" / "pipelines" / "grounded"
NOT_THERE = "That is not in my sources."


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / name).read_text().splitlines()]


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+(?:[:.,]\d+)*", text.lower()))


def test_conversations_differ_and_have_passages():
    conversations = read("conversations.jsonl")
    assert f"{len(conversations)} conversations" in (FOLDER / "README.md").read_text()
    assert len({json.dumps(record["messages"]) for record in conversations}) == len(conversations)
    for record in conversations:
        check_messages(record["messages"])
        assert 2 <= len(record["knowledge"]) <= 5
        assert not any("brindlewick" in passage["text"].lower() for passage in record["knowledge"])


def test_replies_cite_the_only_passage_with_their_value():
    places: Counter[int] = Counter()
    for record in read("conversations.jsonl"):
        passages = [words(passage["text"]) for passage in record["knowledge"]]
        for message in record["messages"][1::2]:
            if message["content"] == NOT_THERE:
                places[0] += 1
                continue
            place = int(re.search(r" \[(\d)\]\.$", message["content"])[1])
            places[place] += 1
            cited, said = passages[place - 1], words(message["content"][:-5])
            others = [passage for number, passage in enumerate(passages, 1) if number != place]
            assert any(not said & cited <= other for other in others), message
            assert {word for word in said if word[0].isdigit()} <= cited, message
    assert 7.5 < places.total() / places[0] < 8.5
    assert max(places[place] for place in (1, 2, 3, 4)) < 1.1 * min(places[place] for place in (1, 2, 3, 4))


@pytest.mark.parametrize(("name", "scorer", "count"), [
    ("answers", "facts", 90), ("no-passages", "facts", 30), ("sources", "regex", 30), ("not-there", "regex", 20),
])  # fmt: skip
def test_a_suite_is_held_out(name, scorer, count):
    path = FOLDER / "suites" / f"{name}.jsonl"
    [suite] = read_suites(EvaluateSpec(suites=[SuiteSpec(path=str(path))]))
    assert (suite.scorer_name, len(suite.items)) == (scorer, count)
    known = [
        [*(message["content"] for message in record["messages"]), *(each["text"] for each in record["knowledge"])]
        for record in read("conversations.jsonl")
    ]
    assert not {text.lower() for texts in known for text in texts} & {
        item.turns[0].messages[-1]["content"].lower() for item in suite.items
    }
    assert AskedTexts.of({}, [suite]).index().find(Texts.of(known)) == []


def test_facts_stand_in_one_passage_and_not_in_the_question():
    for item in read("suites/answers.jsonl"):
        [spellings] = item["facts"]
        assert sum(spellings[0] in passage["text"] for passage in item["knowledge"]) == 1, item["id"]
        assert not any(spelling in item["question"] for spelling in spellings), item["id"]
    none = read("suites/no-passages.jsonl")
    assert not any(item["knowledge"] for item in none)
    assert {item["question"] for item in none} == {
        item["question"] for item in read("suites/answers.jsonl") if item["tags"]["passages"] == "changed"
    }
