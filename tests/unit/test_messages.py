"""Messages in their normal form: every accepted spelling, and refusals that name the turn and the key."""

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.chat.messages import MessageError, normal_messages, normal_tools

ASKED = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "Hello."}
CALL = {"id": "c1", "type": "function", "function": {"name": "price_of", "arguments": {"thing": "ladder"}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
BARE_CALL = {"type": "function", "function": CALL["function"]}
BARE_CALLS = {**CALLS, "tool_calls": [BARE_CALL]}
FOUND = {"role": "tool", "content": '{"crowns": 10}', "tool_call_id": "c1"}
TOOL = {
    "type": "function",
    "function": {"name": "price_of", "description": "Price.", "parameters": {"type": "object"}},
}


def said(**keys: Any) -> dict[str, Any]:
    return {**SAID, **keys}


@pytest.mark.parametrize(("turn", "normal"), [
    ({"role": "User", "content": "Hi"}, ASKED),
    ({"role": " HUMAN ", "content": "Hi"}, ASKED),
    ({"role": "Developer", "content": "Hi"}, {"role": "developer", "content": "Hi"}),
    ({"role": "user", "content": [{"type": "text", "text": "H"}, "i"]}, ASKED),
    ({"role": "user", "content": [{"type": "input_text", "text": "Hi", "image_url": None}]}, ASKED),
    ({"role": "user", "content": [{"text": "Hi", "cache_control": {"type": "ephemeral"}}]}, ASKED),
    ({**ASKED, "name": "Ann"}, {**ASKED, "name": "Ann"}),
    ({**ASKED, "name": None, "weight": 0, "train": False, "tool_calls": []}, ASKED),
    ({**ASKED, "id": "m1", "timestamp": 3, "annotations": [], "refusal": None, "audio": None, "lang": "en"}, ASKED),
])  # fmt: skip
def test_turns_of_a_user(turn: dict[str, Any], normal: dict[str, Any]) -> None:
    assert normal_messages([turn]) == [normal]


@pytest.mark.parametrize(("turn", "normal"), [
    *[({"role": role, "content": "Hello."}, SAID) for role in ("gpt", "ChatGPT", "bot", "model", "AI", "Assistant")],
    (said(content=[{"type": "output_text", "text": "Hel"}, {"type": "text", "text": "lo."}]), SAID),
    (said(weight=1), SAID),
    (said(weight=1.0, train=True, loss=None), SAID),
    (said(weight=0), said(train=False)),
    (said(weight=0.0), said(train=False)),
    (said(train=False), said(train=False)),
    (said(loss=False), said(train=False)),
    (said(loss_mask=0, training=False), said(train=False)),
    (said(reasoning_content="Why?"), said(reasoning_content="Why?")),
    (said(reasoning="Why?"), said(reasoning_content="Why?")),
    (said(thinking="Why?", reasoning="Why?\n"), said(reasoning_content="Why?\n")),
    (said(thought="Why?", reasoning_content=" "), said(reasoning_content="Why?")),
    (said(reasoning_content=""), SAID),
    (said(content="<think>\nWhy?\n</think>\n\nHello."), said(reasoning_content="Why?")),
    (said(content="\n <think>Why?</think>Hello."), said(reasoning_content="Why?")),
    (said(content="<think>\n\n</think>\n\nHello."), SAID),
    (said(content="<think>Why?</think>Hello.", reasoning_content="Why?"), said(reasoning_content="Why?")),
    (said(content="<think>Why? Hello."), said(content="<think>Why? Hello.")),
    (said(content="It is <think>a</think> tag."), said(content="It is <think>a</think> tag.")),
    (said(content="a</think>b"), said(content="a</think>b")),
    (said(content=[{"type": "thinking", "thinking": "Why?"}, {"type": "text", "text": "Hello."}]),
     said(reasoning_content="Why?")),
    (said(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "Why?"}]}, "Hello."]),
     said(reasoning_content="Why?")),
    ({"role": "assistant", "content": None, "tool_calls": [CALL]}, CALLS),
    ({"role": "assistant", "tool_calls": [CALL]}, CALLS),
    ({"role": "assistant", "content": " \n", "tool_calls": [CALL]}, CALLS),
    ({"role": "assistant", "content": [], "tool_calls": [CALL]}, CALLS),
    ({**CALLS, "tool_calls": CALL}, CALLS),
    ({**CALLS, "tool_calls": json.dumps([CALL])}, CALLS),
    ({**CALLS, "tool_calls": [json.dumps(CALL)]}, CALLS),
    (said(tool_calls=[CALL]), said(tool_calls=[CALL])),
    ({**CALLS, "tool_calls": [{**CALL, "index": 0}]}, CALLS),
    ({**CALLS, "tool_calls": [{"id": None, "function": CALL["function"]}]}, BARE_CALLS),
    ({**CALLS, "tool_calls": [{"name": "price_of", "arguments": {"thing": "ladder"}}]}, BARE_CALLS),
    ({**CALLS, "tool_calls": [{"name": "price_of", "parameters": '{"thing": "ladder"}'}]}, BARE_CALLS),
    ({"role": "gpt", "function_call": {"name": "price_of", "arguments": '{"thing":"ladder"}'}}, BARE_CALLS),
    ({"role": "function_call", "content": '{"name": "price_of", "arguments": {"thing": "ladder"}}'}, BARE_CALLS),
    ({"role": "function_call", "content": {"name": "price_of", "arguments": {"thing": "ladder"}}}, BARE_CALLS),
    ({"role": "Function Call", "content": '[{"name": "price_of", "arguments": {"thing": "ladder"}}]'}, BARE_CALLS),
    ({"role": "tool_call", "content": '<think>Why?</think>{"name": "price_of", "arguments": {"thing": "ladder"}}'},
     {**BARE_CALLS, "reasoning_content": "Why?"}),
    ({"role": "assistant", "content": "<think>Why?</think>", "tool_calls": [CALL]},
     {**CALLS, "reasoning_content": "Why?"}),
])  # fmt: skip
def test_turns_of_an_assistant(turn: dict[str, Any], normal: dict[str, Any]) -> None:
    before = copy.deepcopy(turn)
    assert normal_messages([ASKED, turn]) == [ASKED, normal]
    assert turn == before


