"""The endpoint with a real engine and server, called with OpenAI's own client."""

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest

from serve.engines.torch import TorchEngine
from serve.protocol.transport import LEASE

MODEL = "tiny/talker"
NOTHING = SimpleNamespace(content=[])
HELLO = [{"role": "user", "content": "Hello"}]


@dataclass(frozen=True)
class Endpoint:
    """A served app, its engine, and an OpenAI client for it."""

    engine: TorchEngine
    url: str
    client: openai.OpenAI

    def post(self, body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=20)


@pytest.fixture(scope="module")
def open_endpoint(
    serving_talker: Callable[..., AbstractContextManager[tuple[TorchEngine, str, openai.OpenAI]]],
) -> Callable[..., AbstractContextManager[Endpoint]]:
    @contextmanager
    def opened(ends: bool, template: str | None = None, **limits: Any) -> Iterator[Endpoint]:
        with serving_talker(MODEL, ends, template, **limits) as served:
            yield Endpoint(*served)

    return opened


@pytest.fixture(scope="module")
def endpoint(open_endpoint: Callable[..., AbstractContextManager[Endpoint]]) -> Iterator[Endpoint]:
    with open_endpoint(False) as endpoint:
        yield endpoint


def chat(endpoint: Endpoint, **params: Any) -> Any:
    return endpoint.client.chat.completions.create(**{"model": MODEL, "messages": HELLO, **params})


def streamed_text(chunks: Iterable[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_a_reply_with_its_usage(endpoint: Endpoint) -> None:
    completion = chat(endpoint, max_tokens=20)
    choice = completion.choices[0]
    assert completion.model == MODEL
    assert choice.message.role == "assistant"
    assert choice.message.content.isalpha()
    assert choice.finish_reason == "length"
    assert len(choice.message.content) == completion.usage.completion_tokens == 20
    # <|begin_of_text|>, the headers of both roles with two newlines each, "Hello", <|eot_id|>
    assert completion.usage.prompt_tokens == 1 + (4 + 4) + 5 + 1 + (9 + 4)
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 20
    assert chat(endpoint).usage.completion_tokens == 16, "the default limit"


def test_a_stream_is_the_same_reply_in_pieces(endpoint: Endpoint) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hé"}, {"type": "text", "text": "you"}]},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Go on"},
    ]
    params = {"messages": messages, "temperature": 0, "max_completion_tokens": 30}
    whole = chat(endpoint, **params)
    chunks = list(chat(endpoint, **params, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert streamed_text(chunks[:-1]) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * 31 + ["length"]
    assert all(chunk.choices[0].logprobs is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chat(endpoint, **params, stream=True))


def test_a_seed_repeats_a_reply(endpoint: Endpoint) -> None:
    def text(seed: int) -> str:
        return str(chat(endpoint, seed=seed, temperature=2, top_p=0.9).choices[0].message.content)

    assert text(1) == text(1) != text(2)


def test_a_stop_string_ends_the_reply_before_it(endpoint: Endpoint) -> None:
    text = chat(endpoint, temperature=0).choices[0].message.content
    stopped = chat(endpoint, temperature=0, stop=["?", text[5:8]])
    assert stopped.choices[0].message.content == text[: text.index(text[5:8])]
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage.completion_tokens == text.index(text[5:8]) + 3
    stream = chat(endpoint, temperature=0, stop=text[5:8], stream=True)
    assert streamed_text(stream) == text[: text.index(text[5:8])]


def test_an_end_token_ends_the_reply_and_is_counted(
    open_endpoint: Callable[..., AbstractContextManager[Endpoint]],
) -> None:
    with open_endpoint(True) as endpoint:
        replies = [chat(endpoint, temperature=1, seed=seed, max_tokens=300) for seed in range(5)]
    ended = [reply for reply in replies if reply.choices[0].finish_reason == "stop"]
    assert ended
    for reply in ended:
        assert reply.choices[0].message.content.isalpha()
        assert reply.usage.completion_tokens == len(reply.choices[0].message.content) + 1


def test_models_health_and_page(endpoint: Endpoint) -> None:
    assert [model.id for model in endpoint.client.models.list()] == [MODEL]
    assert endpoint.client.models.retrieve(MODEL).owned_by == "rayconteur"
    with pytest.raises(openai.NotFoundError) as caught:
        endpoint.client.models.retrieve("other")
    assert caught.value.code == "model_not_found"
    health = httpx.get(f"{endpoint.url}/health")
    assert health.json() == {"status": "ok", "model": MODEL, "release": "3f2a"}
    page = httpx.get(endpoint.url)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<script src" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


SCHEMA = "response_format.json_schema.schema"


def schema(rules: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": rules}}}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Oslo", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "time", "description": "What time is it?"}},
]
NAMED = {"type": "function", "function": {"name": "clock"}}
CALLS = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}]
ANSWER = {"role": "tool", "tool_call_id": "c1", "content": "rain"}
ASKED = [*HELLO, {"role": "assistant", "tool_calls": CALLS}, ANSWER]


