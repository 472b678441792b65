"""A judge's spec, prompt, labels and answers; what of it decides the key and travels. No request is sent."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from stored import OPTIMIZED

from models.chat.form import Conversation, Message
from models.statistics.comparison import compare
from workflows.jobs.package import pack
from workflows.judge.agreement import agreement_of, consistency_of, first_place_share_of, kappa_of
from workflows.judge.answers import AnswerForm, PairAnswer, RubricAnswer
from workflows.judge.items import item_to_judge
from workflows.judge.judge import read_key
from workflows.judge.labels import read_labels
from workflows.judge.prompt import read_prompt
from workflows.judge.settings import find_release, judge_settings
from workflows.progress import Progress
from workflows.runs.order import STAGES
from workflows.runs.run import run_stages
from workflows.spec import JudgeSpec, PipelineSpec
from workflows.spec.errors import SpecError
from workflows.spec.read import read_spec
from workflows.stage import StageFailed
from workflows.store import Artifact, Store
from workflows.suites.suite import Item, Turn

URL = "http://127.0.0.1:9/v1"
ASKED: list[Message] = [{"role": "user", "content": "How long may I return it?"}]
PAIRWISE = AnswerForm("pairwise", ["helpful"])
RUBRIC = AnswerForm("rubric", ["helpful", "clear"])


def judge(**fields: Any) -> JudgeSpec:
    return JudgeSpec.model_validate({"url": URL, "model": "m", **fields})


def pipeline(folder: Path, **fields: Any) -> Path:
    (folder / "talks.jsonl").write_text('{"messages": []}\n')
    file = folder / "pipeline.yaml"
    data = {"sources": [{"path": "talks.jsonl"}]}
    file.write_text(
        yaml.safe_dump(
            {"name": "p", "store": "s3://bucket/s", "base_model": "random:tiny-llama", "data": data, **fields}
        )
    )
    return file


@pytest.mark.parametrize(("fields", "words"), [
    ({"url": None, "model": None}, "exactly one"),
    ({"release": "demo"}, "exactly one"),
    ({"url": None, "release": "demo"}, "leave them out"),
    ({"model": None}, "needs `model`"),
    ({"url": "localhost:8000/v1"}, "must begin with http"),
    ({"url": "https://me:secret@host/v1"}, "api_key_env"),
    ({"input_price": 1}, "both"),
    ({"criteria": {}}, "at least 1"),
    ({"criteria": {"very good": "x"}}, "pattern"),
    ({"api_key_env": "sk-live-123"}, "never the key itself"),
])  # fmt: skip
def test_a_spec_that_cannot_work_is_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    section = {"url": URL, "model": "m", **fields}
    file = pipeline(
        tmp_path, evaluate={"judge": {name: value for name, value in section.items() if value is not None}}
    )
    with pytest.raises(SpecError, match=words) as error:
        read_spec(file)
    assert "evaluate.judge" in str(error.value)
    assert "sk-live" not in str(error.value)
    assert "secret@" not in str(error.value)


def test_a_url_may_end_in_the_route() -> None:
    assert judge(url="https://host/v1/chat/completions").url == judge(url="https://host/v1/").url == "https://host/v1"


def test_a_key_is_read_from_the_environment_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = judge(api_key_env="JUDGE_KEY")
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(StageFailed, match=r"api_key_env: the environment variable JUDGE_KEY is not set"):
        read_key(spec)
    for unusable in ("sk-1 sk-2", "schlüssel", "sk-1\nsk-2"):
        monkeypatch.setenv("JUDGE_KEY", unusable)
        with pytest.raises(StageFailed, match="JUDGE_KEY holds characters") as error:
            read_key(spec)
        assert unusable not in str(error.value)
    monkeypatch.setenv("JUDGE_KEY", " sk-1\n")
    read_key(spec)


def test_a_missing_key_ends_a_run_before_its_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    monkeypatch.setattr("workflows.training.readings.known_reading", lambda spec: None)
    section = {"url": URL, "model": "m", "api_key_env": "JUDGE_KEY"}
    spec = read_spec(pipeline(tmp_path, evaluate={"judge": section}))

    class Started(Exception):
        pass

    def connect(stages: Any) -> None:
        raise Started

    store = Store(str(tmp_path / "store"))
    with Progress(json_lines=True) as progress:
        with pytest.raises(StageFailed, match="JUDGE_KEY is not set"):
            run_stages(spec, store, progress, "evaluate", connect)
        with pytest.raises(Started):
            run_stages(spec, store, progress, "train", connect)


def test_the_prompt_has_conversation_replies_and_criteria() -> None:
    prompt = read_prompt(judge(criteria={"polite": "It  says\nplease."}))
    messages: list[Message] = [
        {"role": "system", "content": "Be {second_reply}."},
        *ASKED,
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "days", "arguments": {}}}]},
        {"role": "tool", "content": "45"},
    ]
    text = prompt.pairwise(Conversation(messages), "Up to {criteria}.", "One day.")
    assert "- polite: It says please.\n" in text
    assert "[user]\nHow long may I return it?\n[assistant]\ncalls days({})\n[tool]\n45" in text
    assert "[system]\nBe {second_reply}." in text
    assert "=== Reply A ===\nUp to {criteria}.\n=== Reply B ===\nOne day." in text
    assert "=== Reply ===\nOne day." in read_prompt(judge(mode="rubric")).rubric(Conversation(messages), "One day.")


def test_the_prompt_has_the_tools_that_the_conversation_has() -> None:
    prompt = read_prompt(judge())
    function = {"name": "days", "description": "Für {reply}s", "parameters": {}}
    tools = [{"type": "function", "function": each} for each in (function, {"name": "price"})]
    shown = '[tools]\n{"name":"days","description":"Für {reply}s","parameters":{}}\n{"name":"price"}\n[user]'
    assert shown in prompt.pairwise(Conversation(ASKED, tools), "a", "b")
    assert "[tools]" not in prompt.pairwise(Conversation(ASKED, []), "a", "b")


def test_tools_of_a_later_turn_are_shown_where_they_change() -> None:
    one, other = ([{"type": "function", "function": {"name": name}}] for name in ("days", "price"))
    turns = [Turn((ASKED[0],), one), Turn((ASKED[0],), one), Turn((ASKED[0],), other)]
    replies: list[Message] = [{"role": "assistant", "content": word} for word in ("a", "b", "c")]
    found = item_to_judge("shop", Item("7", tuple(turns)), replies, replies)
    assert found.asked.tools == one
    question = f"[user]\n{ASKED[0]['content']}"
    assert found.first == (
        f'[assistant]\na\n{question}\n[assistant]\nb\n[tools]\n{{"name":"price"}}\n{question}\n[assistant]\nc'
    )


@pytest.mark.parametrize(("text", "words"), [
    ("{conversation} {first_reply}", r"prompt.txt lacks \{second_reply\}"),
    ("{conversation} {first_reply} {second_replay}", r"did you mean \{second_reply\}"),
    ("{conversation} {first_reply} {second_reply} {reply}", r"has the place \{reply\}, which pairwise"),
])  # fmt: skip
def test_a_prompt_without_its_places_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(text)
    with pytest.raises(StageFailed, match=words):
        judge_settings(judge(prompt=str(file)))


def test_a_prompt_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r"evaluate\.judge\.prompt: cannot read"):
        judge_settings(judge(prompt=str(tmp_path / "none.txt")))
    (tmp_path / "latin.txt").write_bytes("fünf".encode("latin-1"))
    with pytest.raises(StageFailed, match="not UTF-8"):
        judge_settings(judge(prompt=str(tmp_path / "latin.txt")))


def test_a_prompt_may_have_braces_and_its_own_criteria(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text('{"A": 1} {conversation}|{first_reply}|{second_reply}')
    prompt = read_prompt(judge(prompt=str(tmp_path / "p.txt")))
    assert prompt.pairwise(Conversation(ASKED), "one", "two") == '{"A": 1} [user]\nHow long may I return it?|one|two'


@pytest.mark.parametrize(("text", "winner"), [
    ('{"reason": "r", "winner": "A"}', "first"),
    ('{"winner": "B", "more": 1}', "second"),
    ('```json\n{"reason": "r", "winner": "tie"}\n```', "tie"),
    ('<think>{"winner": "B"}</think>\n{"winner": "A"}', "first"),
    ("A has the price.\nVERDICT: A", "first"),
    ("Both.\n**VERDICT: tie**\n", "tie"),
    ("VERDICT: B", "second"),
    ("", None),
    ("A", None),
    ("A is better.", None),
    ("VERDICT: A\nOr rather B.", None),
    ("VERDICT: A or B", None),
    ("VERDICT: Tie", None),
    ('{"winner": "C"}', None),
    ('{"winner": ["A"]}', None),
    ('{"winner": "A", "reason": 7}', None),
    ('Here: {"winner": "A"}', None),
    ('["A"]', None),
    ("[" * 100_000, None),
])  # fmt: skip
def test_an_answer_about_a_pair_is_read_strictly(text: str, winner: str | None) -> None:
    found = PAIRWISE.read(text)
    assert found is None if winner is None else isinstance(found, PairAnswer) and found.winner == winner


@pytest.mark.parametrize(("text", "scores"), [
    ('{"reason": "r", "scores": {"helpful": 5, "clear": 1}}', (5, 1)),
    ("Fine.\nSCORES: helpful=4, clear=2", (4, 2)),
    ("SCORES: clear=2,helpful=4", (4, 2)),
    ('{"scores": {"helpful": 5}}', None),
    ('{"scores": {"helpful": 5, "clear": 6}}', None),
    ('{"scores": {"helpful": 5, "clear": 0}}', None),
    ('{"scores": {"helpful": 5, "clear": true}}', None),
    ('{"scores": {"helpful": 5, "clear": 2.5}}', None),
    ('{"scores": {"helpful": 5, "clear": 2, "long": 2}}', None),
    ("SCORES: helpful=4, clear=good", None),
    ("SCORES: helpful=4, clear=²", None),
])  # fmt: skip
def test_scores_are_read_strictly(text: str, scores: tuple[int, int] | None) -> None:
    found = RUBRIC.read(text)
    if scores is None:
        assert found is None
    else:
        assert isinstance(found, RubricAnswer)
        assert (found.scores["helpful"], found.scores["clear"]) == scores


@pytest.mark.parametrize("form", [PAIRWISE, RUBRIC])
def test_the_schema_takes_what_is_read(form: AnswerForm) -> None:
    import jsonschema

    schema = form.response_format["json_schema"]["schema"]
    result: dict[str, Any] = {"winner": "A"} if form is PAIRWISE else {"scores": {"helpful": 5, "clear": 1}}
    jsonschema.validate({"reason": "r", **result}, schema)
    assert form.read(json.dumps({"reason": "r", **result})) is not None
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"reason": "r", "winner": "first", "scores": {"helpful": 9, "clear": 1}}, schema)


@pytest.mark.parametrize(("record", "words"), [
    ({"first": "a", "second": "b", "prefers": "tie"}, "exactly one of"),
    ({"question": "", "first": "a", "second": "b", "prefers": "tie"}, "content"),
    ({"question": "Q", "first": "a", "prefers": "tie"}, "has no `second`"),
    ({"question": "Q", "first": "a", "second": None, "prefers": "tie"}, "`second` is null; it must be a reply"),
    ({"question": "Q", "first": "a", "second": "b", "prefers": "frist"}, "did you mean first"),
    ({"question": "Q", "first": "a", "second": "b", "prefer": "tie"}, "has no `prefers`; rename `prefer` if"),
    ({"question": "Q", "first": "a", "second": "b", "prefers": 1}, "must be one of"),
])  # fmt: skip
def test_a_broken_label_is_named_with_its_line(tmp_path: Path, record: Any, words: str) -> None:
    good = {"messages": ASKED, "first": "45 days", "second": "1 day", "prefers": "first"}
    file = tmp_path / "labels.jsonl"
    file.write_text(f"{json.dumps(good)}\n\n{json.dumps(record)}\n")
    with pytest.raises(StageFailed, match=words) as error:
        read_labels(str(file))
    assert f"evaluate.judge.labels: {file}:3: " in str(error.value)


def test_a_label_may_have_tools(tmp_path: Path) -> None:
    record = {"question": "Q", "tools": [{"name": "days"}], "first": "a", "second": "b", "prefers": "tie"}
    (tmp_path / "labels.jsonl").write_text(json.dumps(record))
    [label] = read_labels(str(tmp_path / "labels.jsonl"))
    assert [tool["function"]["name"] for tool in label.asked.tools or ()] == ["days"]


def test_labels_without_pairs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text("\n")
    with pytest.raises(StageFailed, match="has no pairs"):
        judge_settings(judge(labels=str(tmp_path / "labels.jsonl")))


def test_agreement_with_people() -> None:
    # 20 + 15 of 50 agree; people choose first in 25 and the judge in 30 of them, so 0.5 is expected by chance.
    pairs = [("first", "first")] * 20 + [("first", "second")] * 5
    pairs += [("second", "first")] * 10 + [("second", "second")] * 15
    assert kappa_of(pairs) == pytest.approx(0.4)
    found = agreement_of(pairs)
    assert found is not None
    assert (found.labels, found.share, found.kappa) == (50, 0.7, 0.4)
    assert (found.low, found.high) == (0.5625, 0.809)  # Wilson's interval of 35 of 50
    assert kappa_of([("tie", "tie")] * 3) is None
    assert agreement_of([]) is None


def test_consistency_and_preference_for_a_place() -> None:
    pairs = [("first", "first"), ("first", "second"), ("tie", "tie"), ("second", "tie")]
    assert consistency_of(pairs) == 0.5
    # Named: first in first place; second in second; first in first, second in first; second in second place.
    assert first_place_share_of(pairs) == 0.6
    assert consistency_of([]) is None
    assert first_place_share_of([("tie", "tie")]) is None


def share_of_cases_found(items: int, wins: float) -> float:
    """How often a perfect judge shows that a model is better that wins this share of items."""
    from scipy.stats import binom

    likely = [count for count in range(items + 1) if binom.pmf(count, items, wins) > 1e-6]
    scores = {count: [1.0] * count + [0.0] * (items - count) for count in likely}
    found = [count for count in likely if compare([0.5] * items, scores[count]).low > 0]
    return float(sum(binom.pmf(count, items, wins) for count in found))


def test_the_table_of_items_is_right() -> None:
    text = (Path(__file__).parents[2] / "docs" / "judge.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) == 5
    for items, *shares in rows:
        for wins, share in zip((0.55, 0.6, 0.65, 0.7), shares, strict=True):
            assert share_of_cases_found(int(items), wins) == pytest.approx(float(share), abs=0.0051)
    assert share_of_cases_found(202, 0.6) < 0.8 < share_of_cases_found(204, 0.6)
    assert "with 204 items" in text


def test_a_release_is_found_by_key_or_by_pipeline(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    with pytest.raises(StageFailed, match="pipelines with releases: none yet"):
        find_release(store, "shop")
    for key, started in (("aa", "2026-01-02"), ("bb", "2026-01-03"), ("cc", "2026-01-01")):
        store.finish(Artifact("optimize", key, "shop", {}, {}, OPTIMIZED, started=started))
    assert (find_release(store, "shop").key, find_release(store, "cc").key) == ("bb", "cc")
    with pytest.raises(StageFailed, match=r"evaluate\.judge\.release: the store has no release 'shopp'.*: shop$"):
        find_release(store, "shopp")
    spec = PipelineSpec.model_validate({
        "name": "p", "base_model": "random:tiny-llama", "data": {"sources": [{"path": "x"}]},
        "evaluate": {"judge": {"release": "shop"}},
    })  # fmt: skip
    [stage] = [stage for stage in STAGES if stage.name == "evaluate"]
    assert stage.stored(spec, store, {"train": "x"}) == {"judge": "bb"}


def test_several_turns_are_judged_as_one_reply() -> None:
    turns = Turn((ASKED[0],)), Turn(({"role": "user", "content": "And the lamp?"},))
    replies: list[Message] = [{"role": "assistant", "content": "45 days"}, {"role": "assistant", "content": "Too."}]
    found = item_to_judge("shop", Item("7", turns, {"topic": "returns"}, "a"), replies, replies[::-1])
    assert found.asked == Conversation(ASKED)
    assert found.first == "[assistant]\n45 days\n[user]\nAnd the lamp?\n[assistant]\nToo."
    assert found.second.endswith("[assistant]\n45 days")
    assert (found.id, found.group, found.tags) == ("shop/7", "shop/a", {"topic": "returns"})
    assert item_to_judge("shop", Item("8", turns[:1]), replies[:1], replies[1:]).second == "Too."
    call: Message = {
        "role": "assistant",
        "content": "Wait.",
        "tool_calls": [{"function": {"name": "days", "arguments": {}}}],
    }
    assert item_to_judge("shop", Item("9", turns[:1]), [call], replies).first == "Wait.\ncalls days({})"


def _key_settings(spec: Any) -> Any:
    [settings] = [stage.settings(spec)["evaluate"] for stage in STAGES if stage.name == "evaluate"]
    return settings


def test_the_key_has_the_judge_only_where_there_is_one(tmp_path: Path) -> None:
    assert "judge" not in _key_settings(read_spec(pipeline(tmp_path)))
    (tmp_path / "prompt.txt").write_text("{conversation}{first_reply}{second_reply}")
    label = {"question": "Q", "first": "a", "second": "b", "prefers": "tie"}
    (tmp_path / "labels.jsonl").write_text(json.dumps(label))
    section = {"url": URL, "model": "m", "prompt": "prompt.txt", "labels": "labels.jsonl", "api_key_env": "K"}
    file = pipeline(tmp_path, evaluate={"judge": section})
    spec = read_spec(file)
    first = _key_settings(spec)
    hardly = {"max_concurrent": 3, "timeout_s": 5, "api_key_env": "OTHER", "input_price": 1, "output_price": 2}
    assert spec.evaluate.judge is not None
    other = spec.evaluate.model_copy(update={"judge": spec.evaluate.judge.model_copy(update=hardly)})
    assert _key_settings(spec.model_copy(update={"evaluate": other})) == first
    (tmp_path / "prompt.txt").write_text("{conversation}{first_reply} {second_reply}")
    second = _key_settings(spec)
    (tmp_path / "labels.jsonl").write_text(json.dumps(label) + "\n")
    assert len({json.dumps(each) for each in (first, second, _key_settings(spec))}) == 3
    (tmp_path / "labels.jsonl").unlink()
    with pytest.raises(StageFailed, match=r"evaluate\.judge\.labels: cannot read"):
        _key_settings(spec)


def test_prompt_and_labels_travel_with_a_job_and_the_key_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    here = tmp_path / "here"
    here.mkdir()
    (here / "prompt.txt").write_text("{conversation}{first_reply}{second_reply}")
    (here / "labels.jsonl").write_text('{"question": "Q", "first": "a", "second": "b", "prefers": "tie"}')
    section = {"url": URL, "model": "m", "prompt": "prompt.txt", "labels": "labels.jsonl", "api_key_env": "JUDGE_KEY"}
    spec = read_spec(pipeline(here, evaluate={"judge": section}))
    target = tmp_path / "there"
    target.mkdir()
    pack(spec, here, target)
    monkeypatch.chdir(target)
    there = read_spec(target / "pipeline.yaml")
    judge_settings(there.evaluate.judge)  # type: ignore[arg-type]
    assert _key_settings(there) == _key_settings(spec)
    texts = [file.read_bytes() for file in target.rglob("*") if file.is_file()]
    assert not any(b"sk-very-secret" in text for text in texts)