@pytest.mark.parametrize("arguments", ["", None, "{}", {}])
def test_a_call_may_have_no_arguments(arguments: Any) -> None:
    [call] = normal_messages([said(tool_calls=[{"name": "now", "arguments": arguments}])])[0]["tool_calls"]
    assert call == {"type": "function", "function": {"name": "now", "arguments": {}}}


@pytest.mark.parametrize(("turn", "normal"), [
    (FOUND, FOUND),
    ({**FOUND, "content": {"crowns": 10}}, FOUND),
    ({**FOUND, "content": [{"type": "text", "text": '{"crowns": 10}'}]}, FOUND),
    ({**FOUND, "content": None}, {**FOUND, "content": ""}),
    ({**FOUND, "content": ""}, {**FOUND, "content": ""}),
    ({**FOUND, "content": 10}, {**FOUND, "content": "10"}),
    ({**FOUND, "content": ["é", 2]}, {**FOUND, "content": '["é", 2]'}),
    ({**FOUND, "content": [{"type": "file", "name": "a.txt"}]},
     {**FOUND, "content": '[{"type": "file", "name": "a.txt"}]'}),
    *[({"role": role, "content": "10"}, {"role": "tool", "content": "10"})
      for role in ("tool", "observation", "ipython", "Function", "tool_response")],
    ({"role": "function", "name": "price_of", "content": "1"}, {"role": "tool", "name": "price_of", "content": "1"}),
])  # fmt: skip
def test_results_of_tools(turn: dict[str, Any], normal: dict[str, Any]) -> None:
    assert normal_messages([ASKED, CALLS, turn, SAID]) == [ASKED, CALLS, normal, SAID]