BAD_REQUESTS: list[tuple[dict[str, Any], int, str, str]] = [
    ({"tool": []}, 400, "tool", "Unrecognized or unsupported request argument: tool. Did you mean tools?"),
    ({"tools": TOOLS}, 400, "tools", "no place for tools"),
    ({"tools": [{"type": "retrieval"}]}, 400, "tools[0].type", "got 'retrieval'"),
    ({"tools": TOOLS, "tool_choice": "always"}, 400, "tool_choice", "'none', 'auto' or 'required'"),
    ({"tools": TOOLS, "tool_choice": NAMED}, 400, "tool_choice", "No such tool"),
    ({"tool_choice": "required"}, 400, "tool_choice", "no tools"),
    ({"messages": ASKED}, 400, "messages[1].tool_calls", "no place for tools"),
    ({"max_token": 5}, 400, "max_token", "Did you mean max_tokens?"),
    ({"messages": []}, 400, "messages", "at least 1 item"),
    ({"messages": "Hello"}, 400, "messages", "got 'Hello'"),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role", "got 'robot'"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role", "no call of an assistant"),
    ({"messages": [*ASKED, ANSWER]}, 400, "messages[3].tool_call_id", "no call of an assistant"),
    ({"messages": [{**HELLO[0], "tool_calls": CALLS}]}, 400, "messages[0].tool_calls", "only an assistant"),
    ({"messages": [{**HELLO[0], "tool_call_id": "c1"}]}, 400, "messages[0].tool_call_id", "only a tool"),
    ({"messages": [{"role": "system", "content": " "}]}, 400, "messages", "all texts in `messages` are empty"),
    ({"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content", "a string or a list"),
    ({"messages": [{"role": "user", "content": "x", "nam": "y"}]}, 400, "messages[0].nam", "argument"),
    ({"messages": [{**HELLO[0], "refusal": "No."}]}, 400, "messages[0].refusal", "only an assistant"),
    ({"continue_final_message": True}, 400, "continue_final_message", "not the assistant's"),
    ({"functions": [{"name": "f"}]}, 400, "functions", "no place for tools"),
    ({"store": True}, 400, "store", "False"),
    ({"stop_token_ids": [260]}, 400, "stop_token_ids", "the model's are 0 to 259"),
    ({"min_p": 2}, 400, "min_p", "less than or equal to 1"),
    ({"structured_outputs": {}}, 400, "structured_outputs", "Give exactly one of"),
    (
        {"messages": [{**HELLO[0], "reasoning_content": "x"}]},
        400,
        "messages[0].reasoning_content",
        "only an assistant",
    ),
    ({"chat_template_kwargs": {"messages": []}}, 400, "chat_template_kwargs.messages", "sets this variable itself"),
    (
        {"chat_template_kwargs": {"eos_token": "x"}},
        400,
        "chat_template_kwargs.eos_token",
        "sets this variable itself",
    ),
    ({"chat_template_kwargs": []}, 400, "chat_template_kwargs", "an object"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]},
        400,
        "messages[0].content[0].type",
        "got 'image_url'",
    ),
    ({"model": "other"}, 404, "model", "does not exist"),
    ({"temperature": 2.5}, 400, "temperature", "less than or equal to 2; got 2.5"),
    ({"temperature": "1"}, 400, "temperature", "valid number"),
    ({"top_p": -1}, 400, "top_p", "greater than or equal to 0"),
    ({"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 1, "max_completion_tokens": 1}, 400, "max_completion_tokens", "not both"),
    ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop", "at most 4 items"),
    ({"stop": ["a", ""]}, 400, "stop[1]", "at least 1 character"),
    ({"stop": 5}, 400, "stop", "a string or a list"),
    ({"seed": 2**63}, 400, "seed", "less than or equal to"),
    ({"n": 0}, 400, "n", "got 0"),
    ({"n": 129}, 400, "n", "less than or equal to 128"),
    ({"top_k": -2}, 400, "top_k", "greater than or equal to -1"),
    ({"presence_penalty": 2.5}, 400, "presence_penalty", "less than or equal to 2"),
    ({"frequency_penalty": "0"}, 400, "frequency_penalty", "valid number"),
    ({"repetition_penalty": 0}, 400, "repetition_penalty", "greater than or equal to 0.01"),
    ({"logit_bias": {"5": 101}}, 400, "logit_bias.5", "less than or equal to 100"),
    ({"logit_bias": {"five": 1}}, 400, "logit_bias", "token ids"),
    ({"logit_bias": {"260": 1}}, 400, "logit_bias", "the model's are 0 to 259"),
    ({"logprobs": 1}, 400, "logprobs", "valid boolean"),
    ({"top_logprobs": 2}, 400, "top_logprobs", "logprobs true"),
    ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "less than or equal to 20"),
    ({"response_format": "json"}, 400, "response_format", "json_schema"),
    ({"response_format": {"type": "xml"}}, 400, "response_format", "json_schema"),
    ({"response_format": {"type": "json_schema"}}, 400, "response_format.json_schema", "Missing"),
    (schema({"type": "thing"}), 400, SCHEMA, "thing"),
    (schema({"$ref": "#/nowhere"}), 400, SCHEMA, "nowhere"),
    (schema({"type": "string", "pattern": "(a"}), 400, SCHEMA, "regex"),
    (schema({"type": "string", "pattern": "(?=a)b"}), 400, SCHEMA, "look-around"),
    (schema({"type": "string", "not": {"const": "a"}}), 400, SCHEMA, "`not` is not supported"),
    (schema({"enum": ["x" * 70_000]}), 400, SCHEMA, "65536"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", "stream true"),
    ({"messages": [{"role": "user", "content": "x" * 40_000}]}, 400, "messages", "30000 tokens"),
    ({"max_tokens": 30_000}, 400, "max_tokens", "max_tokens asks for 30000"),
    ({"max_completion_tokens": 10**30}, 400, "max_completion_tokens", "30000 tokens"),
]


@pytest.mark.parametrize(("change", "status", "param", "words"), BAD_REQUESTS)
def test_a_bad_request_is_refused_with_its_field(
    endpoint: Endpoint, change: dict[str, Any], status: int, param: str, words: str
) -> None:
    response = endpoint.post({"model": MODEL, "messages": HELLO, **change})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    is_too_long = "maximum context length" in error["message"]
    assert error["code"] == (
        "context_length_exceeded" if is_too_long else "model_not_found" if status == 404 else None
    )


def test_openais_client_raises_its_own_errors(endpoint: Endpoint) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(endpoint, tools=TOOLS)
    assert (caught.value.status_code, caught.value.param) == (400, "tools")
    with pytest.raises(openai.NotFoundError):
        chat(endpoint, model="other")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"hi"', b"\xff\xfe", b'{"a": "\\ud800"}', b"[" * 100_000, b'{"temperature": NaN}'],
)
def test_a_body_that_is_not_a_request_is_refused(endpoint: Endpoint, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{endpoint.url}/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_other_refusals_have_the_same_shape(endpoint: Endpoint) -> None:
    url = f"{endpoint.url}/v1/chat/completions"
    body = json.dumps({"model": MODEL, "messages": HELLO})
    responses = {
        415: httpx.post(url, content=body, headers={"Content-Type": "text/plain"}),
        413: endpoint.post({"model": MODEL, "messages": [{"role": "user", "content": "x" * (5 << 20)}]}),
        404: httpx.get(f"{endpoint.url}/v1/nothing"),
        405: httpx.get(url),
    }
    for status, response in responses.items():
        assert response.status_code == status
        assert response.json()["error"]["type"] == "invalid_request_error"
    assert responses[405].headers["allow"] == "POST"


def test_n_replies_are_those_of_n_seeds(endpoint: Endpoint) -> None:
    def alone(seed: int) -> str:
        return str(chat(endpoint, temperature=1.5, seed=seed).choices[0].message.content)

    completion = chat(endpoint, n=3, temperature=1.5, seed=4)
    texts = [choice.message.content for choice in completion.choices]
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert texts == [alone(4), alone(5), alone(6)]
    assert len(set(texts)) == 3
    one = chat(endpoint, temperature=1.5, seed=4).usage
    assert completion.usage.prompt_tokens == one.prompt_tokens
    assert completion.usage.completion_tokens == 3 * one.completion_tokens
    streamed = ["", "", ""]
    ends = []
    for chunk in chat(endpoint, n=3, temperature=1.5, seed=4, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        ends += [chunk.choices[0].finish_reason] if chunk.choices[0].finish_reason else []
    assert streamed == texts
    assert ends == ["length"] * 3


def test_log_probabilities_are_those_of_the_shown_tokens(endpoint: Endpoint) -> None:
    whole = chat(endpoint, temperature=0, logprobs=True, top_logprobs=2).choices[0]
    found = whole.logprobs.content
    assert "".join(token.token for token in found) == whole.message.content
    for token in found:
        assert bytes(token.bytes).decode() == token.token
        assert token.top_logprobs[0].token == token.token, "the likeliest one was drawn"
        assert token.logprob == token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
    stop = whole.message.content[5:8]
    stopped = chat(endpoint, temperature=0, stop=stop, logprobs=True).choices[0]
    assert [token.logprob for token in stopped.logprobs.content] == [token.logprob for token in found[:5]]
    assert stopped.logprobs.content[0].top_logprobs == []
    stream = chat(endpoint, temperature=0, stop=stop, logprobs=True, stream=True)
    pieces = [token for chunk in stream for token in (chunk.choices[0].logprobs or NOTHING).content]
    assert [token.token for token in pieces] == list(stopped.message.content)


def test_a_bias_bans_or_forces_a_token(endpoint: Endpoint) -> None:
    text = chat(endpoint, temperature=0).choices[0].message.content
    [first] = httpx.post(f"{endpoint.url}/tokenize", json={"prompt": text[0]}).json()["tokens"][-1:]
    banned = chat(endpoint, temperature=0, logit_bias={str(first): -100}).choices[0].message.content
    assert text[0] not in banned
    assert set(chat(endpoint, temperature=0, logit_bias={str(first): 100}).choices[0].message.content) == {text[0]}


def test_a_reply_follows_its_schema(endpoint: Endpoint) -> None:
    rules = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "size": {"enum": ["small", "large"]}},
        "required": ["name", "size"],
        "additionalProperties": False,
    }
    for seed in range(3):
        choice = chat(endpoint, **schema(rules), seed=seed, temperature=1.5, max_tokens=100).choices[0]
        found = json.loads(choice.message.content)
        assert choice.finish_reason == "stop"
        assert set(found) == {"name", "size"}
        assert found["size"] in ("small", "large")
    any_object = chat(endpoint, response_format={"type": "json_object"}, max_tokens=40)
    assert any_object.choices[0].message.content.startswith("{")


