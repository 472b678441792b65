"""Fields of requests, other routes, errors."""

from typing import Any

import openai
from pydantic import BaseModel
from shared import ADD, GREETING, HELLO, SUM, chat, client
from trial import Endpoint, raised, run_all, usage


@usage("logprobs")
def _(endpoint: Endpoint) -> None:
    tokens = chat(endpoint, logprobs=True, temperature=0).choices[0].logprobs.content
    assert tokens
    assert all(token.logprob <= 0 for token in tokens)


@usage("top_logprobs")
def _(endpoint: Endpoint) -> None:
    tokens = chat(endpoint, logprobs=True, top_logprobs=3, temperature=0).choices[0].logprobs.content
    assert all(len(token.top_logprobs) >= 3 for token in tokens)
    assert all(token.token == token.top_logprobs[0].token for token in tokens)


@usage("logprobs in a stream")
def _(endpoint: Endpoint) -> None:
    chunks = list(chat(endpoint, logprobs=True, temperature=0, stream=True))
    assert any(chunk.choices[0].logprobs and chunk.choices[0].logprobs.content for chunk in chunks)


@usage("n=3")
def _(endpoint: Endpoint) -> None:
    assert [choice.index for choice in chat(endpoint, n=3, max_completion_tokens=4).choices] == [0, 1, 2]


@usage("stop, a text and a list")
def _(endpoint: Endpoint) -> None:
    story = [{"role": "user", "content": "Count. [[one, two, three, four]]"}]
    for stop in (" three", [" three", "four"]):
        choice = chat(endpoint, story, stop=stop, max_completion_tokens=20).choices[0]
        assert (choice.message.content, choice.finish_reason) == ("one, two,", "stop")


@usage("seed gives the same reply")
def _(endpoint: Endpoint) -> None:
    first, second = (chat(endpoint, seed=7, temperature=1).choices[0].message.content for _ in range(2))
    assert first == second


@usage("temperature 0, top_p, penalties")
def _(endpoint: Endpoint) -> None:
    assert chat(endpoint, temperature=0).choices
    assert chat(endpoint, top_p=0.9, presence_penalty=0.5, frequency_penalty=0.5).choices


@usage("logit_bias")
def _(endpoint: Endpoint) -> None:
    assert chat(endpoint, logit_bias={"260": -100}).choices


@usage("max_tokens, the older name")
def _(endpoint: Endpoint) -> None:
    reply = client(endpoint).chat.completions.create(model=endpoint.model, messages=HELLO, max_tokens=3)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 3


@usage("user, metadata, store=False")
def _(endpoint: Endpoint) -> None:
    assert chat(endpoint, user="u-1", metadata={"run": "1"}, store=False).choices


@usage("service_tier, safety_identifier, prompt_cache_key")
def _(endpoint: Endpoint) -> None:
    fields = {"service_tier": "auto", "safety_identifier": "s", "prompt_cache_key": "k"}
    assert chat(endpoint, **fields).choices


@usage("verbosity, prediction")
def _(endpoint: Endpoint) -> None:
    assert chat(endpoint, verbosity="low").choices
    assert chat(endpoint, prediction={"type": "content", "content": "Hello"}).choices