def test_parallel_calls_are_answered_in_any_order() -> None:
    other = {**CALL, "id": "c2"}
    both = {**CALLS, "tool_calls": [CALL, other]}
    talk = [ASKED, both, {**FOUND, "tool_call_id": "c2"}, FOUND, SAID]
    assert normal_messages(talk) == talk
    numbered = [{**CALL, "id": 1}, {**CALL, "id": 2}]
    answers = [{**FOUND, "tool_call_id": 1}, {**FOUND, "tool_call_id": 2}]
    normal = normal_messages([ASKED, {**CALLS, "tool_calls": numbered}, *answers])
    assert [turn.get("tool_call_id") for turn in normal] == [None, None, "1", "2"]


@pytest.mark.parametrize(("messages", "index", "field", "words"), [
    ([], None, "messages", "not a non-empty list"),
    ([{"role": "system", "content": ""}], None, "messages", "all texts in `messages` are empty"),
    (["x"], 0, "role", "message 0 has no role: it is the text 'x', not an object"),
    ([{"Role": "user", "content": "x"}], 0, "role", "rename `Role` to `role`, or map it in data.fields"),
    ([{"role": "pirate", "content": "x"}], 0, "role", "the unknown role 'pirate'; known are system, developer, user"),
    ([{"role": "user", "Content": "x"}], 0, "Content", "`Content`; rename it to `content`, or map it"),
    ([{"role": "user", "content": "  "}], 0, "content", r"message 0 \(user\) has no text in `content`"),
    ([ASKED, {"role": "assistant", "content": ""}], 1, "content", r"message 1 \(assistant\) has no text"),
    ([ASKED, {"role": "assistant", "content": "<think>a</think>"}], 1, "content", "has no text"),
    ([{"role": "user", "content": 5}], 0, "content", "the number 5; it must be text or a list of text parts"),
    ([{"role": "user", "content": {"text": "Hi"}}], 0, "content", "an object; it must be text"),
    ([{"role": "user", "content": "half \ud800"}], 0, "content", "an invalid character in `content`"),
    ([said(reasoning_content="half \ud800")], 0, "reasoning_content", "has an invalid character"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}], 0, "content", "'image_url'"),
    ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}], 0, "content", "'image'"),
    ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], 0, "content", "'audio'"),
    ([{"role": "user", "content": [{"type": "video", "video": "a"}]}], 0, "content", "'video'"),
    ([{"role": "user", "content": [{"type": "file", "file": {}}]}], 0, "content", "'file'"),
    ([{"role": "user", "content": [{"type": "tool_result"}]}], 0, "content", "'tool_result'"),
    ([{"role": "user", "content": [{"type": "text", "text": None}]}], 0, "content", "whose text is null"),
    ([{"role": "user", "content": [5]}], 0, "content", "the number 5"),
    ([{"role": "user", "content": [{"type": "thinking", "thinking": "a"}, "b"]}], 0, "content", "only an assistant"),
    ([said(content=["a", {"type": "thinking", "thinking": "b"}])], 0, "content", "move it before the text"),
    ([{**ASKED, "images": ["a.png"]}], 0, "images", "`images`: only text is supported"),
    ([said(audio={"id": "a"})], 0, "audio", "`audio`"),
    ([said(refusal="No.")], 0, "refusal", "`refusal`: no stage uses it"),
    ([said(channel="analysis")], 0, "channel", "`channel`"),
    ([said(prefix=True)], 0, "prefix", "`prefix`"),
    ([{"role": "system", "content": "x", "tools": [TOOL]}], 0, "tools", "tools belong beside the messages"),
    ([said(toolCalls=[CALL])], 0, "toolCalls", "rename it to `tool_calls`"),
    ([{**ASKED, "name": 5}], 0, "name", "`name` that is the number 5"),
    ([{**ASKED, "weight": 1}], 0, "weight", "only an assistant can have"),
    ([{**ASKED, "reasoning": "x"}], 0, "reasoning", "only an assistant can have"),
    ([{**ASKED, "tool_calls": [CALL]}], 0, "tool_calls", "only an assistant can have"),
    ([said(tool_call_id="c1")], 0, "tool_call_id", "only a tool's answer can have"),
    ([said(weight=0.5)], 0, "weight", "`weight` that is the number 0.5; it must be 0 or false, 1 or true"),
    ([said(train="no")], 0, "train", "`train` that is the text 'no'"),
    ([said(loss_mask=[1, 0])], 0, "loss_mask", "`loss_mask` that is a list"),
    ([said(weight=1, train=False)], 0, "train", "`train` that contradicts `weight`"),
    ([said(mask=1)], 0, "mask", "set `train`: false"),
    ([said(thinking="a", reasoning="b")], 0, "reasoning", "different reasoning in `reasoning` and `thinking`"),
    ([said(thinking=["a"])], 0, "thinking", "`thinking` that is a list"),
    ([said(content="<think>a</think>x", reasoning_content="b")], 0, "content", "already has other thinking"),
    ([said(tool_calls="{")], 0, "tool_calls", "`tool_calls` whose calls are a text that is not JSON"),
    ([said(tool_calls=5)], 0, "tool_calls", "must be a list of calls"),
    ([said(tool_calls=[5])], 0, "tool_calls", "the number 5, not an object"),
    ([said(tool_calls=[{"type": "custom", "custom": {}}])], 0, "tool_calls", "of type 'custom'"),
    ([said(tool_calls=[{"type": "function"}])], 0, "tool_calls", "without the name"),
    ([said(tool_calls=[{"name": "f", "arguments": "x = 1"}])], 0, "tool_calls", "arguments of 'f' are a text that"),
    ([said(tool_calls=[{"name": "f", "arguments": "[1]"}])], 0, "tool_calls", "are a list, not an object"),
    ([said(tool_calls=[{"name": "f", "arguments": '{"a": NaN}'}])], 0, "tool_calls", "NaN is not a JSON number"),
    ([said(tool_calls=[{"name": "f", "arguments": '{"a": "\\ud800"}'}])], 0, "tool_calls", "an invalid character"),
    ([said(tool_calls=[{"name": "f", "arguments": '{"a":' * 9_999}])], 0, "tool_calls", "nested too deeply"),
    ([said(tool_calls=[{"name": "f", "arguments": '{"a":' * 200 + "1" + "}" * 200}])], 0, "tool_calls", "deeper"),
    ([said(content=[{"type": "thinking", "thinking": [{"type": "thinking"}]}])], 0, "content", "only text is known"),
    ([said(tool_calls=[{"name": "f", "arguments": {}, "input": {"a": 1}}])], 0, "tool_calls", "several keys"),
    ([said(tool_calls=[CALL, CALL])], 0, "tool_calls", "the same id in `tool_calls`"),
    ([said(tool_calls=[CALL], function_call={"name": "f"})], 0, "function_call", "in addition to other calls"),
    ([{"role": "function_call", "content": "price_of(ladder)"}], 0, "content", "a text that is not JSON"),
    ([ASKED, FOUND], 1, "tool_call_id", "`tool_call_id` 'c1', but no call of an assistant is unanswered"),
    ([ASKED, SAID, {"role": "tool", "content": "x"}], 2, "role", "but no call of an assistant is unanswered"),
    ([CALLS, {**FOUND, "tool_call_id": "c2"}], 1, "tool_call_id", "'c2'; unanswered calls are: c1"),
    ([BARE_CALLS, {"role": "tool", "name": "f", "content": ""}], 1, "name", "'f'; unanswered calls are: price_of"),
    ([CALLS, FOUND, FOUND], 2, "tool_call_id", "is unanswered"),
    ([ASKED, CALLS, SAID], 1, "tool_calls", "a call of 'price_of' in `tool_calls` that no message of role"),
    ([ASKED, CALLS, ASKED], 1, "tool_calls", "answers before message 2"),
    ([SAID, CALLS], 1, "role", "messages 0 and 1 both have the `role` 'assistant'.*cannot be merged"),
    ([said(weight=0), SAID], 1, "role", "cannot be merged"),
    ([SAID, said(reasoning="x")], 1, "role", "cannot be merged"),
    ([{**ASKED, "name": "Ann"}, {**ASKED, "name": "Bo"}], 1, "role", "cannot be merged"),
    ([said(content="<think>a"), said(content="b</think>c")], 1, "role", "cannot be merged"),
])  # fmt: skip
def test_what_no_stage_can_use_is_refused_by_place_and_key(
    messages: Any, index: int | None, field: str, words: str
) -> None:
    with pytest.raises(MessageError, match=words) as caught:
        normal_messages(messages)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.index, error.field, str(error)) == (index, field, str(caught.value))
    assert field in str(error)
    assert index is None or f"{index}" in str(error)


