"""The demo's data: the numbers of conversations and facts that the README states, and questions that are held out."""

import json
from pathlib import Path

from models.chat import check_messages

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
