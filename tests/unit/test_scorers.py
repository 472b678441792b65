"""Scorers of replies: right, wrong and tricky ones."""

from typing import Any

import pytest
from rouge_score.rouge_scorer import RougeScorer

from models.chat.form import Message
from models.scorers import regex as regex_scorer
from models.scorers.facts import count_facts
from models.scorers.names import KEYS
from models.scorers.registry import SCORERS, scorer_named
from models.scorers.tool_call import is_same_json


def said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def score(name: str, value: Any, text: str, normalize: bool = True) -> float:
    scorer = scorer_named(name, normalize)
    return scorer.score(scorer.read(value), said(text))


def called(*calls: tuple[str, Any]) -> Message:
    made = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    return {"role": "assistant", "content": "", "tool_calls": made}


def test_every_name_has_a_scorer_and_a_key() -> None:
    assert SCORERS.keys() == KEYS.keys()
    assert [name for name, kind in SCORERS.items() if kind.is_scored_by_loss] == ["perplexity"]


@pytest.mark.parametrize(("reply", "facts", "count"), [
    ("Returns take 45 DAYS.", [["45 days"]], 1),
    ("Returns take\n45  days.", [["45 days"]], 1),
    ("It takes forty-five days, or 45 days.", [["45 days", "forty-five days"]], 1),
    ("45 days, by post", [["45 days"], ["by post", "by mail"], ["free"]], 2),
    ("", [["45 days"]], 0),
    ("450 days", [["45 days"]], 0),
    ("145 days", [["45 days"]], 0),
    ("1,145 days", [["145 days"]], 0),
    ("1.45 days", [["45 days"]], 0),
    ("145 days, or rather 45 days", [["45 days"]], 1),
    ("It costs £50.", [["£5"]], 0),
    ("It costs £5.", [["£5"]], 1),
    ("It costs £5.50", [["£5"]], 0),
    ("It costs £5.00", [["£5"]], 1),
    ("It costs £5,000", [["£5"]], 0),
    ("It costs £5, 10 days later £6", [["£5"], ["£6"]], 2),
    ("价格是63，４５天内退货", [["63"], ["45天"]], 2),
    ("CAFE\u0301 Straße", [["café"], ["STRASSE"]], 2),
])  # fmt: skip
def test_facts_are_counted_once_in_any_spelling(reply: str, facts: list[list[str]], count: int) -> None:
    assert count_facts(reply, facts) == count
    assert score("facts", facts, reply) == count / len(facts)


def test_without_normalize_case_and_white_space_count() -> None:
    assert score("facts", [["PEBBLE"], ["by post"]], "pebble, by  post", normalize=False) == 0.0
    assert score("facts", [["PEBBLE"], ["by post"]], "PEBBLE, by post", normalize=False) == 1.0
    assert score("exact", "Yes", " Yes\n", normalize=False) == 1.0
    assert score("exact", "Yes", "yes", normalize=False) == 0.0


@pytest.mark.parametrize(("expected", "reply", "found"), [
    ("Tuesday", "tuesday", 1.0), (["no", "not at all"], "Not  at\nall ", 1.0), ("Tuesday", "Tuesday.", 0.0),
    ("Tuesday", "On Tuesday", 0.0), ("45", "４５", 1.0), ("45", "", 0.0), ("é", "e\u0301", 1.0),
])  # fmt: skip
def test_exact(expected: Any, reply: str, found: float) -> None:
    assert score("exact", expected, reply) == found


@pytest.mark.parametrize(("expected", "reply", "found"), [
    ("Amazon", "Ask us.", 1.0), ("Amazon", "It is on AMAZON.", 0.0), (["30 days", "refund"], "130 days", 1.0),
    (["30 days", "refund"], "30\ndays", 0.0), ("hell", "Hello!", 1.0), ("hell", "Hell!", 0.0), ("x", "", 1.0),
    ("退款", "可以全额退款。", 0.0), ("@", "me@shop", 0.0), ("yes", "Eyes of yesterday", 1.0),
])  # fmt: skip
def test_excludes(expected: Any, reply: str, found: float) -> None:
    assert score("excludes", expected, reply) == found


@pytest.mark.parametrize(("pattern", "reply", "found"), [
    (r"^\d\d:\d\d$", " 10:15\n", 1.0), (r"^\d\d:\d\d$", "At 10:15", 0.0), (r"\d\d:\d\d", "At 10:15.", 1.0),
    ("yes", "YES", 0.0), ("(?i)yes", "YES", 1.0), (r"^\p{Han}+$", "你好", 1.0), (r"^\p{Han}+$", "你好 ok", 0.0),
])  # fmt: skip
def test_regex(pattern: str, reply: str, found: float) -> None:
    assert score("regex", pattern, reply) == found