def test_two_turns_of_one_role() -> None:
    talk = [ASKED, {**ASKED, "content": "Hm?"}, SAID, said(content="You?")]
    joined = [{**ASKED, "content": "Hi\n\nHm?"}, said(content="Hello.\n\nYou?")]
    assert normal_messages(talk) == normal_messages(talk, same_role="merge") == joined
    assert ASKED["content"] == "Hi"
    with pytest.raises(MessageError, match=r"messages 0 and 1 both have the `role` 'user'.*must alternate") as caught:
        normal_messages(talk, same_role="refuse")
    assert (caught.value.index, caught.value.field) == (1, "role")
    assert normal_messages([said(weight=0), said(train=False)]) == [said(content="Hello.\n\nHello.", train=False)]


def test_system_texts_stay_where_they_are_and_empty_ones_go() -> None:
    late = {"role": "system", "content": "Be kind."}
    assert normal_messages([{"role": "system", "content": ""}, ASKED, SAID, late, ASKED]) == [
        ASKED,
        SAID,
        late,
        ASKED,
    ]
    assert normal_messages([{"role": "developer", "content": None}, late, ASKED]) == [late, ASKED]


def test_nothing_is_copied_where_nothing_changes() -> None:
    talk = [{"role": "system", "content": "é"}, ASKED, CALLS, FOUND, said(reasoning_content="x", train=False), ASKED]
    assert all(new is old for new, old in zip(normal_messages(talk), talk, strict=True))
    [tool] = normal_tools([TOOL]) or []
    assert tool is TOOL


