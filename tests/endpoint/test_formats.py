"""The formats that a request can require of a reply; and a grammar compiler that uses too much time or memory."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.base.load import load_tokenizer
from models.chat import end_token_ids
from serve.api.routes import create_app
from serve.engines.base import Unfollowable
from serve.engines.torch import TorchEngine
from serve.grammar import process as grammar_process
from serve.grammar.call_grammar import _alternatives
from serve.grammar.formats import Formats
from serve.grammar.json_grammar import JsonState
from serve.grammar.schema_forms import in_ascii, in_plain_form
from serve.grammar.schema_notes import rules_of
from serve.parsing.form import learned_form
from serve.protocol.errors import ApiError
from serve.protocol.requests import ChatRequest, CompletionRequest

STAND_IN = "tests.endpoint.grammar_stand_in:stand_in"
MESSAGES = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Any:
    return load_tokenizer(tiny_llama)


@pytest.fixture(scope="module")
def formats(tokenizer: Any) -> Iterator[Formats]:
    found = Formats(tokenizer, len(tokenizer), end_token_ids(tokenizer), learned_form(tokenizer))
    yield found
    found.close()


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def asked(formats: Formats, **fields: Any) -> Any:
    draft = formats.of(ChatRequest.model_validate({"model": "m", "messages": MESSAGES, **fields}), [1])
    return draft and asyncio.run(formats.compiled(draft))


def follows(tokenizer: Any, grammar: Any, text: str) -> bool:
    state = grammar.start()
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        if not state.allowed()[token]:
            return False
        state.accept(token)
    return any(state.allowed()[end] for end in end_token_ids(tokenizer))


CARD = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "title": "Card",
    "properties": {
        "title": {"type": "string", "minLength": 1, "default": "x", "$comment": "a property of this name"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None, "description": "d"},
    },
    "required": ["title"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(("fields", "right", "wrong"), [
    ({"structured_outputs": {"choice": ["yes", 'n"o']}}, ["yes", 'n"o'], ["no", "yes "]),
    ({"structured_outputs": {"regex": r"^a/[b\/]\d?$"}}, ["a/b", "a//7"], ["a/c", "xa/b"]),
    ({"structured_outputs": {"grammar": 'start: "a" b\nb: /[0-9]+/'}}, ["a1", "a12"], ["a", "1"]),
    ({"structured_outputs": {"grammar": 'root ::= "a" b\nb ::= [0-9]'}}, ["a1"], ["a12"]),
    ({"structured_outputs": {"json": {"enum": ["<|eot_id|>", 5]}}}, ["5"], ["6"]),
    ({"structured_outputs": {"json_object": True}}, ["{}", '{"a": 1}'], ["[]"]),
    ({"response_format": {"type": "json_object"}}, ["{}"], ["1"]),
    (json_schema(CARD), ['{"title": "T"}', '{"title": "T", "note": null}'], ['{"title": ""}', '{"note": null}']),
    (json_schema({"type": "string", "format": "mine", "x-y": {"type": "null"}}), ['"a"'], ["null"]),
    (json_schema({"type": "string", "format": "date"}), ['"2024-01-31"'], ['"a"']),
    (json_schema({"allOf": [{"type": "integer", "minimum": 7}, {"maximum": 12}]}), ["7", "12"], ["6", "13"]),
    (json_schema({"oneOf": [{"const": "a"}, {"type": "null"}], "discriminator": {"propertyName": "k"}}),
     ['"a"', "null"], ['"b"']),
])  # fmt: skip
def test_a_format_is_followed(
    formats: Formats, tokenizer: Any, fields: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    grammar = asked(formats, **fields)
    for text in right:
        assert follows(tokenizer, grammar, text), text
    for text in wrong:
        assert not follows(tokenizer, grammar, text), text


def test_no_format_is_none(formats: Formats) -> None:
    assert asked(formats) is None
    assert asked(formats, response_format={"type": "text"}) is None


@pytest.mark.parametrize(("fields", "param", "words"), [
    (json_schema({"not": {"type": "null"}}), "response_format.json_schema.schema", "`not` is not supported"),
    (json_schema({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}), "response_format.json_schema.schema",
     "`oneOf` is supported if no value can match two"),
    ({"structured_outputs": {"regex": "a("}}, "structured_outputs.regex", "unclosed group"),
    ({"structured_outputs": {"grammar": "start: x"}}, "structured_outputs.grammar", 'unknown name: "x"'),
    ({"structured_outputs": {"grammar": "a ::= ("}}, "structured_outputs.grammar", "not a valid GBNF grammar"),
    ({"structured_outputs": {"choice": ["a" * 4000] * 20}}, "structured_outputs.choice", "than 65536 characters"),
])  # fmt: skip
def test_unsupported_rules_are_refused_with_their_field(
    formats: Formats, fields: dict[str, Any], param: str, words: str
) -> None:
    for _ in range(2):  # cached from the second time on
        with pytest.raises(ApiError) as raised:
            asked(formats, **fields)
        assert raised.value.status == 400
        assert raised.value.error.param == param
        assert words in raised.value.error.message


def test_a_plain_completion_has_no_reasoning_before_its_format(tokenizer: Any) -> None:
    thinking = load_tokenizer(tokenizer.name_or_path)
    thinking.chat_template = (
        "{% for m in messages %}{{ m.role }}: "
        "{% if m.role == 'assistant' %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
        "{{ m.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    formats = Formats(thinking, len(thinking), end_token_ids(thinking), learned_form(thinking))
    fields: dict[str, Any] = {"model": "m", "structured_outputs": {"choice": ["a"]}}
    text = formats.of(CompletionRequest.model_validate({**fields, "prompt": "x"}), [1])
    chat = formats.of(ChatRequest.model_validate({**fields, "messages": MESSAGES}), [1])
    assert text is not None
    assert chat is not None
    assert "think" not in text.lark
    assert "think" in chat.lark
    formats.close()


CAT = {"type": "object", "properties": {"kind": {"const": "cat", "title": "Kind"}, "lives": {"type": "integer"}},
       "required": ["kind"], "additionalProperties": False}  # fmt: skip
DOG = {"type": "object", "properties": {"kind": {"$ref": "#/$defs/dog"}}, "required": ["kind"]}
DEFS = {"cat": CAT, "dogs": DOG, "dog": {"enum": ["dog", "puppy"]}}


@pytest.mark.parametrize(("several", "is_followed"), [
    ([{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dogs"}], True),
    ([{"type": "string"}, {"type": ["null", "number"]}, {"$ref": "#/$defs/cat"}], True),
    ([{"const": 1}, {"enum": [2, "1"]}], True),
    ([{"const": 1}, {"enum": [1.0]}], False),
    ([{"type": "integer"}, {"type": "number"}], False),
    ([CAT, {**CAT, "required": []}], False),
    ([CAT, {"type": "object"}], False),
    ([CAT, True], False),
])  # fmt: skip
def test_oneof_is_anyof_where_no_value_matches_two(several: list[Any], is_followed: bool) -> None:
    plain = in_plain_form({"properties": {"a": {"oneOf": several}}, "$defs": DEFS})
    assert set(plain["properties"]["a"]) == {"anyOf" if is_followed else "oneOf"}


def test_comparing_endless_alternatives_stops_after_a_while(formats: Formats) -> None:
    names = {f"p{number}": {"$ref": "#/$defs/a"} for number in range(40)}
    again = {"type": "object", "properties": names, "required": [*names]}
    schema = {"oneOf": [{"$ref": "#/$defs/a"}] * 40, "$defs": {"a": again}}
    assert "oneOf" in in_plain_form(schema)


def test_alternatives_of_an_argument_are_counted() -> None:
    assert len(_alternatives({"anyOf": [{"const": number} for number in range(900)]})) == 900
    with pytest.raises(ValueError, match="more than 1000 alternatives"):
        _alternatives({"anyOf": [{"const": number} for number in range(1100)]})


@pytest.mark.parametrize(("given", "plain"), [
    (r"^\d{2}\w$", "^[0-9]{2}[A-Za-z0-9_]$"),
    (r"[\d\w-]\D", "[0-9A-Za-z0-9_-][^0-9]"),
    (r"\\d[\D]\]\d", r"\\d[\D]\][0-9]"),
])  # fmt: skip
def test_digits_and_letters_of_a_pattern_are_ascii(given: str, plain: str) -> None:
    assert in_ascii(given) == plain
    schema = {"pattern": given, "patternProperties": {given: {"pattern": given}}, "const": {"pattern": given}}
    assert in_plain_form(schema) == {
        "pattern": plain, "patternProperties": {plain: {"pattern": plain}}, "const": {"pattern": given},
    }  # fmt: skip


def test_names_of_properties_and_constants_are_no_notes() -> None:
    schema = {"properties": {"default": {"const": {"title": "x"}}}, "enum": [{"examples": 1}], "title": "T"}
    assert rules_of(schema) == {"properties": {"default": {"const": {"title": "x"}}}, "enum": [{"examples": 1}]}


def test_a_slow_compiler_delays_no_other_request(
    save_talker: Callable[..., Path],
    tmp_path: Path,
    serving: Callable[[Any], AbstractContextManager[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grammar_process, "COMPILER", STAND_IN)
    release = save_talker(tmp_path, ends=True)
    engine = TorchEngine(release, "fp32", 4, 1)

    def body(constant: str) -> dict[str, Any]:
        return {"model": "m", "messages": MESSAGES, "max_tokens": 80, **json_schema({"const": constant})}

    async def ask(url: str) -> tuple[list[httpx.Response], list[httpx.Response]]:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:

            async def formatted(constant: str) -> httpx.Response:
                return await client.post("/v1/chat/completions", json=body(constant))

            await formatted("a")  # the process has started
            sleepers = [formatted(f"sleep 60 s {number}") for number in range(20)]
            slow = asyncio.gather(*sleepers, formatted("take 9000 MiB"))
            await asyncio.sleep(0.3)
            plain = {"model": "m", "messages": MESSAGES, "max_tokens": 5}
            others = [await client.post("/v1/chat/completions", json=plain) for _ in range(5)]
            others.append(await formatted("b"))
            assert not slow.done()  # everything answered before them
            return await slow, others

    try:
        with serving(create_app(engine, load_tokenizer(release), "m")) as url:
            slow, others = asyncio.run(ask(url))
    finally:
        engine.close()
    assert [answer.status_code for answer in others] == [200] * 6
    told = {400: "preparing it exceeds the ", 429: "the endpoint is too busy to prepare this format in time"}
    for answer in slow:  # on a busy machine, not each has its turn
        assert answer.status_code in told, answer.text
        assert answer.json()["error"]["param"] == "response_format.json_schema.schema"
        assert told[answer.status_code] in answer.json()["error"]["message"]
    assert 400 in [answer.status_code for answer in slow]


def test_a_reply_whose_masks_take_too_long_is_ended(tokenizer: Any) -> None:
    class Slow:
        def compute_bitmask(self) -> bytes:
            until = time.thread_time() + 0.3
            while time.thread_time() < until:
                pass
            return bytes(len(tokenizer) // 8 + 1)

        def is_error(self) -> bool:
            return False

    state = JsonState(Slow(), len(tokenizer))
    for _ in range(2):
        state.allowed()
    for _ in range(2):
        with contextlib.suppress(Unfollowable):
            state.allowed()
    with pytest.raises(Unfollowable, match="too much time"):
        state.allowed()