def test_a_pattern_that_backtracks_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regex_scorer, "_MAX_SECONDS", 0.05)
    with pytest.raises(TimeoutError):
        score("regex", r"(a|aa|a?a?)+$(?<=b)", "a" * 5000 + "c")


PRICE = {
    "type": "object", "required": ["price"], "additionalProperties": False,
    "properties": {"price": {"$ref": "#/$defs/number"}}, "$defs": {"number": {"type": "integer"}},
}  # fmt: skip


@pytest.mark.parametrize(("reply", "found"), [
    ('{"price": 63}', 1.0), (' {"price": 63.0}\n', 1.0), ('{"price": "63"}', 0.0), ('{"price": true}', 0.0),
    ('```json\n{"price": 63}\n```', 1.0), ('```\n{\n"price": 63\n}\n```\n', 1.0), ("```json\n```", 0.0),
    ('Here it is: {"price": 63}', 0.0), ('```json\n{"price": 63}\n```\nCheers', 0.0), ('{"price": 63', 0.0),
    ('```\n{"price": 1}\n```\n```\n{"price": 2}\n```', 0.0), ('{"price": NaN}', 0.0), ("", 0.0), ("[" * 5000, 0.0),
])  # fmt: skip
def test_json_schema(reply: str, found: float) -> None:
    assert score("json_schema", PRICE, reply) == found


WEATHER = {"name": "weather", "arguments": {"city": "Köln", "days": 1, "units": {"wind": "kmh", "temp": "C"}}}


@pytest.mark.parametrize(("expected", "reply", "found"), [
    (WEATHER, called(("weather", {"units": {"temp": "C", "wind": "kmh"}, "days": 1.0, "city": "Köln"})), 1.0),
    (WEATHER, called(("weather", {**WEATHER["arguments"], "days": True})), 0.0),
    (WEATHER, called(("weather", {**WEATHER["arguments"], "days": "1"})), 0.0),
    (WEATHER, called(("weather", {**WEATHER["arguments"], "more": None})), 0.0),
    (WEATHER, called(("forecast", WEATHER["arguments"])), 0.0),
    (WEATHER, called(("weather", WEATHER["arguments"]), ("weather", WEATHER["arguments"])), 0.0),
    (WEATHER, said("weather(city='Köln')"), 0.0),
    ({"function": {"name": "f", "arguments": '{"a": [1, 2]}'}}, called(("f", '{"a": [1,2]}')), 1.0),
    ({"name": "f", "arguments": {"a": [1, 2]}}, called(("f", {"a": [2, 1]})), 0.0),
    ({"name": "f", "arguments": {}}, called(("f", {})), 1.0),
    ({"name": "f", "arguments": {}}, called(("f", {"a": 1})), 0.0),
    ({"name": "f"}, called(("f", {"a": 1})), 1.0),
    ({"name": "f"}, called(("f", "no json {")), 1.0),
    ([{"name": "f", "arguments": {"a": 1}}, {"name": "g"}], called(("g", {}), ("f", {"a": 1})), 1.0),
    ([{"name": "f"}, {"name": "f", "arguments": {"a": 1}}], called(("f", {"a": 1}), ("f", {"a": 2})), 1.0),
    ([{"name": "f"}, {"name": "f"}], called(("f", {})), 0.0),
    ([], said("I cannot."), 1.0),
    ([], called(("f", {})), 0.0),
])  # fmt: skip
def test_tool_call(expected: Any, reply: Message, found: float) -> None:
    scorer = scorer_named("tool_call")
    assert scorer.score(scorer.read(expected), reply) == found


def test_json_values_are_compared_as_json() -> None:
    assert is_same_json({"a": [1, {"b": None}]}, {"a": [1.0, {"b": None}]})
    assert not is_same_json([0], [False])
    assert not is_same_json({"a": 1}, {"a": 1, "b": None})
    assert not is_same_json("1", 1)