def test_tools_are_called_if_required(
    open_endpoint: Callable[..., AbstractContextManager[Endpoint]], tool_templates: dict[str, str]
) -> None:
    weather = {"type": "function", "function": {"name": "weather"}}
    with open_endpoint(False, tool_templates["tags"]) as endpoint:
        plain = chat(endpoint, tools=TOOLS, tool_choice="none", seed=1)
        assert plain.choices[0].message.tool_calls is None
        assert plain.usage.prompt_tokens == chat(endpoint, seed=1).usage.prompt_tokens
        assert chat(endpoint, tools=TOOLS, seed=1).usage.prompt_tokens > plain.usage.prompt_tokens
        for choice, names in (("required", {"weather", "time"}), (weather, {"weather"})):
            reply = chat(endpoint, tools=TOOLS, tool_choice=choice, max_tokens=200, seed=3).choices[0]
            [call] = reply.message.tool_calls
            assert reply.finish_reason == "tool_calls"
            assert reply.message.content is None
            assert call.function.name in names
            assert json.loads(call.function.arguments).get("city") in ("Oslo", "Rome", None)
        chunks = list(chat(endpoint, tools=TOOLS, tool_choice=choice, max_tokens=200, seed=3, stream=True))
        assert streamed_text(chunks) == ""
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        assert chunks[-1].choices[0].delta.tool_calls is None
        deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or []]
        assert {delta.index for delta in deltas} == {0}
        assert (deltas[0].function.name, deltas[0].type) == (call.function.name, "function")
        assert deltas[0].id.startswith("call_")
        assert {delta.id for delta in deltas[1:]} == {None}
        assert len(deltas) > 5
        assert "".join(delta.function.arguments for delta in deltas) == call.function.arguments
        answered = [*HELLO, {"role": "assistant", "tool_calls": [call.model_dump()]}]
        answered.append({"role": "tool", "tool_call_id": call.id, "content": "rain"})
        told = chat(endpoint, messages=answered, tools=TOOLS, max_tokens=5)
        assert told.usage.prompt_tokens > chat(endpoint, tools=TOOLS, max_tokens=5).usage.prompt_tokens


