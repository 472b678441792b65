"""The Responses API: items and events of a reply while it is generated, read with OpenAI's client."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest

from serve.engines.torch import TorchEngine
from serve.protocol.errors import ApiError
from serve.replies.generation import CallDelta, Piece, ToolCall
from serve.responses_api.reply import ResponsesReply
from serve.responses_api.request import ResponsesRequest
from serve.responses_api.translation import Translation

MODEL = "tiny/talker"
WEATHER = {
    "type": "function", "name": "weather", "description": None, "strict": True,
    "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"],
        "additionalProperties": False,
    },
}  # fmt: skip


FORMAT = {"type": "json_schema", "name": "x"}


@dataclass
class Written:
    """A generation with known pieces."""

    written: Sequence[Piece | ApiError]
    tool_calls: list[ToolCall] = field(default_factory=list)
    finish_reason: Literal["stop", "length", "tool_calls"] = "stop"
    num_prompt_tokens = 5
    num_tokens = 7
    num_thought = 2
    num_cached: int | None = 3

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        for piece in self.written:
            if isinstance(piece, ApiError):
                raise piece
            yield piece


def reply_of(generation: Written) -> Any:
    asked = ResponsesRequest.model_validate({"model": "m", "input": "Hi"})
    made: Any = generation
    return ResponsesReply(asked, Translation(asked), [made])


def events_of(generation: Written) -> list[dict[str, Any]]:
    async def all_of_them() -> list[str]:
        return [event async for event in reply_of(generation).events()]

    found = []
    for event in asyncio.run(all_of_them()):
        name, data = event.rstrip("\n").split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


CALLS = [ToolCall("c1", "weather", '{"city": "Oslo"}'), ToolCall("c2", "time", "{}")]
ITEM = ["response.output_item.added", "response.content_part.added"]
DONE = ["response.content_part.done", "response.output_item.done"]
CALL = [
    "response.output_item.added", "response.function_call_arguments.delta", "response.function_call_arguments.done",
    "response.output_item.done",
]  # fmt: skip


def test_the_whole_sequence_of_events() -> None:
    pieces = [Piece("", thought="H"), Piece("Let", thought="m"), Piece(" me see")]
    generation = Written(pieces, CALLS, "tool_calls")
    events = events_of(generation)
    thinking, saying = ["response.reasoning_text.delta"] * 2, ["response.output_text.delta"] * 2
    assert [event["type"] for event in events] == [
        "response.created", "response.in_progress",
        *ITEM, *thinking, "response.reasoning_text.done", *DONE,
        *ITEM, *saying, "response.output_text.done", *DONE,
        *CALL, *CALL,
        "response.completed",
    ]  # fmt: skip
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    last = events[-1]["response"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert last["output"] == done
    reasoning, message, first, second = last["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm"}]
    assert message["content"][0]["text"] == "Let me see"
    assert [first["call_id"], first["name"], first["arguments"]] == ["c1", "weather", '{"city": "Oslo"}']
    assert second["arguments"] == "{}"
    assert {item["status"] for item in last["output"]} == {"completed"}
    assert last["usage"]["input_tokens"] == 5
    assert last["usage"]["input_tokens_details"] == {"cached_tokens": 3}
    assert last["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
    for event in events[2:-1]:
        item = last["output"][event["output_index"]]
        assert event.get("item_id", item["id"]) == item["id"]
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert [item.get("content", item.get("arguments")) for item in added] == [[], [], "", ""]
    assert {item["status"] for item in added} == {"in_progress"}


def test_calls_are_streamed_as_they_are_generated() -> None:
    pieces = [
        Piece("Hm"),
        Piece("", calls=[CallDelta(0, "", "c1", "weather")]),
        Piece("", calls=[CallDelta(0, '{"city": ')]),
        Piece("", calls=[CallDelta(0, '"Oslo"}'), CallDelta(1, "{", "c2", "time")]),
    ]
    events = events_of(Written(pieces, CALLS, "tool_calls"))
    assert [event["type"] for event in events[8:]] == [
        *CALL[:2],
        *CALL[1:],
        *CALL[:2],
        *CALL[1:],
        "response.completed",
    ]
    calls = events[-1]["response"]["output"][1:]
    assert [call["call_id"] for call in calls] == ["c1", "c2"]
    for place, call in enumerate(CALLS, start=1):
        own = [event for event in events if event.get("output_index") == place]
        deltas = [event["delta"] for event in own if event["type"] == "response.function_call_arguments.delta"]
        assert "".join(deltas) == own[-2]["arguments"] == own[-1]["item"]["arguments"] == call.arguments
        assert len(deltas) == 2


def test_a_whole_answer_has_the_same_items() -> None:
    pieces = [Piece("a", thought="H"), Piece("b"), Piece("", thought="m"), Piece("c")]
    answer = asyncio.run(reply_of(Written(pieces)).completion())
    assert [item.type for item in answer.output] == ["reasoning", "message", "reasoning", "message"]
    assert answer.status == "completed"
    streamed = events_of(Written(pieces))[-1]["response"]["output"]
    same = [(item.type, item.content[0].text) for item in answer.output]
    assert same == [(item["type"], item["content"][0]["text"]) for item in streamed]


@pytest.mark.parametrize(("generation", "kinds"), [
    (Written([Piece("a")], finish_reason="length"), ["message"]),
    (Written([Piece("", thought="a")], finish_reason="length"), ["reasoning"]),
    (Written([Piece("a")], CALLS[:1], finish_reason="length"), ["message", "function_call"]),
])  # fmt: skip
def test_a_reply_that_is_cut_is_incomplete(generation: Written, kinds: list[str]) -> None:
    last = events_of(generation)[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["completed_at"] is None
    assert [item["type"] for item in last["response"]["output"]] == kinds
    assert [item["status"] for item in last["response"]["output"]] == ["completed"] * (len(kinds) - 1) + [
        "incomplete"
    ]


def test_an_empty_reply_is_an_empty_message() -> None:
    last = events_of(Written([]))[-1]["response"]
    assert [item["content"][0]["text"] for item in last["output"]] == [""]


def test_a_failure_is_reported_in_the_stream_or_before_it() -> None:
    failure = ApiError(400, "tools: after 3 tokens of the reply: no.", "tools", "some_code")
    *_, told, last = events_of(Written([Piece("a"), failure]))
    assert (told["type"], told["code"], told["param"]) == ("error", "some_code", "tools")
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "invalid_prompt", "message": told["message"]}
    assert last["response"]["output"][0]["status"] == "incomplete"
    with pytest.raises(ApiError, match="after 3 tokens"):
        events_of(Written([failure]))
    renamed = ApiError(400, "response_format: no.", "response_format")
    with pytest.raises(ApiError, match=r"text\.format: no\."):
        asyncio.run(reply_of(Written([Piece("a"), renamed])).completion())


@dataclass(frozen=True)
class Endpoint:
    """A served app and an OpenAI client for it."""

    url: str
    client: openai.OpenAI

    def create(self, **params: Any) -> Any:
        return self.client.responses.create(**{"model": MODEL, "input": "Hello", **params})

    def post(self, **params: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/responses", json={"model": MODEL, "input": "Hello", **params}, timeout=20)


@pytest.fixture(scope="module")
def open_endpoint(
    serving_talker: Callable[..., AbstractContextManager[tuple[TorchEngine, str, openai.OpenAI]]],
) -> Callable[..., AbstractContextManager[Endpoint]]:
    @contextmanager
    def opened(template: str | None = None, ends: bool = False, positions: int = 2000) -> Iterator[Endpoint]:
        with serving_talker(MODEL, ends, template, positions) as (_, url, client):
            yield Endpoint(url, client)

    return opened


@pytest.fixture(scope="module")
def endpoint(
    open_endpoint: Callable[..., AbstractContextManager[Endpoint]], tool_templates: dict[str, str]
) -> Iterator[Endpoint]:
    with open_endpoint(tool_templates["tags"], True) as endpoint:
        yield endpoint


def test_it_is_the_reply_of_a_chat(endpoint: Endpoint) -> None:
    ask = {"temperature": 0.7, "seed": 3}
    answer = endpoint.create(
        instructions="Be brief.", temperature=0.7, extra_body={"seed": 3}, max_output_tokens=9, metadata={"a": "b"}
    )
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    chat = endpoint.client.chat.completions.create(model=MODEL, messages=messages, max_tokens=9, **ask)
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    assert answer.usage.output_tokens == chat.usage.completion_tokens
    assert answer.usage.total_tokens == chat.usage.total_tokens
    assert answer.object == "response"
    assert (answer.model, answer.instructions, answer.metadata) == (MODEL, "Be brief.", {"a": "b"})
    assert (answer.temperature, answer.top_p, answer.max_output_tokens) == (0.7, 1.0, 9)
    assert (answer.store, answer.background, answer.previous_response_id) == (False, False, None)
    assert (answer.tool_choice, answer.tools, answer.parallel_tool_calls) == ("auto", [], True)
    assert answer.text.format.type == "text"


def test_a_stream_is_the_same_reply_in_events(endpoint: Endpoint) -> None:
    ask = {"temperature": 0, "max_output_tokens": 12}
    whole = endpoint.create(**ask)
    with endpoint.client.responses.stream(model=MODEL, input="Hello", **ask) as stream:
        events = list(stream)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert [event.type for event in events[:4]] == ["response.created", "response.in_progress", *ITEM]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == f"response.{whole.status}"
    assert events[-1].response.usage == whole.usage
    assert events[-1].response.output_text == whole.output_text
    raw = httpx.post(f"{endpoint.url}/v1/responses", json={"model": MODEL, "input": "Hello", "stream": True, **ask})
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert raw.text.startswith("event: response.created\ndata: {")


def test_tokens_of_an_input_are_counted_before_it_is_sent(endpoint: Endpoint) -> None:
    body = {"model": MODEL, "input": "Hi", "instructions": "Be brief.", "max_output_tokens": 1}
    counted = httpx.post(f"{endpoint.url}/v1/responses/input_tokens", json=body, timeout=20).json()
    told = httpx.post(f"{endpoint.url}/v1/responses", json=body, timeout=20).json()
    assert counted == {"object": "response.input_tokens", "input_tokens": told["usage"]["input_tokens"]}


def test_its_own_output_is_valid_input(endpoint: Endpoint) -> None:
    conversation: list[Any] = [{"role": "user", "content": "Weather?"}]
    ask: dict[str, Any] = {"tools": [WEATHER], "extra_body": {"seed": 3}, "max_output_tokens": 200}
    answer = endpoint.create(input=conversation, tool_choice="required", **ask)
    [call] = answer.output
    assert (call.type, call.name, answer.status) == ("function_call", "weather", "completed")
    assert json.loads(call.arguments)["city"] in ("Oslo", "Rome")
    conversation += answer.output
    conversation.append({"type": "function_call_output", "call_id": call.call_id, "output": "rain"})
    second = endpoint.create(input=conversation, **ask)
    assert second.output_text
    dumped = [item.model_dump() for item in second.output]
    third = endpoint.create(input=[*conversation, *dumped, {"role": "user", "content": "Thanks"}], **ask)
    assert third.usage.input_tokens > second.usage.input_tokens + second.usage.output_tokens
    lost = endpoint.post(input=conversation[:1] + conversation[2:])
    assert lost.status_code == 400
    assert lost.json()["error"]["param"].startswith("input[1]")


class Weather(pydantic.BaseModel):
    """Look up the weather."""

    city: Literal["Oslo", "Rome"]
    unit: Literal["C", "F"]


def test_openais_client_reads_answers_into_models(endpoint: Endpoint) -> None:
    ask: dict[str, Any] = {
        "model": MODEL, "input": "Hello", "max_output_tokens": 300, "extra_body": {"seed": 5},
    }  # fmt: skip
    tool: Any = openai.pydantic_function_tool(Weather)
    flat = {"type": "function", **tool["function"]}
    parsed = endpoint.client.responses.parse(**ask, text_format=Weather)
    assert isinstance(parsed.output_parsed, Weather)
    called = endpoint.client.responses.parse(**ask, tools=[tool], tool_choice="required")
    assert isinstance(called.output[0].parsed_arguments, Weather)
    with endpoint.client.responses.stream(**ask, text_format=Weather) as stream:
        final = stream.get_final_response()
    assert final.output_parsed == parsed.output_parsed
    with endpoint.client.responses.stream(**ask, tools=[flat], tool_choice="required") as stream:
        deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        [item] = stream.get_final_response().output
    assert "".join(deltas) == item.arguments == called.output[0].arguments


def test_log_probabilities_are_of_the_text(endpoint: Endpoint) -> None:
    ask = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "temperature": 0, "max_output_tokens": 5}
    part = endpoint.create(**ask).output[0].content[0]
    assert "".join(token.token for token in part.logprobs) == part.text
    assert {len(token.top_logprobs) for token in part.logprobs} == {2}
    deltas = [event for event in endpoint.create(**ask, stream=True) if event.type == "response.output_text.delta"]
    assert [token.logprob for event in deltas for token in event.logprobs] == [
        token.logprob for token in part.logprobs
    ]


def test_a_conversation_that_is_too_long_loses_its_oldest_turns(
    open_endpoint: Callable[..., AbstractContextManager[Endpoint]],
) -> None:
    turns = [{"role": role, "content": f"{number} {role}"} for number in range(9) for role in ("user", "assistant")]
    conversation = [{"role": "system", "content": "Be brief."}, *turns, {"role": "user", "content": "Now?"}]
    with open_endpoint(positions=200) as endpoint:
        answer = endpoint.create(input=conversation, truncation="auto", max_output_tokens=4)
        shorter = [conversation[0], *conversation[-7:]]
        assert answer.usage.input_tokens == endpoint.create(input=shorter, max_output_tokens=4).usage.input_tokens
        assert endpoint.post(input=[conversation[0], *conversation[-9:]], max_output_tokens=4).status_code == 400
        for params in ({}, {"truncation": "auto", "input": "a" * 300}, {"truncation": "disabled"}):
            refused = endpoint.post(**{"input": conversation, "max_output_tokens": 4, **params})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "input"
            assert refused.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(("params", "param", "words"), [
    ({"model": "other"}, "model", "does not exist"),
    ({"text": {"format": {**FORMAT, "schema": {"type": "thing"}}}}, "text.format.schema", "thing"),
    ({"max_output_tokens": 5000}, "max_output_tokens", "max_output_tokens asks for 5000"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole conversation"),
])  # fmt: skip
def test_errors_name_the_fields_of_the_request(
    endpoint: Endpoint, params: dict[str, Any], param: str, words: str
) -> None:
    answer = endpoint.post(**params)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param
    assert words in answer.json()["error"]["message"]


def test_what_an_engine_cannot_report_is_null() -> None:
    generation = Written([Piece("a")])
    generation.num_cached = None
    assert asyncio.run(reply_of(generation).completion()).usage.input_tokens_details.cached_tokens is None