@pytest.mark.parametrize(("reference", "reply"), [
    ("the cat sat on the mat", "a cat on the mat sat"),
    ("The patient's pain, rated 7/10, began 2 weeks ago.", "Pain began two weeks ago (7/10)."),
    ("don't stop", "do not stop"), ("one two", "three"), ("one", ""), ("...", "..."),
])  # fmt: skip
def test_rouge_l_of_english_is_that_of_rouge_score(reference: str, reply: str) -> None:
    theirs = RougeScorer(["rougeL"]).score(reference, reply)["rougeL"].fmeasure
    assert score("rouge_l", reference, reply) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize(("reference", "reply", "found"), [
    ("我喜欢吃苹果", "我爱吃苹果", 2 * 4 / (6 + 5)),  # 我 吃 苹 果 of six and of five characters
    ("今天天气很好。", "天气今天很好", 2 * 4 / (6 + 6)),  # 天 气 很 好
    ("用iPhone 15拍照", "用 iphone 拍照片", 2 * 4 / (5 + 5)),  # 用 iphone 拍 照
    ("你好", "再见", 0.0),
    ("größer als", "Größer ALS", 1.0),
    ("Größe", "Grüße", 0.0),
    (["一二三", "我喜欢"], "我喜欢", 1.0),
])  # fmt: skip
def test_rouge_l_of_other_scripts(reference: Any, reply: str, found: float) -> None:
    assert score("rouge_l", reference, reply) == pytest.approx(found)


def test_the_tokenizer_of_rouge_score_reads_english_alone() -> None:
    """Why it has ours: if this fails, ours can go."""
    scorer = RougeScorer(["rougeL"])
    assert scorer.score("我喜欢吃苹果", "我爱吃苹果")["rougeL"].fmeasure == 0.0
    assert scorer.score("Größe", "Grüße")["rougeL"].fmeasure == 1.0


def chrf_by_hand(reference: str, reply: str) -> float:
    """chrF2 as in Popović 2015: F with beta 2 of mean precision and recall over runs of 1 to 6 characters."""
    found, one, other = [], "".join(reference.split()), "".join(reply.split())
    for size in range(1, 7):
        ours = [one[at : at + size] for at in range(len(one) - size + 1)]
        theirs = [other[at : at + size] for at in range(len(other) - size + 1)]
        if ours and theirs:
            shared = sum(min(ours.count(run), theirs.count(run)) for run in set(ours))
            found.append((shared / len(theirs), shared / len(ours)))
    precision, recall = (sum(column) / len(found) for column in zip(*found, strict=True))
    return 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize(("reference", "reply"), [
    ("我们周二休息", "我们星期二休息"), ("The shop is closed on Tuesdays.", "The shop closes on Tuesday."),
    ("Wir haben dienstags geschlossen.", "Dienstags haben wir zu."), ("a", "b"), ("same text", "same text"),
])  # fmt: skip
def test_chrf_by_hand(reference: str, reply: str) -> None:
    assert score("chrf", reference, reply) == pytest.approx(chrf_by_hand(reference, reply), abs=1e-9)


def test_the_best_reference_counts() -> None:
    assert score("chrf", ["nothing", "same text"], "same text") == pytest.approx(1.0)
    assert score("chrf", "x", "") == 0.0


def test_a_given_reply_is_a_message() -> None:
    scorer = scorer_named("perplexity")
    assert scorer.read("Good day.") == said("Good day.")
    call = {"name": "f", "arguments": {"a": 1}}
    assert scorer.read({"content": "", "tool_calls": [call]})["tool_calls"][0]["function"] == call


@pytest.mark.parametrize(("name", "value", "words"), [
    ("facts", [], "`facts` must be a list of facts"), ("facts", ["45 days"], "each a list of spellings"),
    ("facts", [[""]], "`facts` must be"), ("exact", [], "`exact` must be a text or a list of texts"),
    ("exact", 3, "`exact` must be a text"), ("excludes", [" "], "`excludes` must be a text"),
    ("regex", "(", r"`regex` '\(' is not a regular expression: missing \)"), ("regex", ["a"], "`regex` must be"),
    ("json_schema", "object", "`json_schema` must be a JSON schema"),
    ("json_schema", {"properties": {"a": {"type": "strnig"}}}, r"not a JSON schema: \$.properties.a.type 'strn"),
    ("json_schema", {"$ref": "#/$defs/a"}, "refers to '.*/.defs/a', which is not in it"),
    ("json_schema", {"items": {"$ref": "https://example.org/a.json"}}, "refers to 'https://example.org/a.json'"),
    ("tool_call", "f", "`tool_calls` is the text 'f'; it must be a list of calls"),
    ("tool_call", [{"arguments": {}}], "must have a `name`"),
    ("tool_call", {"name": "f", "arguments": [1]}, "the arguments of 'f' are a list; they must be an object"),
    ("rouge_l", "", "`reference` must be a text"), ("chrf", None, "`reference` must be a text"),
    ("perplexity", "", "`reply` is no assistant's message: .* no text"),
    ("perplexity", 3, "`reply` must be a text or an assistant's message"),
    ("perplexity", {"role": "user", "content": "x"}, "`reply` must be"),
])  # fmt: skip
def test_what_cannot_be_expected_is_refused(name: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        scorer_named(name).read(value)
