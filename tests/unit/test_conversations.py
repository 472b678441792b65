"""Raw lines to messages: three layouts, and why a line is none of them."""

import json
from typing import Any

import pytest

from workflows.conversations import mismatched_replies, parse_conversation, parse_judged, parse_pair

SYSTEM = {"role": "system", "content": "Be kind."}
ASKED = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "Hello\nyou é"}


def turn(speaker: str, value: Any) -> dict[str, Any]:
    return {"from": speaker, "value": value}


@pytest.mark.parametrize(("record", "messages"), [
    ({"messages": [SYSTEM, ASKED, SAID], "id": 7}, [SYSTEM, ASKED, SAID]),
    ({"messages": [{**ASKED, "name": "Ann"}, SAID]}, [ASKED, SAID]),
    ({"conversations": [turn("human", "Hi"), turn("gpt", SAID["content"])]}, [ASKED, SAID]),
    ({"conversations": [turn("user", "Hi"), turn("assistant", SAID["content"])]}, [ASKED, SAID]),
    ({"conversations": [turn("system", "Be kind."), turn("human", "Hi")]}, [SYSTEM, ASKED]),
    ({"system": "Be kind.", "conversations": [turn("human", "Hi"), turn("chatgpt", "Hello\nyou é")]},
     [SYSTEM, ASKED, SAID]),
    ({"instruction": "Hi", "output": SAID["content"]}, [ASKED, SAID]),
    ({"instruction": "Hi", "input": "  ", "output": SAID["content"], "system": ""}, [ASKED, SAID]),
    ({"instruction": "Add", "input": "1 2", "output": "3", "system": "Be kind."},
     [SYSTEM, {"role": "user", "content": "Add\n\n1 2"}, {"role": "assistant", "content": "3"}]),
])  # fmt: skip
def test_the_layouts_that_people_have(record: dict[str, Any], messages: list[dict[str, str]]) -> None:
    assert parse_conversation(json.dumps(record).encode()) == messages
    assert parse_conversation(json.dumps(record, ensure_ascii=False).encode() + b"\r\n") == messages


