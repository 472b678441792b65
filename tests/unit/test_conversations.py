"""The layouts of conversation files."""

import json

import pytest

from workflows.conversations import parse_line

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize("record", [
    {"messages": TALK, "id": 7},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"instruction": "Hi", "input": "", "output": "Hello"},
])  # fmt: skip
def test_layouts_are_recognised(record):
    assert parse_line(json.dumps(record).encode()) == TALK


def test_system_and_input_are_kept():
    record = {"system": "Be kind", "instruction": "Translate", "input": "Haus", "output": "house"}
    assert [message["content"] for message in parse_line(json.dumps(record).encode())] == [
        "Be kind", "Translate\n\nHaus", "house",
    ]  # fmt: skip


@pytest.mark.parametrize(("line", "reason"), [
    (b"{broken", "not JSON"),
    (b"\xff\xfe{}", "not"),
    (b"[1]", "a JSON array"),
    (b"7", "not a JSON object"),
    (b"{}", "unknown layout"),
    (b'{"messages": {}}', "non-empty list"),
    (b'{"messages": [{"role": "tool", "content": "x"}]}', "unknown role 'tool'"),
    (b'{"conversations": [{"from": "alien", "value": "x"}]}', "unknown role 'alien'"),
    (b'{"conversations": [7]}', "unknown role None"),
    (b'{"instruction": 5, "output": "x"}', "not text"),
    (b'{"instruction": "x", "output": 5}', "no text"),
    (b"[" * 100_000, "nested too deeply"),
])  # fmt: skip
def test_bad_lines_say_why(line, reason):
    with pytest.raises(ValueError, match=reason):
        parse_line(line)