@usage("extra_body with fields of other servers: top_k, min_p, repetition_penalty")
def _(endpoint: Endpoint) -> None:
    assert chat(endpoint, extra_body={"top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1}).choices


@usage("extra_headers, extra_query")
def _(endpoint: Endpoint) -> None:
    raw = client(endpoint).chat.completions.with_raw_response.create(
        model=endpoint.model,
        messages=HELLO,
        max_completion_tokens=2,
        extra_headers={"X-Request-Id": "mine"},
        extra_query={"trace": "1"},
    )
    assert raw.headers["x-request-id"] == "mine"


@usage("timeout: APITimeoutError")
def _(endpoint: Endpoint) -> None:
    hasty = client(endpoint, timeout=openai.Timeout(30, read=0.05)).chat.completions
    asked = {"model": endpoint.model, "messages": HELLO, "max_completion_tokens": 400}
    raised(openai.APITimeoutError, lambda: hasty.create(**asked))


@usage("unknown model: NotFoundError")
def _(endpoint: Endpoint) -> None:
    error = raised(
        openai.NotFoundError, lambda: client(endpoint).chat.completions.create(model="nobody", messages=HELLO)
    )
    assert error.code == "model_not_found"


@usage("bad value: BadRequestError with its param")
def _(endpoint: Endpoint) -> None:
    assert raised(openai.BadRequestError, lambda: chat(endpoint, temperature=9)).param == "temperature"


@usage("models.list and models.retrieve")
def _(endpoint: Endpoint) -> None:
    assert endpoint.model in [model.id for model in client(endpoint).models.list()]
    assert client(endpoint).models.retrieve(endpoint.model).object == "model"


@usage("completions.create")
def _(endpoint: Endpoint) -> None:
    reply = client(endpoint).completions.create(model=endpoint.model, prompt="Once upon", max_tokens=5)
    assert reply.choices[0].text


@usage("completions: several prompts, n, stream")
def _(endpoint: Endpoint) -> None:
    asking = client(endpoint)
    two = asking.completions.create(model=endpoint.model, prompt=["One", "Two"], n=2, max_tokens=3)
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3]
    stream = asking.completions.create(model=endpoint.model, prompt="One", max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream)


@usage("completions: echo and logprobs of the prompt")
def _(endpoint: Endpoint) -> None:
    reply = client(endpoint).completions.create(
        model=endpoint.model, prompt="The cat sat", max_tokens=1, echo=True, logprobs=1, temperature=0
    )
    found = reply.choices[0].logprobs
    assert reply.choices[0].text.startswith("The cat sat")
    assert found.token_logprobs[0] is None
    assert all(value <= 0 for value in found.token_logprobs[1:])


@usage("completions: suffix")
def _(endpoint: Endpoint) -> None:
    assert client(endpoint).completions.create(
        model=endpoint.model, prompt="def f(x):", suffix="return y", max_tokens=3
    )


@usage("embeddings.create")
def _(endpoint: Endpoint) -> None:
    found = client(endpoint).embeddings.create(model=endpoint.model, input=["a cat", "a dog"])
    assert len(found.data) == 2
    assert len(found.data[0].embedding) == len(found.data[1].embedding) > 100


@usage("responses.create")
def _(endpoint: Endpoint) -> None:
    reply = client(endpoint).responses.create(
        model=endpoint.model, instructions="Be brief.", input="Hello", max_output_tokens=16
    )
    assert reply.output_text
    assert reply.usage.total_tokens > 0


@usage("responses.create stream")
def _(endpoint: Endpoint) -> None:
    events = list(
        client(endpoint).responses.create(model=endpoint.model, input="Hello", stream=True, max_output_tokens=16)
    )
    assert events[0].type == "response.created"
    assert any(event.type == "response.output_text.delta" for event in events)
    assert events[-1].type in ("response.completed", "response.incomplete")


@usage("responses.stream helper")
def _(endpoint: Endpoint) -> None:
    said = GREETING[0]["content"]
    with client(endpoint).responses.stream(model=endpoint.model, input=said, max_output_tokens=16) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == stream.get_final_response().output_text


@usage("responses: the output is sent back")
def _(endpoint: Endpoint) -> None:
    asking = client(endpoint)
    said: list[Any] = [{"role": "user", "content": "Hello"}]
    reply = asking.responses.create(model=endpoint.model, input=said, max_output_tokens=16)
    said += [*reply.output, {"role": "user", "content": "And then?"}]
    assert asking.responses.create(model=endpoint.model, input=said, max_output_tokens=16).output_text


@usage("responses: function loop")
def _(endpoint: Endpoint) -> None:
    asking = client(endpoint)
    tool: Any = {"type": "function", **ADD["function"]}
    said: list[Any] = [{"role": "user", "content": SUM}]
    reply = asking.responses.create(model=endpoint.model, input=said, tools=[tool], max_output_tokens=60)
    [call] = [item for item in reply.output if item.type == "function_call"]
    said += [*reply.output, {"type": "function_call_output", "call_id": call.call_id, "output": "5"}]
    reply = asking.responses.create(model=endpoint.model, input=said, tools=[tool], max_output_tokens=60)
    assert reply.output_text == "It is 5."


@usage("responses.parse of a pydantic model")
def _(endpoint: Endpoint) -> None:
    class Answer(BaseModel):
        is_friendly: bool

    reply = client(endpoint).responses.parse(
        model=endpoint.model, input="Hello", text_format=Answer, max_output_tokens=60, temperature=0
    )
    assert isinstance(reply.output_parsed, Answer)


run_all()
