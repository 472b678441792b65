"""LiteLLM, with our endpoint as a provider `openai/` or `hosted_vllm/`."""

import json
from typing import Any, Literal

import litellm
from pydantic import BaseModel
from trial import Endpoint, raised, run_all, usage

HELLO: list[Any] = [{"role": "user", "content": "Hello, who are you?"}]
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "The sum of two whole numbers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
SUM = '2 and 3 together? [[add({"a": 2, "b": 3}) => It is 5.]]'


class Mood(BaseModel):
    is_friendly: bool
    tone: Literal["warm", "cool"] | None = None


def asked(endpoint: Endpoint, provider: str = "openai", **fields: Any) -> dict[str, Any]:
    told = {"model": f"{provider}/{endpoint.model}", "api_base": endpoint.url, "api_key": endpoint.key}
    return {**told, "messages": HELLO, "max_tokens": 5, "num_retries": 0, **fields}


@usage("completion")
def _(endpoint: Endpoint) -> None:
    reply = litellm.completion(**asked(endpoint))
    assert reply.choices[0].message.content
    assert reply.usage.completion_tokens


@usage("completion, provider hosted_vllm")
def _(endpoint: Endpoint) -> None:
    assert litellm.completion(**asked(endpoint, "hosted_vllm")).choices[0].message.content


@usage("completion, stream, put together by stream_chunk_builder")
def _(endpoint: Endpoint) -> None:
    chunks = list(litellm.completion(**asked(endpoint, stream=True)))
    assert litellm.stream_chunk_builder(chunks, messages=HELLO).choices[0].message.content


@usage("completion, stream with usage")
def _(endpoint: Endpoint) -> None:
    chunks = list(litellm.completion(**asked(endpoint, stream=True, stream_options={"include_usage": True})))
    assert any(getattr(chunk, "usage", None) for chunk in chunks)


@usage("acompletion")
async def _(endpoint: Endpoint) -> None:
    assert (await litellm.acompletion(**asked(endpoint))).choices[0].message.content


@usage("acompletion, stream")
async def _(endpoint: Endpoint) -> None:
    stream = await litellm.acompletion(**asked(endpoint, stream=True))
    assert [chunk async for chunk in stream]


@usage("the message is sent back")
def _(endpoint: Endpoint) -> None:
    first = litellm.completion(**asked(endpoint)).choices[0].message
    assert litellm.completion(**asked(endpoint, messages=[*HELLO, first, *HELLO])).choices


@usage("message.model_dump() is sent back")
def _(endpoint: Endpoint) -> None:
    first = litellm.completion(**asked(endpoint)).choices[0].message.model_dump()
    assert litellm.completion(**asked(endpoint, messages=[*HELLO, first, *HELLO])).choices


@usage("tools: loop, the tool's message with a name")
def _(endpoint: Endpoint) -> None:
    messages: list[Any] = [{"role": "user", "content": SUM}]
    message = litellm.completion(**asked(endpoint, messages=messages, tools=[ADD], max_tokens=60)).choices[0].message
    [call] = message.tool_calls
    assert json.loads(call.function.arguments) == {"a": 2, "b": 3}
    messages += [message, {"role": "tool", "tool_call_id": call.id, "name": "add", "content": "5"}]
    reply = litellm.completion(**asked(endpoint, messages=messages, tools=[ADD], max_tokens=20))
    assert reply.choices[0].message.content == "It is 5."


@usage("tools: streamed call")
def _(endpoint: Endpoint) -> None:
    messages = [{"role": "user", "content": SUM}]
    chunks = list(litellm.completion(**asked(endpoint, messages=messages, tools=[ADD], max_tokens=60, stream=True)))
    [call] = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"a": 2, "b": 3}


@usage("response_format: a pydantic model")
def _(endpoint: Endpoint) -> None:
    reply = litellm.completion(**asked(endpoint, response_format=Mood, max_tokens=80, temperature=0))
    assert Mood.model_validate_json(reply.choices[0].message.content)


@usage("response_format: json_object")
def _(endpoint: Endpoint) -> None:
    wanted = {"type": "json_object"}
    reply = litellm.completion(**asked(endpoint, response_format=wanted, max_tokens=40, temperature=0))
    assert reply.choices[0].message.content.lstrip().startswith("{")


@usage("n, stop, seed, top_p, penalties")
def _(endpoint: Endpoint) -> None:
    fields = {"n": 2, "stop": ["\n\n"], "seed": 3, "top_p": 0.9, "presence_penalty": 0.1, "frequency_penalty": 0.1}
    assert len(litellm.completion(**asked(endpoint, **fields)).choices) == 2


@usage("logprobs")
def _(endpoint: Endpoint) -> None:
    assert litellm.completion(**asked(endpoint, logprobs=True, temperature=0)).choices[0].logprobs.content


@usage("extra fields: top_k, min_p")
def _(endpoint: Endpoint) -> None:
    assert litellm.completion(**asked(endpoint, "hosted_vllm", top_k=10, min_p=0.01)).choices


@usage("user, metadata")
def _(endpoint: Endpoint) -> None:
    assert litellm.completion(**asked(endpoint, user="bob", metadata={"run": "1"})).choices


@usage("text_completion")
def _(endpoint: Endpoint) -> None:
    fields = asked(endpoint, "text-completion-openai", prompt="Once upon")
    fields.pop("messages")
    assert litellm.text_completion(**fields).choices[0].text


@usage("embedding")
def _(endpoint: Endpoint) -> None:
    reply = litellm.embedding(
        model=f"openai/{endpoint.model}", input=["a cat", "a dog"], api_base=endpoint.url, api_key=endpoint.key
    )
    assert len(reply.data) == 2


@usage("responses")
def _(endpoint: Endpoint) -> None:
    reply = litellm.responses(
        model=f"openai/{endpoint.model}",
        input="Hello",
        max_output_tokens=16,
        api_base=endpoint.url,
        api_key=endpoint.key,
    )
    assert reply.output


@usage("Router over two names of one endpoint")
def _(endpoint: Endpoint) -> None:
    fields = asked(endpoint)
    named = {key: fields[key] for key in ("model", "api_base", "api_key")}
    router = litellm.Router([{"model_name": "ours", "litellm_params": named} for _ in range(2)])
    assert router.completion("ours", messages=HELLO, max_tokens=4).choices[0].message.content


@usage("an unknown model is a NotFoundError")
def _(endpoint: Endpoint) -> None:
    raised(litellm.NotFoundError, lambda: litellm.completion(**asked(endpoint, model="openai/nobody")))


@usage("too long a prompt is a ContextWindowExceededError")
def _(endpoint: Endpoint) -> None:
    long = [{"role": "user", "content": "word " * 20_000}]
    raised(litellm.ContextWindowExceededError, lambda: litellm.completion(**asked(endpoint, messages=long)))


run_all()
