"""Raw lines to messages: three layouts, and why a line is none of them."""

import json
from typing import Any

import pytest

from workflows.conversations import parse_line

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
    assert parse_line(json.dumps(record).encode()) == messages
    assert parse_line(json.dumps(record, ensure_ascii=False).encode() + b"\r\n") == messages


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
        parse_line(line)