@pytest.mark.parametrize(("line", "reason"), [
    (b"", "not JSON"),
    (b'{"messages": [', "not JSON"),
    (b'{"messages": "\xff"}', "not UTF-8"),
    (b'{"messages": [{"role": "user", "content": "half a \\ud800 character"}]}', "message 0"),
    (b"[" * 100_000, "nested too deeply"),
    (b'[{"role": "user", "content": "x"}]', "a JSON array; write one conversation as an object on each line"),
    (b'"text"', "not a JSON object"),
    (b"null", "not a JSON object"),
    (b"{}", "unknown layout.*found no keys"),
    (b'{"text": "x", "prompt": "y"}', "unknown layout.*found prompt, text"),
    (b'{"instruction": "x"}', "unknown layout.*found instruction"),
    (b'{"messages": []}', "`messages` is not a non-empty list"),
    (b'{"messages": [{"role": "bot", "content": "x"}]}', "message 0 has the unknown role 'bot'"),
    (b'{"messages": [{"role": "user", "content": ["x"]}]}', r"message 0 \(user\) has no text"),
    (b'{"conversations": {}}', "`conversations` is not a list"),
    (b'{"conversations": []}', "not a non-empty list"),
    (b'{"conversations": ["x"]}', "turn 0 has the unknown role None"),
    (b'{"conversations": [{"from": "bing", "value": "x"}]}', "turn 0 has the unknown role 'bing'; known are human"),
    (b'{"conversations": [{"from": ["human"], "value": "x"}]}', "turn 0 has the unknown role"),
    (b'{"conversations": [{"from": "human"}]}', r"message 0 \(user\) has no text"),
    (b'{"instruction": 5, "output": "x"}', "`instruction` or `input` is not text"),
    (b'{"instruction": "x", "input": ["y"], "output": "x"}', "`instruction` or `input` is not text"),
    (b'{"instruction": "x", "output": null}', r"message 1 \(assistant\) has no text"),
    (b'{"instruction": " ", "output": "x"}', r"message 0 \(user\) has no text"),
])  # fmt: skip
def test_a_bad_line_has_its_reason(line: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_conversation(line)


WRONG = {"role": "assistant", "content": "Go away"}


@pytest.mark.parametrize("record", [
    {"prompt": "Hi", "chosen": SAID["content"], "rejected": "Go away"},
    {"prompt": "Hi", "chosen": [SAID], "rejected": [WRONG]},
    {"prompt": [ASKED], "chosen": SAID["content"], "rejected": "Go away"},
    {"prompt": [ASKED], "chosen": [SAID], "rejected": [WRONG], "score": 5},
    {"messages": [ASKED], "chosen": SAID["content"], "rejected": "Go away"},
    {"messages": [ASKED], "chosen": [SAID], "rejected": [WRONG]},
    {"chosen": [ASKED, SAID], "rejected": [ASKED, WRONG]},
    # The Hub's most common one has the prompt three times.
    {"prompt": "Hi", "messages": [ASKED, SAID], "chosen": [ASKED, SAID], "rejected": [ASKED, WRONG]},
])  # fmt: skip
def test_the_layouts_of_preference_pairs(record: dict[str, Any]) -> None:
    assert parse_pair(json.dumps(record).encode()) == ([ASKED, SAID], [ASKED, WRONG])


def test_a_pair_may_have_a_history() -> None:
    history = [SYSTEM, ASKED, SAID, {"role": "user", "content": "And now?"}]
    record = {"prompt": history, "chosen": "This.", "rejected": "That."}
    chosen, rejected = parse_pair(json.dumps(record).encode())
    assert (chosen[:-1], rejected[:-1]) == (history, history)
    assert (chosen[-1]["content"], rejected[-1]["content"]) == ("This.", "That.")


@pytest.mark.parametrize(("record", "reason"), [
    ({"messages": [ASKED, SAID]}, r"not a preference pair \(`chosen` and `rejected`\).*found messages"),
    ({"prompt": "Hi", "completion": "x", "label": True}, "not a preference pair.*found completion, label, prompt"),
    ({"chosen": "x", "rejected": "y"}, "`chosen` has no prompt; give `prompt`"),
    ({"chosen": [SAID], "rejected": [WRONG]}, "`chosen` has no prompt"),
    ({"prompt": "Hi", "chosen": "x", "rejected": 5}, "`rejected` is neither text nor a list of messages"),
    ({"prompt": "Hi", "chosen": [], "rejected": "x"}, "`chosen` is neither text nor a list of messages"),
    ({"prompt": "Hi", "chosen": "x", "rejected": " "}, r"message 1 \(assistant\) has no text"),
    ({"prompt": "Hi", "chosen": "x", "rejected": "x "}, "`chosen` and `rejected` are the same reply"),
    ({"prompt": [ASKED, SAID], "chosen": "x", "rejected": "y"}, "messages 1 and 2 are both from 'assistant'"),
    ({"prompt": [], "chosen": "x", "rejected": "y"}, "`chosen` does not end in an assistant's reply to somebody"),
    ({"chosen": [ASKED, SAID], "rejected": [{**ASKED, "content": "Ho"}, WRONG]}, "differ in message 0, before the"),
    ({"chosen": [ASKED, SAID], "rejected": [ASKED, SAID, ASKED, WRONG]}, "differ in message 1|ends with message 1"),
    ({"chosen": [ASKED], "rejected": [{**ASKED, "content": "Ho"}]}, "`chosen` does not end in an assistant's reply"),
])  # fmt: skip
def test_a_bad_pair_has_its_reason(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_pair(json.dumps(record).encode())


@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("record", [
    {"prompt": "Hi", "completion": SAID["content"]},
    {"messages": [ASKED], "completion": [SAID]},
    {"completion": [ASKED, SAID]},
])  # fmt: skip
def test_the_layouts_of_judged_replies(record: dict[str, Any], label: bool) -> None:
    assert parse_judged(json.dumps({**record, "label": label}).encode()) == ([ASKED, SAID], label)


@pytest.mark.parametrize(("record", "reason"), [
    ({"prompt": "Hi", "completion": "x", "label": 1}, "`label` is 1; it must be true or false"),
    ({"prompt": "Hi", "completion": "x"}, "not a judged reply.*train.objective kto.*found completion, prompt"),
    ({"prompt": "Hi", "chosen": "x", "rejected": "y"}, "not a judged reply.*found chosen, prompt, rejected"),
])  # fmt: skip
def test_a_bad_judged_reply_has_its_reason(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_judged(json.dumps(record).encode())


@pytest.mark.parametrize(("record", "reason"), [
    ({"prompt": "Hi", "chosen": "x", "rejected": "y"}, "a preference pair.*train.objective dpo, orpo or simpo"),
    ({"messages": [ASKED], "chosen": "x", "rejected": "y"}, "a preference pair"),
    ({"prompt": "Hi", "completion": "x", "label": True}, "a judged reply.*train.objective kto learns from it"),
])  # fmt: skip
def test_a_conversation_it_is_not(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_conversation(json.dumps(record).encode())


def test_mismatched_replies_answer_another_prompt() -> None:
    def line(prompt: str, reply: str) -> bytes:
        return json.dumps({"prompt": prompt, "completion": reply, "label": True}).encode()

    lines = [line("a", "1"), line("a", "2"), b"{broken", line("b", "3"), line("b", "1"), line("c", "5")]
    found = [reply and reply["content"] for reply in mismatched_replies(lines)]
    # Half of the six lines on, then further: not an own prompt's, not the own reply, not a broken line's.
    assert found == ["3", "1", None, "1", "2", "3"]
    assert mismatched_replies([line("a", "1"), line("a", "2")]) == [None, None]