@pytest.mark.parametrize("tools", [
    [TOOL], TOOL, json.dumps([TOOL]), [json.dumps(TOOL)], [TOOL["function"]], [{"function": TOOL["function"]}],
    [{"type": "function", **TOOL["function"]}],
    [{"name": "price_of", "description": "Price.", "input_schema": {"type": "object"}}],
    [{"type": "function", "function": {**TOOL["function"], "strict": None}}],
    [{"type": "function", "function": {**TOOL["function"], "parameters": '{"type": "object"}'}}],
])  # fmt: skip
def test_tools(tools: Any) -> None:
    assert normal_tools(tools) == [TOOL]


@pytest.mark.parametrize("tools", [None, [], "", " ", "[]", "null", {}])
def test_no_tools(tools: Any) -> None:
    assert normal_tools(tools) is None


@pytest.mark.parametrize(("tools", "words"), [
    ("price_of", "`tools` is a text that is not JSON"),
    (5, "`tools` is the number 5"),
    (False, "`tools` is false"),
    ([TOOL, 5], r"`tools\[1\]` is the number 5, not an object"),
    ([{"type": "web_search"}], r"`tools\[0\]` is of type 'web_search'"),
    ([{"type": "function", "function": {"description": "x"}}], "without the name"),
    ([{"name": "f", "parameters": [1]}], "'f' with parameters that are a list"),
    ([{"name": "f", "description": 5}], "'f' with a description that is the number 5"),
    ([{"name": "f", "description": "\ud800"}], "'f', which has an invalid character"),
])  # fmt: skip
def test_an_invalid_tool_is_refused(tools: Any, words: str) -> None:
    with pytest.raises(MessageError, match=words) as caught:
        normal_tools(tools)
    assert caught.value.field in str(caught.value)