_THINKS = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}{% endif %}"
)


def test_reasoning_is_separate_from_content(
    open_endpoint: Callable[..., AbstractContextManager[Endpoint]],
) -> None:
    with open_endpoint(False, _THINKS) as endpoint:
        ask = {"seed": 1, "max_tokens": 8}
        whole = chat(endpoint, **ask, logprobs=True, stop="a")
        [choice] = whole.choices
        assert len(choice.message.reasoning_content) == 8
        assert (choice.message.content, choice.logprobs.content, choice.finish_reason) == ("", [], "length")
        assert whole.usage.completion_tokens_details.reasoning_tokens == whole.usage.completion_tokens == 8
        chunks = list(chat(endpoint, **ask, stream=True))
        deltas = [getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in chunks]
        assert "".join(deltas) == choice.message.reasoning_content
        assert streamed_text(chunks) == ""
        said = chat(endpoint, **ask, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
        assert len(said.choices[0].message.content) == 8
        assert said.choices[0].message.reasoning_content is None
        assert said.usage.completion_tokens_details.reasoning_tokens == 0
        again = [*HELLO, {**said.choices[0].message.model_dump(), "reasoning_content": "Hm."}, *HELLO]
        assert chat(endpoint, **ask, messages=again).usage.prompt_tokens > whole.usage.prompt_tokens
        ids = {"model": MODEL, "messages": HELLO, "chat_template_kwargs": {"enable_thinking": False}}
        counts = [
            httpx.post(f"{endpoint.url}/tokenize", json=body).json()["count"]
            for body in (ids, {**ids, "chat_template_kwargs": None})
        ]
        assert counts == [said.usage.prompt_tokens, whole.usage.prompt_tokens]


def test_optional_fields_of_a_tool_are_filled_in_for_templates_that_need_them(
    open_endpoint: Callable[..., AbstractContextManager[Endpoint]], tool_templates: dict[str, str]
) -> None:
    needs = tool_templates["tags"].replace(
        "{{ tool.function | tojson }}", "{{ tool.function.name + tool.function.description }}"
    )
    with open_endpoint(False, needs) as endpoint:
        assert chat(endpoint, tools=TOOLS, max_tokens=1).usage.prompt_tokens > 0


def test_a_required_call_that_is_cut_is_a_call(
    open_endpoint: Callable[..., AbstractContextManager[Endpoint]], tool_templates: dict[str, str]
) -> None:
    with open_endpoint(False, tool_templates["tags"]) as endpoint:
        ask = {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "weather"}}, "seed": 3}
        whole = json.loads(chat(endpoint, **ask, max_tokens=200).choices[0].message.tool_calls[0].function.arguments)
        for limit, arguments in ((len('<tool_call>\n{"name": "weath'), None), (60, json.dumps(whole)[:10])):
            [choice] = chat(endpoint, **ask, max_tokens=limit).choices
            assert choice.finish_reason == "length"
            assert not choice.message.content
            assert (choice.message.tool_calls is None) == (arguments is None)
            if arguments:
                assert choice.message.tool_calls[0].function.arguments.startswith(arguments)
        [stopped] = chat(endpoint, **ask, max_tokens=200, stop=whole["city"][1:]).choices
        assert stopped.finish_reason == "length"
        assert stopped.message.tool_calls[0].function.arguments == '{"city": "' + whole["city"][0]


