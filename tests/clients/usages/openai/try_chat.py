"""Chats, whole and streamed; replies are sent back as history."""

import asyncio
import json

import openai
from shared import GREETING, HELLO, chat, client, text_of
from trial import Endpoint, run_all, usage


@usage("chat.completions.create")
def _(endpoint: Endpoint) -> None:
    reply = chat(endpoint)
    assert reply.choices[0].message.content
    assert reply.choices[0].message.role == "assistant"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.object == "chat.completion"


@usage("stream=True")
def _(endpoint: Endpoint) -> None:
    chunks = list(chat(endpoint, stream=True))
    assert text_of(chunks)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


@usage("stream_options include_usage")
def _(endpoint: Endpoint) -> None:
    *_, last = chat(endpoint, stream=True, stream_options={"include_usage": True})
    assert not last.choices
    assert last.usage.completion_tokens > 0


@usage("chat.completions.stream helper")
def _(endpoint: Endpoint) -> None:
    with client(endpoint).chat.completions.stream(model=endpoint.model, messages=GREETING) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        assert text == stream.get_final_completion().choices[0].message.content


@usage("AsyncOpenAI, five at once")
async def _(endpoint: Endpoint) -> None:
    async with openai.AsyncOpenAI(base_url=endpoint.url, api_key=endpoint.key, max_retries=0) as asking:
        replies = await asyncio.gather(
            *(
                asking.chat.completions.create(model=endpoint.model, messages=HELLO, max_completion_tokens=6)
                for _ in range(5)
            )
        )
    assert all(reply.choices[0].message.content for reply in replies)


@usage("AsyncOpenAI stream")
async def _(endpoint: Endpoint) -> None:
    async with openai.AsyncOpenAI(base_url=endpoint.url, api_key=endpoint.key, max_retries=0) as asking:
        stream = await asking.chat.completions.create(
            model=endpoint.model, messages=HELLO, max_completion_tokens=6, stream=True
        )
        assert [chunk async for chunk in stream]


@usage("AsyncOpenAI closes a stream early")
async def _(endpoint: Endpoint) -> None:
    async with openai.AsyncOpenAI(base_url=endpoint.url, api_key=endpoint.key, max_retries=0) as asking:
        stream = await asking.chat.completions.create(model=endpoint.model, messages=HELLO, stream=True)
        await anext(aiter(stream))
        await stream.close()
        assert (await asking.models.list()).data


@usage("with_raw_response")
def _(endpoint: Endpoint) -> None:
    raw = client(endpoint).chat.completions.with_raw_response.create(
        model=endpoint.model, messages=HELLO, max_completion_tokens=4
    )
    assert raw.headers["x-request-id"]
    assert raw.parse().choices


@usage("with_streaming_response, lines")
def _(endpoint: Endpoint) -> None:
    with client(endpoint).chat.completions.with_streaming_response.create(
        model=endpoint.model, messages=HELLO, max_completion_tokens=4
    ) as answer:
        assert json.loads("".join(answer.iter_lines()))["choices"]


@usage("_request_id of an answer")
def _(endpoint: Endpoint) -> None:
    assert chat(endpoint)._request_id


@usage("the message object is sent back")
def _(endpoint: Endpoint) -> None:
    first = chat(endpoint).choices[0].message
    assert chat(endpoint, [*HELLO, first, {"role": "user", "content": "And then?"}]).choices[0].message.content


@usage("message.model_dump() is sent back")
def _(endpoint: Endpoint) -> None:
    first = chat(endpoint).choices[0].message.model_dump()
    assert chat(endpoint, [*HELLO, first, {"role": "user", "content": "And then?"}]).choices


@usage("message.to_dict() is sent back")
def _(endpoint: Endpoint) -> None:
    first = chat(endpoint).choices[0].message.to_dict()
    assert chat(endpoint, [*HELLO, first, {"role": "user", "content": "And then?"}]).choices


@usage("the message is filled in from a stream and sent back")
def _(endpoint: Endpoint) -> None:
    with client(endpoint).chat.completions.stream(model=endpoint.model, messages=GREETING) as stream:
        message = stream.get_final_completion().choices[0].message
    assert chat(endpoint, [*HELLO, message, {"role": "user", "content": "And then?"}]).choices


@usage("system and user")
def _(endpoint: Endpoint) -> None:
    assert chat(endpoint, [{"role": "system", "content": "Be brief."}, *HELLO]).choices


@usage("role developer")
def _(endpoint: Endpoint) -> None:
    assert chat(endpoint, [{"role": "developer", "content": "Be brief."}, *HELLO]).choices


@usage("two system messages")
def _(endpoint: Endpoint) -> None:
    system = [{"role": "system", "content": "Be brief."}, {"role": "system", "content": "Be kind."}]
    assert chat(endpoint, [*system, *HELLO]).choices


@usage("a system message after a user's")
def _(endpoint: Endpoint) -> None:
    assert chat(endpoint, [*HELLO, {"role": "system", "content": "Now be brief."}]).choices


@usage("two user messages in a row")
def _(endpoint: Endpoint) -> None:
    assert chat(endpoint, [*HELLO, *HELLO]).choices


@usage("content as text parts")
def _(endpoint: Endpoint) -> None:
    parts = [{"type": "text", "text": "Hello,"}, {"type": "text", "text": "who are you?"}]
    assert chat(endpoint, [{"role": "user", "content": parts}]).choices


@usage("name of a user")
def _(endpoint: Endpoint) -> None:
    assert chat(endpoint, [{"role": "user", "name": "bob", "content": "Hi"}]).choices


@usage("an assistant turn with empty content")
def _(endpoint: Endpoint) -> None:
    assert chat(endpoint, [*HELLO, {"role": "assistant", "content": ""}, *HELLO]).choices


run_all()
