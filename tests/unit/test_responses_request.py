"""Requests of the Responses API become chats: items become messages, errors name the request's own fields."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from serve.protocol import errors
from serve.protocol.errors import ApiError
from serve.responses_api.request import ResponsesRequest
from serve.responses_api.translation import Translation

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": True}
CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'}
ANSWER = {"type": "function_call_output", "call_id": "c1", "output": "rain"}


def asked(**params: Any) -> ResponsesRequest:
    body = {"model": "m", "input": "Hi", **params}
    try:
        return ResponsesRequest.model_validate_json(json.dumps(body))
    except ValidationError as error:
        raise errors.refusal(error, ResponsesRequest) from error


def chat(**params: Any) -> dict[str, Any]:
    return Translation(asked(**params)).request.model_dump(exclude_unset=True, by_alias=True)


def messages(*items: Any, **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = chat(input=list(items), **params)["messages"]
    return found


def refused(**params: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        Translation(asked(**params))
    assert caught.value.status == 400
    return caught.value


def test_a_text_input_is_a_user_message_after_the_instructions() -> None:
    assert chat() == {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    assert chat(instructions="Be brief.")["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]


def test_items_become_turns() -> None:
    thought = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hm"}],
    }
    said = {"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [said]}
    second = {**CALL, "call_id": "c2", "id": "fc_2", "status": "completed"}
    parts = [{"type": "input_text", "text": "sun"}, {"type": "input_text", "text": "ny"}]
    found = messages(
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Rain?"}]},
        thought, message, CALL, second, ANSWER, {**ANSWER, "call_id": "c2", "output": parts},
        {"role": "assistant", "content": "Rain, then sun."},
        {"role": "user", "content": "And later?"},
        tools=[WEATHER],
    )  # fmt: skip
    assert [each["role"] for each in found] == [
        "developer", "user", "assistant", "tool", "tool", "assistant", "user",
    ]  # fmt: skip
    called = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert found[2] == {
        "role": "assistant", "content": "Let me see.", "reasoning_content": "Hm",
        "tool_calls": [{"id": name, "type": "function", "function": called} for name in ("c1", "c2")],
    }  # fmt: skip
    assert found[4] == {"role": "tool", "tool_call_id": "c2", "content": "sunny"}


def test_what_follows_calls_is_another_turn() -> None:
    user, says = {"role": "user", "content": "?"}, {"role": "assistant", "content": "So"}
    found = messages(user, CALL, says, ANSWER, {**says, "content": "a"}, {**says, "content": "b"})
    assert [each["role"] for each in found] == ["user", "assistant", "assistant", "tool", "assistant", "assistant"]
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]}
    found = messages(user, says, thought, {**says, "content": "b"}, {"type": "reasoning", "summary": []})
    assert [each.get("reasoning_content") for each in found] == [None, None, "Hm"]


def test_settings_are_those_of_a_chat() -> None:
    found = chat(
        tools=[WEATHER, {**WEATHER, "name": "time", "strict": None}],
        tool_choice={"type": "function", "name": "time"},
        parallel_tool_calls=False, max_output_tokens=7, temperature=0, top_p=0.5, seed=3, top_logprobs=2,
        include=["message.output_text.logprobs", "reasoning.encrypted_content"], reasoning={"effort": "low"},
        metadata={"a": "b"}, stream=True, chat_template_kwargs={"x": 1}, truncation="disabled", store=False,
        user="u", safety_identifier="s", prompt_cache_key="k", service_tier="auto", background=False,
        text={"verbosity": "low"}, stream_options={"include_obfuscation": False}, max_tool_calls=3,
    )  # fmt: skip
    schema = {"type": "object", "properties": {}}
    assert found["tools"] == [
        {"type": "function", "function": {"name": "weather", "parameters": schema, "strict": True}},
        {"type": "function", "function": {"name": "time", "parameters": schema, "strict": None}},
    ]
    assert found["tool_choice"] == {"type": "function", "function": {"name": "time"}}
    del found["tools"], found["tool_choice"], found["messages"]
    assert found == {
        "model": "m", "parallel_tool_calls": False, "max_completion_tokens": 7, "temperature": 0, "top_p": 0.5,
        "seed": 3, "logprobs": True, "top_logprobs": 2, "reasoning_effort": "low", "metadata": {"a": "b"},
        "stream": True, "chat_template_kwargs": {"x": 1}, "user": "u", "service_tier": "auto",
    }  # fmt: skip


def test_without_tools_there_is_nothing_to_choose() -> None:
    for choice in ("auto", "none"):
        assert chat(tools=[], tool_choice=choice, parallel_tool_calls=True) == {**chat(), "parallel_tool_calls": True}


def test_null_is_unset() -> None:
    names = set(ResponsesRequest.model_fields) - {"model", "input"}
    assert chat(**dict.fromkeys(names)) == chat()


def test_formats_are_those_of_a_chat() -> None:
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    found: Any = Translation(asked(text={"format": schema})).request.response_format
    assert found.json_schema.schema_ == {"type": "object"}
    for kind in ("json_object", "text"):
        found = Translation(asked(text={"format": {"type": kind}})).request.response_format
        assert found.type == kind


def test_only_allowed_tools_are_offered() -> None:
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "b"}]}
    found = chat(tools=[{**WEATHER, "name": name} for name in "abc"], tool_choice=choice)
    assert [tool["function"]["name"] for tool in found["tools"]] == ["b"]
    assert found["tool_choice"] == "required"


@pytest.mark.parametrize(("params", "param", "words"), [
    ({"store": True}, "store", "Nothing is stored"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole conversation in input"),
    ({"conversation": {"id": "conv_1"}}, "conversation", "send the whole conversation in input"),
    ({"background": True}, "background", "use stream"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", "as instructions or input"),
    ({"tools": [{"type": "web_search"}]}, "tools[0]", "'web_search' run on OpenAI's servers"),
    ({"tools": [WEATHER, {"type": "mcp", "server_label": "x"}]}, "tools[1]", "'mcp' run on"),
    ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0]", "use a function with one string"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name", "got 'a b'"),
    ({"tool_choice": "required"}, "tool_choice", "no tools"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "time"}}, "tool_choice", "No such tool"),
    ({"tools": [WEATHER], "tool_choice": {"type": "web_search"}}, "tool_choice", "none, auto, required"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]", "send the items themselves"),
    ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0]", "remove them"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]", "only reads text"),
    ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "got 'robot'"),
    ({"input": [{**CALL, "arguments": "[1"}]}, "input[0].arguments", "JSON object"),
    ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "input[0].encrypted_content", "remove the item"),
    ({"input": ["Hi"]}, "input[0]", "Its type should be message"),
    ({"input": []}, "input", "at least 1 item"),
    ({"input": ""}, "input", "at least 1 character"),
    ({"input": 5}, "input", "a string or a list of items"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format", "json_schema"),
    ({"max_output_tokens": 0}, "max_output_tokens", "got 0"),
    ({"include": ["everything"]}, "include[0]", "got 'everything'"),
    ({"top_logprobs": 2}, "top_logprobs", "message.output_text.logprobs"),
    ({"messages": []}, "messages", "Unrecognized"),
    ({"max_tokens": 4}, "max_tokens", "Unrecognized"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "got 'huge'"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(params: dict[str, Any], param: str, words: str) -> None:
    error = refused(**params).error
    assert error.param == param
    assert words in error.message


@pytest.mark.parametrize(("chats", "own"), [
    ("messages", "input"),
    ("messages[0].content", "instructions.content"),
    ("messages[1].content", "input[0].content"),
    ("messages[2].content", "input[1].content"),
    ("messages[2].tool_calls", "input[2]"),
    ("messages[2].tool_calls[1].function.arguments", "input[3].arguments"),
    ("messages[3].tool_call_id", "input[4].call_id"),
    ("response_format.json_schema.schema", "text.format.schema"),
    ("max_completion_tokens", "max_output_tokens"),
    ("tools[0].function.parameters", "tools[0].parameters"),
    ("tools", "tools"),
    ("temperature", "temperature"),
    ("reasoning_effort", "reasoning.effort"),
])  # fmt: skip
def test_errors_of_the_chat_name_the_fields_of_the_request(chats: str, own: str) -> None:
    items = [
        {"role": "user", "content": "?"}, {"role": "assistant", "content": "So"},
        CALL, {**CALL, "call_id": "c2"}, ANSWER,
    ]  # fmt: skip
    translation = Translation(asked(instructions="Be brief.", input=items))
    told = translation.explained(ApiError(400, f"{chats}: raise max_completion_tokens.", chats, "some_code"))
    assert told.error.param == own
    assert told.error.message == f"{own}: raise max_output_tokens."
    assert told.error.code == "some_code"


def test_an_error_in_a_text_names_input() -> None:
    translation = Translation(asked())
    assert translation.explained(ApiError(400, "messages[0].content: no.", "messages[0].content")).error.param == (
        "input.content"
    )


def test_shorter_ones_lose_their_oldest_turns() -> None:
    items = [
        {"role": "user", "content": "1"}, CALL, ANSWER, {"role": "user", "content": "2"},
        {"role": "developer", "content": "Brief!"}, {"role": "user", "content": "3"},
    ]  # fmt: skip
    translation = Translation(asked(instructions="Be", input=items))
    shorter = [translation.beginning_at(start) for start in translation.later_turns()]
    assert [[message.content for message in each.messages] for each in shorter] == [
        ["Be", "2", "Brief!", "3"], ["Be", "Brief!", "3"],
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [
    ("use_beam_search", 0.0), ("use_beam_search", 0), ("priority", False), ("skip_special_tokens", 1), ("store", 0.0),
])  # fmt: skip
def test_only_false_is_false(name: str, value: Any) -> None:
    assert refused(**{name: value}).error.param == name