class Place(pydantic.BaseModel):
    city: Literal["Oslo", "Rome"]


class Weather(pydantic.BaseModel):
    """Look up the weather."""

    places: list[Place] = pydantic.Field(max_length=2)
    unit: Literal["C", "F"]


def test_openais_client_reads_replies_into_models(
    open_endpoint: Callable[..., AbstractContextManager[Endpoint]], tool_templates: dict[str, str]
) -> None:
    tool = openai.pydantic_function_tool(Weather)
    ask = {"model": MODEL, "messages": HELLO, "max_tokens": 300, "seed": 5}
    with open_endpoint(False, tool_templates["tags"]) as endpoint:
        chats = endpoint.client.chat.completions
        parsed = chats.parse(**ask, response_format=Weather).choices[0].message
        assert isinstance(parsed.parsed, Weather)
        [call] = chats.parse(**ask, tools=[tool], tool_choice="required").choices[0].message.tool_calls
        assert isinstance(call.function.parsed_arguments, Weather)
        with chats.stream(**ask, response_format=Weather, logprobs=True) as stream:
            text = "".join(event.delta for event in stream if event.type == "content.delta")
            final = stream.get_final_completion().choices[0]
        assert final.message.parsed == parsed.parsed == Weather.model_validate_json(text)
        assert "".join(token.token for token in final.logprobs.content) == text
        with chats.stream(**ask, tools=[tool], tool_choice="required") as stream:
            [streamed] = stream.get_final_completion().choices[0].message.tool_calls
        assert streamed.function.parsed_arguments == call.function.parsed_arguments


