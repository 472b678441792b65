"""Tool calls as the families of models write them."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.base import load_tokenizer
from serve.tools import CallReader, CallStyle, call_style

STYLES = {
    "tags": CallStyle("<tool_call>\n", "\n</tool_call>", "name", "arguments"),
    "bare": CallStyle("", "", "name", "parameters"),
    "listed": CallStyle("[TOOL_CALLS][", "]", "name", "arguments"),
}


@pytest.mark.parametrize("family", STYLES)
def test_the_template_says_how_a_call_is_written(
    tiny_llama: Path, tool_templates: dict[str, str], family: str
) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.chat_template = tool_templates[family]
    assert call_style(tokenizer) == STYLES[family]


def test_marks_that_are_special_tokens_are_not_seen_in_replies(
    tiny_llama: Path, tool_templates: dict[str, str]
) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.add_special_tokens({"extra_special_tokens": ["[TOOL_CALLS]", "<tool_call>", "</tool_call>"]})
    tokenizer.chat_template = tool_templates["listed"]
    style = call_style(tokenizer)
    assert style == CallStyle("[", "]", "name", "arguments")
    assert read(style, written(style, RAIN), 1) == ("", [RAIN])
    tokenizer.chat_template = tool_templates["tags"]
    style = call_style(tokenizer)
    assert style == CallStyle("\n", "", "name", "arguments")
    assert read(style, written(style, RAIN), 1) == ("", [RAIN])


def test_a_template_without_a_place_for_tools_has_no_style(tiny_llama: Path) -> None:
    assert call_style(load_tokenizer(tiny_llama)) is None


def read(style: CallStyle, text: str, size: int = 1, most: int | None = None) -> tuple[str, list[tuple[str, Any]]]:
    """What is shown of the text, given in pieces, and the calls in it."""
    reader = CallReader(style, {"weather", "time"}, most)
    shown = "".join(reader.push(text[at : at + size]) for at in range(0, len(text), size)) + reader.finish()
    assert len({call.id for call in reader.calls}) == len(reader.calls)
    return shown, [(call.name, json.loads(call.arguments)) for call in reader.calls]


RAIN = ("weather", {"city": "Øslo", "days": [1, {"a": "}"}]})
CLOCK: tuple[str, Any] = ("time", {})


def written(style: CallStyle, *calls: tuple[str, Any]) -> str:
    return "".join(
        f"{style.opening}{json.dumps({style.name_key: name, style.arguments_key: given})}{style.closing}\n"
        for name, given in calls
    )


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("family", STYLES)
def test_calls_are_kept_out_of_the_text(family: str, size: int) -> None:
    style = STYLES[family]
    assert read(style, written(style, RAIN), size) == ("", [RAIN])
    assert read(style, written(style, RAIN, CLOCK), size) == ("", [RAIN, CLOCK])
    assert read(style, written(style, RAIN, CLOCK), size, most=1) == ("", [RAIN])
    assert read(style, "It is 5 o'clock. {no call}", size) == ("It is 5 o'clock. {no call}", [])
    if style.opening:
        assert read(style, "Let me see. " + written(style, CLOCK), size) == ("Let me see. ", [CLOCK])


@pytest.mark.parametrize("family", STYLES)
@pytest.mark.parametrize("found", ['{"name": "other", "arguments": {}}', '{"name": "time", "argum', "{}", "[1]"])
def test_what_only_looks_like_a_call_is_text(family: str, found: str) -> None:
    text = STYLES[family].opening + found
    assert read(STYLES[family], text) == (text, [])


def test_several_calls_in_one_list() -> None:
    two = '[TOOL_CALLS][{"name": "time", "arguments": {}}, {"name": "weather", "arguments": {"city": 1}}]'
    assert read(STYLES["listed"], two) == ("", [CLOCK, ("weather", {"city": 1})])
