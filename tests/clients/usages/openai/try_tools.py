"""Functions and formats."""

import json
from enum import Enum
from typing import Any, Literal

import openai
from pydantic import BaseModel, Field
from shared import ADD, HELLO, SUM, SWITCH, TWO_SUMS, chat, client
from trial import Endpoint, run_all, usage


class City(BaseModel):
    """A place."""

    name: str = Field(description="as people there call it", max_length=20)
    size: Literal["small", "large"] = "small"


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Painting(BaseModel):
    colour: Colour
    height: int | None = None
    place: City


@usage("tools, tool_choice auto: loop and a further question")
def _(endpoint: Endpoint) -> None:
    messages: list[Any] = [{"role": "user", "content": SUM}]
    asked = chat(endpoint, messages, tools=[ADD], max_completion_tokens=60).choices[0]
    assert asked.finish_reason == "tool_calls"
    [call] = asked.message.tool_calls
    assert json.loads(call.function.arguments) == {"a": 2, "b": 3}
    messages += [asked.message, {"role": "tool", "tool_call_id": call.id, "content": "5"}]
    told = chat(endpoint, messages, tools=[ADD], max_completion_tokens=20).choices[0].message
    assert told.content == "It is 5."
    messages += [told, {"role": "user", "content": "Sure?"}]
    assert chat(endpoint, messages, tools=[ADD], tool_choice="none").choices[0].message.content


@usage("tools, two calls in a turn")
def _(endpoint: Endpoint) -> None:
    messages: list[Any] = [{"role": "user", "content": TWO_SUMS}]
    message = chat(endpoint, messages, tools=[ADD], max_completion_tokens=120).choices[0].message
    assert len({call.id for call in message.tool_calls}) == 2
    messages.append(message)
    for call in message.tool_calls:
        total = sum(json.loads(call.function.arguments).values())
        messages.append({"role": "tool", "tool_call_id": call.id, "content": str(total)})
    assert (
        chat(endpoint, messages, tools=[ADD], max_completion_tokens=20).choices[0].message.content
        == "They are 5 and 9."
    )


@usage("tools, parallel_tool_calls=False")
def _(endpoint: Endpoint) -> None:
    messages = [{"role": "user", "content": TWO_SUMS}]
    reply = chat(endpoint, messages, tools=[ADD], parallel_tool_calls=False, max_completion_tokens=120)
    assert len(reply.choices[0].message.tool_calls) == 1


@usage("tools, streamed call")
def _(endpoint: Endpoint) -> None:
    messages = [{"role": "user", "content": SUM}]
    name, arguments, reason = "", "", None
    for chunk in chat(endpoint, messages, tools=[ADD], stream=True, max_completion_tokens=60):
        for call in chunk.choices[0].delta.tool_calls or []:
            name += call.function.name or ""
            arguments += call.function.arguments or ""
        reason = chunk.choices[0].finish_reason or reason
    assert (name, json.loads(arguments), reason) == ("add", {"a": 2, "b": 3}, "tool_calls")


@usage("tools in the stream helper, its message sent back")
def _(endpoint: Endpoint) -> None:
    messages: list[Any] = [{"role": "user", "content": SUM}]
    with client(endpoint).chat.completions.stream(
        model=endpoint.model, messages=messages, tools=[ADD], max_completion_tokens=60
    ) as stream:
        for _event in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    [call] = message.tool_calls
    assert call.function.parsed_arguments == {"a": 2, "b": 3}
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "5"}]
    assert chat(endpoint, messages, tools=[ADD], max_completion_tokens=20).choices[0].message.content == "It is 5."


@usage("tool_choice required")
def _(endpoint: Endpoint) -> None:
    reply = chat(endpoint, tools=[SWITCH], tool_choice="required", max_completion_tokens=60).choices[0]
    assert reply.message.tool_calls[0].function.name == "switch"


@usage("tool_choice names a function")
def _(endpoint: Endpoint) -> None:
    chosen = {"type": "function", "function": {"name": "switch"}}
    reply = chat(endpoint, tools=[ADD, SWITCH], tool_choice=chosen, max_completion_tokens=60).choices[0]
    assert reply.message.tool_calls[0].function.name == "switch"


@usage("tool_choice required, streamed")
def _(endpoint: Endpoint) -> None:
    chunks = list(chat(endpoint, tools=[SWITCH], tool_choice="required", max_completion_tokens=60, stream=True))
    assert any(chunk.choices[0].delta.tool_calls for chunk in chunks)


@usage("pydantic_function_tool, parsed arguments")
def _(endpoint: Endpoint) -> None:
    class Switch(BaseModel):
        """Turns the light on or off."""

        is_on: bool
        room: Literal["hall", "attic"] = "hall"

    reply = client(endpoint).chat.completions.parse(
        model=endpoint.model,
        messages=HELLO,
        tools=[openai.pydantic_function_tool(Switch)],
        tool_choice="required",
        max_completion_tokens=120,
        temperature=0,
    )
    assert isinstance(reply.choices[0].message.tool_calls[0].function.parsed_arguments, Switch)


@usage("tool_choice none with tools")
def _(endpoint: Endpoint) -> None:
    assert chat(endpoint, tools=[ADD], tool_choice="none").choices[0].message.content


@usage("response_format json_object")
def _(endpoint: Endpoint) -> None:
    messages = [{"role": "user", "content": "Answer in JSON: a number"}]
    reply = chat(
        endpoint, messages, response_format={"type": "json_object"}, max_completion_tokens=200, temperature=0
    ).choices[0]
    if reply.finish_reason == "stop":
        assert isinstance(json.loads(reply.message.content), dict)
    else:
        assert reply.message.content.lstrip().startswith("{")


@usage("response_format json_schema by hand")
def _(endpoint: Endpoint) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "colour", "strict": True, "schema": schema}}
    reply = chat(endpoint, response_format=wanted, max_completion_tokens=60, temperature=0)
    assert json.loads(reply.choices[0].message.content)["colour"] in ("red", "blue")


@usage("parse of a pydantic model")
def _(endpoint: Endpoint) -> None:
    class Answer(BaseModel):
        is_friendly: bool

    reply = client(endpoint).chat.completions.parse(
        model=endpoint.model, messages=HELLO, response_format=Answer, max_completion_tokens=60, temperature=0
    )
    assert isinstance(reply.choices[0].message.parsed, Answer)


@usage("parse: defaults, lengths, enums, optional and nested models")
def _(endpoint: Endpoint) -> None:
    reply = client(endpoint).chat.completions.parse(
        model=endpoint.model, messages=HELLO, response_format=Painting, max_completion_tokens=200, temperature=0
    )
    assert isinstance(reply.choices[0].message.parsed, Painting)


@usage("parse: its message is sent back")
def _(endpoint: Endpoint) -> None:
    class Answer(BaseModel):
        is_friendly: bool

    message = (
        client(endpoint)
        .chat.completions.parse(
            model=endpoint.model, messages=HELLO, response_format=Answer, max_completion_tokens=60, temperature=0
        )
        .choices[0]
        .message
    )
    assert chat(endpoint, [*HELLO, message, {"role": "user", "content": "Sure?"}]).choices


@usage("stream helper with a pydantic response_format")
def _(endpoint: Endpoint) -> None:
    class Answer(BaseModel):
        is_friendly: bool

    with client(endpoint).chat.completions.stream(
        model=endpoint.model, messages=HELLO, response_format=Answer, max_completion_tokens=60, temperature=0
    ) as stream:
        for _event in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Answer)


run_all()