def test_prompts_are_completed(endpoint: Endpoint) -> None:
    ask = {"model": MODEL, "temperature": 0, "max_tokens": 8, "logprobs": 1}
    one = endpoint.client.completions.create(prompt="Once upon", **ask)
    assert one.choices[0].logprobs.tokens == list(one.choices[0].text)
    assert one.choices[0].logprobs.text_offset == list(range(8))
    assert one.choices[0].finish_reason == "length"
    ids = httpx.post(f"{endpoint.url}/tokenize", json={"prompt": "Once upon"}).json()
    assert ids["count"] == len(ids["tokens"]) == one.usage.prompt_tokens
    assert ids["max_model_len"] == 30_000
    assert endpoint.client.completions.create(prompt=ids["tokens"], **ask).choices[0].text == one.choices[0].text
    several = endpoint.client.completions.create(prompt=["Once upon", "a time"], **ask, n=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text == one.choices[0].text != several.choices[2].text
    stream = endpoint.client.completions.create(prompt="Once upon", **ask, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == one.choices[0].text
    assert endpoint.client.completions.create(prompt="x", model=MODEL).usage.completion_tokens == 16


def test_a_chats_prompt_in_tokens(endpoint: Endpoint) -> None:
    found = httpx.post(f"{endpoint.url}/tokenize", json={"model": MODEL, "messages": HELLO}).json()
    assert found["count"] == chat(endpoint, max_tokens=1).usage.prompt_tokens


@pytest.mark.parametrize(("path", "body", "param"), [
    ("/v1/completions", {"prompt": ""}, "prompt"),
    ("/v1/completions", {"prompt": []}, "prompt"),
    ("/v1/completions", {"prompt": [1, "a"]}, "prompt"),
    ("/v1/completions", {"prompt": [[1], []]}, "prompt"),
    ("/v1/completions", {"prompt": [True]}, "prompt"),
    ("/v1/completions", {"prompt": ["a"] * 65}, "prompt"),
    ("/v1/completions", {"prompt": [260]}, "prompt"),
    ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix"),
    ("/v1/completions", {"prompt": "a", "max_tokens": 30_000}, "max_tokens"),
    ("/v1/completions", {"prompt": "a" * 30_001}, "prompt"),
    ("/v1/completions", {}, "prompt"),
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": "a", "messages": HELLO}, "messages"),
    ("/tokenize", {"prompt": 1}, "prompt"),
])  # fmt: skip
def test_the_other_routes_refuse_by_name_too(endpoint: Endpoint, path: str, body: dict[str, Any], param: str) -> None:
    response = httpx.post(f"{endpoint.url}{path}", json={"model": MODEL, **body})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_a_full_endpoint_answers_429(
    open_endpoint: Callable[..., AbstractContextManager[Endpoint]],
) -> None:
    with open_endpoint(False, max_queued_requests=2) as endpoint:
        body = {"model": MODEL, "messages": HELLO, "max_tokens": 20_000, "stream": True}
        url = f"{endpoint.url}/v1/chat/completions"
        # The front sends a stream's headers with its first token, so the two waiting requests have no headers yet.
        impatient = httpx.Timeout(20, read=2)
        with contextlib.ExitStack() as streams, ThreadPoolExecutor() as pool:
            held = [streams.enter_context(httpx.stream("POST", url, json=body)) for _ in range(2)]
            assert [response.status_code for response in held] == [200] * 2
            late = [
                pool.submit(httpx.post, url, json=body, headers={LEASE: "any"}, timeout=impatient) for _ in range(2)
            ]
            wait_for_active(endpoint, 2, num_waiting=2)
            refused = endpoint.post({"model": MODEL, "messages": HELLO})
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["code"] == "queue_full"
            assert httpx.get(f"{endpoint.url}/health").status_code == 200
            for request in late:
                with pytest.raises(httpx.ReadTimeout):
                    request.result()
        wait_for_active(endpoint, 0)
        assert endpoint.post({"model": MODEL, "messages": HELLO, "max_tokens": 2}).status_code == 200


def test_a_reply_that_takes_too_long_is_ended(
    open_endpoint: Callable[..., AbstractContextManager[Endpoint]],
) -> None:
    with open_endpoint(False, max_seconds=0.5) as endpoint:
        whole = endpoint.post({"model": MODEL, "messages": HELLO, "max_tokens": 29_000})
        assert (whole.status_code, whole.json()["error"]["code"]) == (504, "deadline_exceeded")
        with pytest.raises(openai.APIError) as caught:
            list(chat(endpoint, max_tokens=29_000, stream=True))
        assert "0.5 seconds" in caught.value.message
        wait_for_active(endpoint, 0)


def metrics_of(endpoint: Endpoint) -> dict[str, float]:
    lines = httpx.get(f"{endpoint.url}/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_requests_are_counted_and_logged_without_content(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rayconteur.requests")
    before = metrics_of(endpoint)
    secret = [{"role": "user", "content": "xyzzy"}]
    answer = endpoint.post({"model": MODEL, "messages": secret, "max_tokens": 7})
    list(chat(endpoint, messages=secret, max_tokens=5, stream=True))
    endpoint.post({"model": MODEL, "messages": []})
    with httpx.stream("POST", f"{endpoint.url}/v1/chat/completions", headers={"x-request-id": "mine"}, json={
        "model": MODEL, "messages": secret, "max_tokens": 29_000, "stream": True,
    }) as response:  # fmt: skip
        events = response.iter_lines()
        assert [next(events) for _ in range(8)], "tokens are on their way"
    wait_for_active(endpoint, 0)

    def more(name: str) -> float:
        return metrics_of(endpoint).get(f"rayconteur_{name}", 0) - before.get(f"rayconteur_{name}", 0)

    route = 'requests_total{route="/v1/chat/completions",status="%s"}'
    assert [more(route % status) for status in (200, 400, 499)] == [2, 1, 1]
    assert more("time_to_first_token_seconds_count") == 3
    assert more("reply_tokens_total") >= 7 + 5
    assert more("prompt_tokens_total") == 3 * answer.json()["usage"]["prompt_tokens"]
    assert more("reply_tokens_total") - 3 == more("time_between_tokens_seconds_count")
    lines = [json.loads(record.message) for record in caplog.records if record.name == "rayconteur.requests"]
    lines = [line for line in lines if line["path"] == "/v1/chat/completions"]
    assert [line["status"] for line in lines] == [200, 200, 400, 499]
    assert lines[0]["id"] == answer.headers["x-request-id"]
    assert (lines[0]["reply"], lines[0]["reply_tokens"]) == (answer.json()["id"], 7)
    assert lines[3]["id"] == "mine"
    assert "xyzzy" not in caplog.text


def test_more_requests_than_slots_are_all_answered(endpoint: Endpoint) -> None:
    with ThreadPoolExecutor(6) as threads:
        completions = list(threads.map(lambda _: chat(endpoint, temperature=0), range(6)))
    assert len({completion.choices[0].message.content for completion in completions}) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(endpoint: Endpoint, stream: bool) -> None:
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 29_000, "stream": stream}
    url = f"{endpoint.url}/v1/chat/completions"
    if stream:
        with httpx.stream("POST", url, json=body) as response:
            lines = response.iter_lines()
            events = [line for _ in range(12) if (line := next(lines)).startswith("data: ")]
            assert len(events) >= 4, "tokens are on their way"
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=body, timeout=0.3)
    wait_for_active(endpoint, 0)


def wait_for_active(endpoint: Endpoint, num_active: int, num_waiting: int | None = None) -> None:
    """The engine takes much longer for 29,000 tokens than this waits, also on a busy machine."""
    until = time.monotonic() + 20
    while endpoint.engine.health().num_active != num_active or (
        num_waiting is not None and endpoint.engine.health().num_waiting != num_waiting
    ):
        assert time.monotonic() < until, f"{endpoint.engine.health()} after 20 s"
        time.sleep(0.01)
