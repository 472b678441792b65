"""Haystack's generator for OpenAI chats, in pipelines and agents."""

from typing import Any, Literal

from haystack import Document, Pipeline
from haystack.components.agents import Agent
from haystack.components.builders import ChatPromptBuilder
from haystack.components.embedders import OpenAIDocumentEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import tool
from haystack.utils import Secret
from pydantic import BaseModel
from trial import Endpoint, run_all, usage

SUM = '2 and 3 together? [[add({"a": 2, "b": 3}) => It is 5.]]'


@tool
def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


def generator(endpoint: Endpoint, **more: Any) -> OpenAIChatGenerator:
    fields = {"max_completion_tokens": 100, "temperature": 0, **more.pop("fields", {})}
    return OpenAIChatGenerator(
        api_key=Secret.from_token(endpoint.key), model=endpoint.model, api_base_url=endpoint.url, max_retries=0,
        generation_kwargs=fields, **more,
    )  # fmt: skip


def short(endpoint: Endpoint, **more: Any) -> OpenAIChatGenerator:
    return generator(endpoint, fields={"max_completion_tokens": 6}, **more)


@usage("run")
def _(endpoint: Endpoint) -> None:
    said = [ChatMessage.from_system("Be brief."), ChatMessage.from_user("Hello")]
    assert short(endpoint).run(said)["replies"][0].text


@usage("run_async")
async def _(endpoint: Endpoint) -> None:
    assert (await short(endpoint).run_async([ChatMessage.from_user("Hello")]))["replies"][0].text


@usage("streaming_callback")
def _(endpoint: Endpoint) -> None:
    pieces: list[str] = []
    reply = short(endpoint, streaming_callback=lambda chunk: pieces.append(chunk.content)).run(
        [ChatMessage.from_user("Hello")]
    )
    assert "".join(pieces) == reply["replies"][0].text


@usage("the reply is sent back, with a name of the user")
def _(endpoint: Endpoint) -> None:
    said = [ChatMessage.from_user("Hello", name="ada")]
    said += [*short(endpoint).run(said)["replies"], ChatMessage.from_user("And then?")]
    assert short(endpoint).run(said)["replies"][0].text


@usage("tools: a call, its result, a further question")
def _(endpoint: Endpoint) -> None:
    asked = generator(endpoint, tools=[add])
    said = [ChatMessage.from_user(SUM)]
    [reply] = asked.run(said)["replies"]
    [call] = reply.tool_calls
    said += [reply, ChatMessage.from_tool(str(add.invoke(**call.arguments)), origin=call)]
    [answer] = asked.run(said)["replies"]
    assert answer.text == "It is 5."
    assert short(endpoint).run([*said, answer, ChatMessage.from_user("Sure?")])["replies"][0].text


@usage("tools, streamed, tools_strict")
def _(endpoint: Endpoint) -> None:
    asked = generator(endpoint, tools=[add], tools_strict=True, streaming_callback=lambda chunk: None)
    assert asked.run([ChatMessage.from_user(SUM)])["replies"][0].tool_calls[0].arguments == {"a": 2, "b": 3}


@usage("response_format: a pydantic model")
def _(endpoint: Endpoint) -> None:
    class Mood(BaseModel):
        tone: Literal["warm", "cool"]

    asked = generator(endpoint, fields={"response_format": Mood})
    assert Mood.model_validate_json(asked.run([ChatMessage.from_user("Hello")])["replies"][0].text)


@usage("Pipeline with a ChatPromptBuilder")
def _(endpoint: Endpoint) -> None:
    pipeline = Pipeline()
    pipeline.add_component("prompt", ChatPromptBuilder([ChatMessage.from_user("Hello, {{who}}")], "*"))
    pipeline.add_component("model", short(endpoint))
    pipeline.connect("prompt.prompt", "model.messages")
    assert pipeline.run({"prompt": {"who": "Ada"}})["model"]["replies"][0].text


@usage("Agent: tool loop")
def _(endpoint: Endpoint) -> None:
    agent = Agent(chat_generator=generator(endpoint), tools=[add], system_prompt="Be brief.")
    assert agent.run([ChatMessage.from_user(SUM)])["last_message"].text == "It is 5."


@usage("OpenAIDocumentEmbedder")
def _(endpoint: Endpoint) -> None:
    asked = OpenAIDocumentEmbedder(
        api_key=Secret.from_token(endpoint.key), model=endpoint.model, api_base_url=endpoint.url, progress_bar=False
    )
    assert asked.run([Document(content="a cat")])["documents"][0].embedding


run_all()
