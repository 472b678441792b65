"""Knowledge in a prompt: passages of a record, and their form."""

import json
from typing import Any

import pytest

from models.chat.knowledge import KnowledgeError, Passage, passages_of, with_knowledge, written
from models.errors import RayconteurError
from workflows.corpus.conversations import mismatched_replies, parse_conversation, parse_judged, parse_pair
from workflows.spec import DataSpec

ASKED = {"role": "user", "content": "How tall is it?"}
SAID = {"role": "assistant", "content": "12 cm [1]."}
TALK = [ASKED, SAID]
TALL = {"role": "system", "content": "<sources>\n[1] Toy\nheight: 12 cm\n</sources>"}
FACTS = [["Toy", "height", "12 cm"]]


@pytest.mark.parametrize(
    ("value", "passages"),
    [
        (None, []),
        ([], []),
        (" One text. ", [Passage("", "One text.")]),
        (["One.", "Two.", "One."], [Passage("", "One."), Passage("", "Two.")]),
        ({"name": "a.md", "text": "A\nb"}, [Passage("a.md", "A\nb")]),
        ([{"text": "A"}, {"name": None, "text": "B"}], [Passage("", "A"), Passage("", "B")]),
        (
            [["高斯林", "国籍", "加拿大"], "One.", ["高斯林", "职业", "演员\n歌手"], ["高斯林", "国籍", "加拿大"]],
            [Passage("高斯林", "国籍: 加拿大\n职业: 演员 歌手"), Passage("", "One.")],
        ),
    ],
)
def test_passages_of_a_value(value: Any, passages: list[Passage]) -> None:
    assert passages_of(value, "facts") == passages


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (3, "`facts` is the number 3; it must be a list whose entries are"),
        ([["a", "b"]], "`facts`[0] is a list of 2; a passage is a text, {name, text}, or a triple"),
        (["a", ["a", "b", 3]], "`facts`[1][2] is the number 3; it must be a text with words"),
        (["a", " "], "`facts`[1] is empty; it must be a text"),
        ([{"name": "a"}], "`facts`[0].text is null; it must be a text"),
        ([{"name": 3, "text": "a"}], "`facts`[0].name is the number 3"),
        ({"title": "a", "text": "b"}, "`facts` has the key 'title'; a passage is"),
        (["\ud800"], "`facts`[0] has an invalid character"),
    ],
)
def test_other_values_are_refused(value: Any, reason: str) -> None:
    with pytest.raises(KnowledgeError) as error:
        passages_of(value, "facts")
    assert str(error.value).startswith(reason)


def test_passages_stand_at_the_end_of_the_system_message() -> None:
    passages = [Passage("Toy", "height: 12 cm"), Passage("", "Toys are for play.")]
    sources = "<sources>\n[1] Toy\nheight: 12 cm\n[2] Toys are for play.\n</sources>"
    assert written(passages) == sources
    assert with_knowledge(TALK, passages) == [{"role": "system", "content": sources}, *TALK]
    for role in ("system", "developer"):
        given = [{"role": role, "content": "Be kind.\n"}, *TALK]
        assert with_knowledge(given, passages) == [{"role": role, "content": f"Be kind.\n\n{sources}"}, *TALK]
        assert given[0]["content"] == "Be kind.\n"
    assert with_knowledge(TALK, []) == TALK


def line(**record: Any) -> bytes:
    return json.dumps(record).encode()


def test_a_record_s_key_is_read_only_where_data_names_it() -> None:
    given = line(messages=TALK, facts=FACTS)
    assert parse_conversation(given, knowledge="facts").messages == [TALL, *TALK]
    assert parse_conversation(given).messages == TALK
    assert parse_conversation(given, knowledge="other").messages == TALK
    assert parse_conversation(line(messages=TALK, facts=[]), knowledge="facts").messages == TALK
    # `documents` is refused as a key that would be lost, unless it is the knowledge.
    assert parse_conversation(line(messages=TALK, documents=FACTS), knowledge="documents").messages == [TALL, *TALK]
    with pytest.raises(RayconteurError, match=r"`facts`\[0\] is a list of 1"):
        parse_conversation(line(messages=TALK, facts=[["Toy"]]), knowledge="facts")


def test_pairs_and_labelled_replies_have_it_too() -> None:
    chosen, rejected = parse_pair(
        line(prompt="How tall is it?", chosen="12 cm [1].", rejected="No.", facts=FACTS), knowledge="facts"
    )
    assert chosen.messages == [TALL, *TALK]
    assert rejected.messages[:2] == [TALL, ASKED]
    judged = line(prompt="How tall is it?", completion="12 cm [1].", label=True, documents=FACTS)
    assert parse_judged(judged, knowledge="documents")[0].messages == [TALL, *TALK]
    other = line(prompt="Who?", completion="Me.", label=True, documents=FACTS)
    found = mismatched_replies([judged, other], knowledge="documents")
    assert found == [{"role": "assistant", "content": "Me."}, SAID]


def test_a_corpus_without_knowledge_keeps_its_key() -> None:
    data = {"sources": [{"path": "talks.jsonl"}]}
    assert "knowledge" not in DataSpec.model_validate(data).result_fields()
    assert DataSpec.model_validate(data | {"knowledge": "facts"}).result_fields()["knowledge"] == "facts"
