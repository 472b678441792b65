"""Suites: items of all layouts, the errors of broken ones, scores, and what travels and decides the key."""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.chat.form import Message
from models.text.texts import Texts
from workflows.jobs.package import pack
from workflows.runs.order import STAGES
from workflows.spec import EvaluateSpec, PipelineSpec, SuiteSpec
from workflows.spec.errors import SpecError
from workflows.spec.read import read_spec
from workflows.stage import StageFailed
from workflows.suites.leaks import AskedTexts
from workflows.suites.read import read_suites
from workflows.suites.suite import Suite

USER: Message = {"role": "user", "content": "When?"}
TOOLS = [{"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}]
SCORERS = """
from shop_words import GOOD

def score(record, reply):
    record["question"] = reply["content"] = "changed"
    return len(GOOD) / 4

def fails(record, reply):
    return record["lacking"]

def texts(record, reply):
    return "good"

def endless(record, reply):
    return float("nan")

def seen(record, reply):
    return sorted(record) == ["id", "turns"]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYCONTEUR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = tmp_path / "here"
    found.mkdir()
    (found / "shop_scorers.py").write_text(SCORERS)
    (found / "shop_words.py").write_text("GOOD = ['yes', 'please']\n")
    return found


def write(folder: Path, *records: Any, name: str = "suite.jsonl") -> Path:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in records))
    return file


def suite_of(folder: Path, *records: Any, **fields: Any) -> Suite:
    return read_suites(EvaluateSpec(suites=[SuiteSpec(path=str(write(folder, *records)), **fields)]))[0]


def said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def test_questions_with_facts_are_a_suite(folder: Path) -> None:
    questions = {"question": "When?", "facts": [["45 days"], ["free"]]}, {"question": "W", "facts": [["x"]]}
    suite = suite_of(folder, questions[0], "", questions[1])
    assert (suite.name, suite.scorer_name, suite.golden, suite.max_new_tokens) == ("suite", "facts", False, 64)
    assert not suite.is_scored_by_loss
    first, second = suite.items
    assert first.conversation([]).messages == [USER]
    assert first.turns[0].expected == [["45 days"], ["free"]]
    assert (first.id, first.group, first.tags) == ("suite.jsonl:1", "suite.jsonl:1", {})
    assert second.place == f"{folder}/suite.jsonl:3"
    assert suite.score(first, 0, said("In 45 days.")) == 0.5


def test_messages_with_tools(folder: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        USER,
        said("Eh?"),
        {"role": "user", "content": "The lamp"},
    ]
    record = {"id": 7, "group": "lamps", "tags": {"topic": "price"}, "messages": messages,
              "tools": [TOOLS[0]["function"]], "tool_calls": {"name": "price"}}  # fmt: skip
    suite = suite_of(folder, record, golden=True, max_new_tokens=9, name="calls")
    assert (suite.name, suite.scorer_name, suite.golden, suite.max_new_tokens) == ("calls", "tool_call", True, 9)
    item = suite.items[0]
    assert (item.id, item.group, item.tags) == ("7", "lamps", {"topic": "price"})
    assert item.conversation([]).messages == messages
    assert item.conversation([]).tools == TOOLS


def test_turns_are_joined_by_the_replies(folder: Path) -> None:
    record = {"turns": [
        {"user": "Hello"}, {"user": "When?", "facts": [["45 days"]]},
        {"messages": [{"role": "user", "content": "And?"}, said("Yes?"), USER], "facts": [["free"]]},
    ]}  # fmt: skip
    item = suite_of(folder, record).items[0]
    assert item.scored_turns == (1, 2)
    assert item.conversation([]).messages == [{"role": "user", "content": "Hello"}]
    contents = [message["content"] for message in item.conversation([said("Hi!"), said("In 45 days.")]).messages]
    assert contents == ["Hello", "Hi!", "When?", "In 45 days.", "And?", "Yes?", "When?"]


def test_an_item_s_knowledge_stands_in_its_prompts(folder: Path) -> None:
    known: dict[str, Any] = {"knowledge": [["Toy", "height", "12 cm"]], "facts": [["12 cm"]]}
    system = {"role": "system", "content": "Be brief."}
    turns = {"turns": [{"user": "When?"}, {"user": "Why?", "facts": [["x"]]}], "knowledge": known["knowledge"]}
    suite = suite_of(
        folder,
        known | {"question": "When?"},
        known | {"messages": [system, USER]},
        turns,
        known | {"question": "When?", "knowledge": []},
    )
    sources = "<sources>\n[1] Toy\nheight: 12 cm\n</sources>"
    plain, brief, several, none = (item.conversation([]).messages for item in suite.items)
    assert plain == several == [{"role": "system", "content": sources}, USER]
    assert brief == [{"role": "system", "content": f"Be brief.\n\n{sources}"}, USER]
    assert none == [USER]
    later = suite.items[2].conversation([said("Now.")]).messages
    assert [message["role"] for message in later] == ["system", "user", "assistant", "user"]


def test_results_of_tools_follow_the_calls_of_the_model(folder: Path) -> None:
    results = [{"role": "tool", "tool_call_id": "mine", "content": "63"}, {"role": "tool", "content": "9"}]
    turns = [{"user": "When?", "tool_calls": [{"name": "price"}]}, {"messages": [*results, USER], "tool_calls": []}]
    item = suite_of(folder, {"turns": turns, "tools": TOOLS}).items[0]
    messages = item.conversation([said("?")]).messages
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "user"]
    assert not any("tool_call_id" in message for message in messages), "the model gives its calls other ids"
    assert item.conversation([]).tools == TOOLS


def test_a_folder_has_its_files_in_order(folder: Path) -> None:
    write(folder, {"question": "b", "exact": "B"}, name="tone/b.jsonl")
    write(folder, {"question": "a", "exact": "A"}, name="tone/a.jsonl")
    write(folder, "no item", name="tone/notes.txt")
    suite = read_suites(EvaluateSpec(suites=[SuiteSpec(path=f"{folder}/tone")]))[0]
    assert suite.name == "tone"
    assert [item.id for item in suite.items] == ["a.jsonl:1", "b.jsonl:1"]


def test_a_given_reply_is_scored_by_its_loss(folder: Path) -> None:
    suite = suite_of(folder, {"question": "When?", "reply": "In 45 days."})
    assert suite.is_scored_by_loss
    assert suite.items[0].turns[0].expected == said("In 45 days.")


def test_a_given_reply_has_its_earlier_turns_in_messages(folder: Path) -> None:
    with pytest.raises(StageFailed, match="has `turns`, but its replies are given; write the conversation before"):
        suite_of(folder, {"turns": [{"user": "Hi", "reply": "Hello"}, {"user": "When?", "reply": "Now"}]})


def test_a_reference_needs_the_name_of_its_scorer(folder: Path) -> None:
    record = {"question": "When?", "reference": "In 45 days."}
    assert suite_of(folder, record, scorer="chrf").scorer_name == "chrf"
    with pytest.raises(
        StageFailed, match=r"suites\.0\.scorer: .*:1 has `reference`, for rouge_l or chrf; set `scorer`"
    ):
        suite_of(folder, record)
    with pytest.raises(StageFailed, match=r"has `exact` and `facts`, for facts or exact; set `scorer`"):
        suite_of(folder, {"question": "When?", "exact": "x", "facts": [["x"]]})


@pytest.mark.parametrize(("record", "words"), [
    ({"question": "When?", "fact": [["x"]]}, "has no `facts`; rename `fact` if that is meant"),
    ({"question": "When?", "exact": "x"}, "has no `facts`, but `exact`; a suite has one scorer"),
    ({"question": "When?"}, "has no `facts`; without, nothing is scored"),
    ({"question": "When?", "facts": ["x"]}, "`facts` must be a list of facts"),
    ({"question": " ", "facts": [["x"]]}, r"message 0 \(user\) has no text in `content`|empty"),
    ({"facts": [["x"]]}, "must have exactly one of `question`, `messages` and `turns`, and has none"),
    ({"question": "When?", "messages": [USER], "facts": [["x"]]}, "must .* and has `question` and `messages`"),
    ({"messages": [USER, {"role": "assistant", "content": "x"}], "facts": [["x"]]}, "the last message is of role"),
    ({"messages": [{"role": "usr", "content": "x"}], "facts": [["x"]]}, "message 0 .*'usr'"),
    ({"turns": [{"user": "Hi", "fact": [["x"]]}]}, "no turn has `facts`; rename `fact` if that is meant"),
    ({"turns": [], "facts": [["x"]]}, "`turns` is a list; it must be a list of turns"),
    ({"turns": [{"user": "Hi"}], "facts": [["x"]]}, "`facts` stands beside `turns`; move it into the turn"),
    ({"turns": [{"user": "Hi"}, {"facts": [["x"]]}]}, "turn 1: must have exactly one of `user` and `messages`"),
    ({"turns": [{"user": "Hi"}, "x"]}, "turn 1: is the text 'x', not an object"),
    ({"turns": [{"user": "Hi"}, {"messages": [{"role": "system", "content": "x"}, USER]}]}, "turn 1: begins"),
    ({"turns": [{"user": "Hi"}, {"user": "x", "facts": []}]}, "turn 1: `facts` must be"),
    ({"question": "When?", "facts": [["x"]], "id": ["7"]}, "`id` is a list; it must be a text or a whole number"),
    ({"question": "When?", "facts": [["x"]], "group": {}}, "`group` is an object"),
    ({"question": "When?", "facts": [["x"]], "tags": ["de"]}, "`tags` must be an object of texts"),
    ({"question": "When?", "facts": [["x"]], "tags": {"length": 3}}, "`tags` must be an object of texts"),
    ({"question": "When?", "facts": [["x"]], "knowledge": [["a", "b"]]}, r"`knowledge`\[0\] is a list of 2; a pass"),
    ({"question": "When?", "facts": [["x"]], "tools": "x"}, "`tools` is a text that is not JSON"),
    ({"question": "When?", "facts": [["x"]], "id": "suite.jsonl:1"}, "the id 'suite.jsonl:1' is that of .*:1 too"),
])  # fmt: skip
def test_a_broken_item_is_refused_with_file_and_line(folder: Path, record: Any, words: str) -> None:
    good = {"question": "When?", "facts": [["45 days"]]}
    with pytest.raises(StageFailed, match=rf"^evaluate\.suites\.0: .*/suite\.jsonl:2: ({words})"):
        suite_of(folder, good, record)


def test_an_expected_call_must_be_of_a_given_tool(folder: Path) -> None:
    record = {"question": "When?", "tools": TOOLS, "tool_calls": [{"name": "prize"}]}
    with pytest.raises(StageFailed, match=r"call of 'prize', which is not among `tools`; did you mean price\?"):
        suite_of(folder, record)
    with pytest.raises(StageFailed, match=r"call of 'prize', which is not among `tools`; `tools` has none"):
        suite_of(folder, {**record, "tools": None})


def test_a_suite_without_items_is_refused(folder: Path) -> None:
    with pytest.raises(StageFailed, match=r"^evaluate\.suites\.0\.path: .*/suite\.jsonl has no items"):
        suite_of(folder, "")
    with pytest.raises(StageFailed, match=r"^evaluate\.suites\.0\.path: nothing found at .*/lost; give a JSON-lines"):
        read_suites(EvaluateSpec(suites=[SuiteSpec(path=f"{folder}/lost")]))
    (folder / "empty").mkdir()
    with pytest.raises(StageFailed, match=r"the folder .*/empty has no file \*\.jsonl"):
        read_suites(EvaluateSpec(suites=[SuiteSpec(path=f"{folder}/empty")]))
    with pytest.raises(
        StageFailed, match=r":1: nothing says what is expected of a reply; add one of `facts`, `exact`"
    ):
        suite_of(folder, {"question": "When?"})


def test_a_function_scores(folder: Path) -> None:
    suite = suite_of(folder, {"question": "When?"}, scorer=f"{folder}/shop_scorers:score")
    item = suite.items[0]
    again = pickle.loads(pickle.dumps(suite))
    assert [each.score(item, 0, said("x")) for each in (suite, again)] == [0.5, 0.5]
    assert item.turns[0].expected == {"question": "When?"}, "a scorer gets a copy"
    assert (suite.scorer_name, suite.is_scored_by_loss) == ("shop_scorers:score", False)
    assert suite_of(folder, {"question": "W"}, scorer="operator:eq").score(item, 0, said("x")) == 0.0


def test_a_function_gets_the_record_of_a_turn(folder: Path) -> None:
    record = {"id": "a", "turns": [{"user": "Hi"}, {"user": "When?", "mine": 1}, {"user": "Why?"}]}
    item = suite_of(folder, record, scorer=f"{folder}/shop_scorers:score").items[0]
    assert [turn.expected for turn in item.turns] == [
        None, {"id": "a", "user": "When?", "mine": 1}, {"id": "a", "user": "Why?"},
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "words"), [
    ("fails", r"shop_scorers:fails raised KeyError: 'lacking' \(shop_scorers\.py:9\) for .*/suite\.jsonl:1;"),
    ("texts", r"shop_scorers:texts raised TypeError: returned 'good' \(str\); it must return a num"),
    ("endless", r"shop_scorers:endless returned nan for the reply to .*/suite\.jsonl:1;"),
])  # fmt: skip
def test_a_scorer_that_fails_names_itself_and_the_item(folder: Path, name: str, words: str) -> None:
    suite = suite_of(folder, {"question": "When?"}, scorer=f"{folder}/shop_scorers:{name}")
    with pytest.raises(StageFailed, match=rf"^evaluate\.suites\.0\.scorer: {words}"):
        suite.score(suite.items[0], 0, said("x"))


def test_a_function_that_is_not_there_is_refused_before_replies(folder: Path) -> None:
    with pytest.raises(
        StageFailed, match=r"^evaluate\.suites\.0\.scorer: scor of .* is not defined; did you mean score\?"
    ):
        suite_of(folder, {"question": "When?"}, scorer=f"{folder}/shop_scorers:scor")


def test_questions_and_items_are_found_in_conversations(folder: Path) -> None:
    turns = [{"user": "My old stove leaks a lot of gas"}, {"user": "What does mending cost me?", "exact": "19"}]
    suite = suite_of(folder, {"question": "When?", "exact": "x"}, {"turns": turns})
    asked = AskedTexts.of({"q.jsonl:1": "When?", "q.jsonl:2": "Why?"}, [suite, suite])
    index = asked.index()
    assert index is not None

    def leaked(*turns: str) -> set[str]:
        return asked.places((index.names[each.reference], each.share) for each in index.find(Texts.of([turns])))

    talk = ["Hello", "My old stove LEAKS a lot of gas.", "What does mending cost me", "When is it?"]
    assert leaked(*talk) == {f"{folder}/suite.jsonl:2"}
    assert leaked("So?", "when") == {f"{folder}/suite.jsonl:1", "q.jsonl:1"}
    assert AskedTexts.of({}, []).index() is None


def test_an_instruction_that_all_texts_share_is_no_leak(folder: Path) -> None:
    instruction = "Write the history section of a clinical note that summarizes this talk between doctor and patient."
    talk = "My knee has hurt for two weeks, mostly on the stairs, and at night I cannot sleep on that side."
    suite = suite_of(folder, {"question": f"{instruction} {talk}", "exact": "x"})
    asked = AskedTexts.of({}, [suite])
    index = asked.index()
    assert index is not None

    def leaked(text: str) -> set[str]:
        found = index.find(Texts.of([[text]]))
        assert found
        return asked.places((index.names[each.reference], each.share) for each in found)

    assert leaked(f"{instruction} I have had a cough since May.") == set()
    assert leaked(f"{instruction} {talk}") == {f"{folder}/suite.jsonl:1"}


def test_a_text_that_many_items_have_is_found_for_all_of_them(folder: Path) -> None:
    suite = suite_of(folder, *({"question": "When do you open?", "exact": str(number)} for number in range(20)))
    asked = AskedTexts.of({"q.jsonl:1": "When do you open?"}, [suite])
    index = asked.index()
    assert index is not None
    found = index.find(Texts.of([["When do you open?"]]))
    assert len(asked.places((index.names[each.reference], each.share) for each in found)) == 21


def spec_of(folder: Path, *suites: dict[str, Any], **evaluate: Any) -> PipelineSpec:
    values = {
        "name": "shop", "base_model": "random:tiny-llama", "data": {"sources": [{"path": "d.jsonl"}]},
        "store": "/store", "evaluate": {**evaluate, **({"suites": [*suites]} if suites else {})},
    }  # fmt: skip
    (folder / "p.yaml").write_text(yaml.safe_dump(values))
    return read_spec(folder / "p.yaml")


def evaluate_settings(spec: PipelineSpec) -> Any:
    return next(stage for stage in STAGES if stage.name == "evaluate").settings(spec)["evaluate"]


def test_a_pipeline_file_names_suites_from_its_folder(folder: Path) -> None:
    spec = spec_of(folder, {"path": "a.jsonl"}, {"path": "s3://b/c.jsonl?x=y", "scorer": "shop_scorers:score"})
    first, second = spec.evaluate.suites
    assert (first.path, first.shown_name) == (f"{folder}/a.jsonl", "a")
    assert (second.path, second.shown_name) == ("s3://b/c.jsonl?x=y", "c")
    assert second.scorer == f"{folder}/shop_scorers:score"


@pytest.mark.parametrize(("suites", "words"), [
    ([{"path": "a.jsonl", "scorer": "fact"}], r"got 'fact'; must be one of facts, .*; did you mean facts\?"),
    ([{"path": "a.jsonl"}, {"path": "b/a.jsonl"}], "suites.0 and suites.1 are both named 'a'; set the `name` of one"),
    ([{"path": "a.jsonl", "gold": True}], r"unknown field; did you mean evaluate\.suites\.0\.golden\?"),
])  # fmt: skip
def test_mistakes_in_a_suites_fields(folder: Path, suites: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        spec_of(folder, *suites)


def test_the_key_is_unchanged_without_suites_and_changes_with_their_items(folder: Path) -> None:
    assert "suites" not in evaluate_settings(spec_of(folder))
    file = write(folder, {"question": "When?", "facts": [["x"]]})
    asked = {"path": "suite.jsonl"}
    first = evaluate_settings(spec_of(folder, asked))
    assert json.dumps(first)
    assert evaluate_settings(spec_of(folder, {**asked, "path": str(file)})) == first
    changes = [
        evaluate_settings(spec_of(folder, {**asked, **more}))
        for more in (
            {"golden": True},
            {"normalize": False},
            {"max_new_tokens": 3},
            {"name": "x"},
            {"scorer": "facts"},
        )
    ]
    assert all(change != first for change in changes)
    write(folder, {"question": "When?", "facts": [["y"]]})
    assert evaluate_settings(spec_of(folder, asked)) != first
    write(folder, {"question": "When?", "fact": [["y"]]})
    with pytest.raises(StageFailed, match=r"suite\.jsonl:1: .* rename `fact`"):  # before a training, not after it
        evaluate_settings(spec_of(folder, {**asked, "scorer": "facts"}))
    file.unlink()
    with pytest.raises(StageFailed, match=r"^evaluate\.suites\.0\.path: nothing found at"):
        evaluate_settings(spec_of(folder, asked))


def test_the_key_changes_with_the_code_of_a_scorer(folder: Path) -> None:
    write(folder, {"question": "When?"})
    asked = {"path": "suite.jsonl", "scorer": "shop_scorers:score"}
    first = evaluate_settings(spec_of(folder, asked))
    assert evaluate_settings(spec_of(folder, asked)) == first
    (folder / "shop_words.py").write_text("import what_only_the_cluster_has\n")
    assert evaluate_settings(spec_of(folder, asked)) != first


def test_a_job_takes_the_items_and_the_code_of_scorers(folder: Path, tmp_path: Path) -> None:
    write(folder, {"question": "When?", "exact": "x"}, name="tone/a.jsonl")
    write(folder, {"question": "When?"})
    write(folder, "{}", name="d.jsonl")
    spec = spec_of(folder, {"path": "tone"}, {"path": "suite.jsonl", "scorer": "shop_scorers:score"})
    packed = tmp_path / "packed"
    packed.mkdir()
    run = pack(spec, folder, packed)
    there = read_spec(packed / "pipeline.yaml")
    assert evaluate_settings(there) == evaluate_settings(spec)
    tone, suite = read_suites(there.evaluate)
    assert tone.items[0].place.startswith(str(packed))
    assert suite.score(suite.items[0], 0, said("x")) == 0.5
    (folder / "shop_words.py").write_text("GOOD = []\n")
    other = tmp_path / "other"
    other.mkdir()
    assert pack(spec, folder, other) != run