PIECES = st.sampled_from(
    ["a", "b\n", " c ", "é👍", "<think>t</think>", "<think>", "</think>", "<think></think>", "{}"]
)
SPOKEN = st.lists(PIECES | st.text(max_size=3), min_size=1, max_size=4).map("".join)
PARTS = st.lists(SPOKEN | SPOKEN.map(lambda text: {"type": "text", "text": text}), min_size=1, max_size=3)
CALLED = st.fixed_dictionaries(
    {"name": st.sampled_from(["f", "g"]), "arguments": st.sampled_from([{}, {"a": 1}, "", '{"a": 2}', None])},
    optional={"type": st.just("function")},
)
WEIGHTS = {"weight": st.sampled_from([0, 1, None]), "name": st.sampled_from(["f", "", None])}
ASKING = st.fixed_dictionaries({"role": st.sampled_from(["user", "Human", "system"]), "content": SPOKEN | PARTS})
SAYING = st.fixed_dictionaries(
    {"role": st.sampled_from(["assistant", "gpt"]), "content": SPOKEN | PARTS},
    optional={"reasoning": SPOKEN | st.just("t"), **WEIGHTS},
)
CALLING = st.fixed_dictionaries(
    {
        "role": st.just("assistant"),
        "content": st.none() | st.just("") | SPOKEN | PARTS,
        "tool_calls": st.lists(CALLED),
    },
    optional=WEIGHTS,
)
ANSWERING = st.fixed_dictionaries({"role": st.sampled_from(["tool", "observation"]), "content": SPOKEN})


@st.composite
def talks(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Turns in any order; every tool call has its result."""
    turns: list[dict[str, Any]] = []
    for kind in draw(st.lists(st.sampled_from(["ask", "say", "call"]), min_size=1, max_size=5)):
        turns.append(draw(ASKING if kind == "ask" else SAYING if kind == "say" else CALLING))
        turns += [draw(ANSWERING) for _ in turns[-1].get("tool_calls", [])]
    return turns


@settings(max_examples=200, deadline=None)
@given(talks(), st.sampled_from(["merge", "refuse"]))
def test_the_normal_form_is_its_own_and_loses_nothing(turns: list[dict[str, Any]], same_role: Any) -> None:
    before = copy.deepcopy(turns)
    try:
        normal = normal_messages(turns, same_role)
    except MessageError:
        return
    assert turns == before
    again = normal_messages(normal, "refuse")
    assert all(new is old for new, old in zip(again, normal, strict=True))
    json.dumps(normal, allow_nan=False, ensure_ascii=False).encode()
    letters = [turn.get("reasoning_content", "") + turn["content"] for turn in normal]
    assert _bare("".join(letters)) == _bare("".join(map(_written, turns)))
    assert sum(len(turn.get("tool_calls", [])) for turn in normal) == sum(len(t.get("tool_calls", [])) for t in turns)


def _bare(text: str) -> str:
    """The text without white space and delimiters, which the normal form may drop."""
    return "".join(text.replace("<think>", "").replace("</think>", "").split())


def _written(turn: dict[str, Any]) -> str:
    """What a turn contains; reasoning that is given twice counts once."""
    content = turn["content"]
    parts = content if isinstance(content, list) else [content or ""]
    text = "".join(part if isinstance(part, str) else part["text"] for part in parts)
    thought = _bare(turn.get("reasoning", ""))
    while turn["role"] in ("assistant", "gpt") and text.lstrip().startswith("<think>") and "</think>" in text:
        block, _, text = text.lstrip().partition("</think>")
        thought = thought or _bare(block)
    return thought + text
