"""AutoGen's client for models, its assistants and its teams."""

from typing import Any, Literal

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination, TextMentionTermination
from autogen_agentchat.teams import RoundRobinGroupChat, SelectorGroupChat, Swarm
from autogen_core import CancellationToken
from autogen_core.models import AssistantMessage, CreateResult, SystemMessage, UserMessage
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient
from pydantic import BaseModel
from trial import Endpoint, run_all, usage

SUM = '2 and 3 together? [[add({"a": 2, "b": 3}) => It is 5.]]'


class Mood(BaseModel):
    is_friendly: bool
    tone: Literal["warm", "cool"]


async def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


def model(endpoint: Endpoint, **fields: Any) -> OpenAIChatCompletionClient:
    told: Any = {
        "vision": False, "function_calling": True, "json_output": True, "structured_output": True,
        "family": "unknown", "multiple_system_messages": True,
    }  # fmt: skip
    fields = {"max_tokens": 120, "temperature": 0, "max_retries": 0, **fields}
    return OpenAIChatCompletionClient(
        model=endpoint.model, base_url=endpoint.url, api_key=endpoint.key, model_info=told, **fields
    )


def short(endpoint: Endpoint) -> OpenAIChatCompletionClient:
    return model(endpoint, max_tokens=6)


@usage("model client: create")
async def _(endpoint: Endpoint) -> None:
    reply = await short(endpoint).create([UserMessage(content="Hello", source="user")])
    assert reply.content
    assert reply.usage.completion_tokens


@usage("model client: several system messages, a history")
async def _(endpoint: Endpoint) -> None:
    said = [
        SystemMessage(content="Be brief."),
        SystemMessage(content="Be kind."),
        UserMessage(content="Hello", source="ada"),
        AssistantMessage(content="Hi", source="bob"),
        UserMessage(content="And then?", source="ada"),
    ]
    assert (await short(endpoint).create(said)).content


@usage("model client: create_stream, with usage")
async def _(endpoint: Endpoint) -> None:
    said = [UserMessage(content="Hello", source="user")]
    parts = [part async for part in short(endpoint).create_stream(said, include_usage=True)]
    assert isinstance(parts[-1], CreateResult)
    assert parts[-1].usage.completion_tokens


@usage("model client: tools")
async def _(endpoint: Endpoint) -> None:
    tool = FunctionTool(add, description="The sum", strict=True)
    reply = await model(endpoint).create([UserMessage(content=SUM, source="user")], tools=[tool])
    assert reply.finish_reason == "function_calls"
    assert reply.content[0].name == "add"


@usage("model client: tool_choice required")
async def _(endpoint: Endpoint) -> None:
    async def switch(is_on: bool) -> str:
        """Turn it on or off."""
        return "done"

    tool = FunctionTool(switch, description="The light", strict=True)
    said = [UserMessage(content="Hello", source="user")]
    reply = await model(endpoint).create(said, tools=[tool], tool_choice="required")
    assert reply.content[0].name == "switch"


@usage("model client: json_output, a pydantic model")
async def _(endpoint: Endpoint) -> None:
    reply = await model(endpoint).create([UserMessage(content="Hello", source="user")], json_output=Mood)
    assert Mood.model_validate_json(reply.content)


@usage("model client: json_output true")
async def _(endpoint: Endpoint) -> None:
    said = [UserMessage(content="Answer in JSON.", source="user")]
    assert (await model(endpoint, max_tokens=30).create(said, json_output=True)).content.lstrip().startswith("{")


@usage("AssistantAgent: run")
async def _(endpoint: Endpoint) -> None:
    assert (await AssistantAgent("ada", model_client=short(endpoint)).run(task="Hello")).messages[-1].content


@usage("AssistantAgent: run_stream, model_client_stream")
async def _(endpoint: Endpoint) -> None:
    agent = AssistantAgent("ada", model_client=short(endpoint), model_client_stream=True)
    kinds = [getattr(event, "type", "") async for event in agent.run_stream(task="Hello")]
    assert "ModelClientStreamingChunkEvent" in kinds


@usage("AssistantAgent: tool loop, reflect_on_tool_use, a further question")
async def _(endpoint: Endpoint) -> None:
    agent = AssistantAgent("ada", model_client=model(endpoint), tools=[add], reflect_on_tool_use=True)
    assert (await agent.run(task=SUM)).messages[-1].content == "It is 5."
    assert (await agent.run(task="Sure? [[Yes.]]")).messages[-1].content == "Yes."


@usage("AssistantAgent: tool result as the reply")
async def _(endpoint: Endpoint) -> None:
    agent = AssistantAgent("ada", model_client=model(endpoint), tools=[add], reflect_on_tool_use=False)
    assert (await agent.run(task=SUM)).messages[-1].content == "5"


@usage("AssistantAgent: output_content_type")
async def _(endpoint: Endpoint) -> None:
    agent = AssistantAgent("ada", model_client=model(endpoint), output_content_type=Mood)
    assert isinstance((await agent.run(task="Hello")).messages[-1].content, Mood)


@usage("RoundRobinGroupChat of two")
async def _(endpoint: Endpoint) -> None:
    two = [AssistantAgent(name, model_client=short(endpoint)) for name in ("ada", "bob")]
    team = RoundRobinGroupChat(two, termination_condition=MaxMessageTermination(4))
    assert len((await team.run(task="Hello")).messages) == 4


@usage("SelectorGroupChat: the model chooses who speaks")
async def _(endpoint: Endpoint) -> None:
    two = [AssistantAgent(name, description=name, model_client=short(endpoint)) for name in ("ada", "bob")]
    ending = MaxMessageTermination(3) | TextMentionTermination("END")
    team = SelectorGroupChat(two, model_client=short(endpoint), termination_condition=ending)
    assert len((await team.run(task="Hello")).messages) == 3


@usage("Swarm: handoff")
async def _(endpoint: Endpoint) -> None:
    ada = AssistantAgent("ada", model_client=model(endpoint), handoffs=["bob"])
    bob = AssistantAgent("bob", model_client=short(endpoint))
    team = Swarm([ada, bob], termination_condition=MaxMessageTermination(5))
    said = (await team.run(task="Hand over. [[transfer_to_bob({})]]")).messages
    assert said[-1].source == "bob"


@usage("cancelled by its token")
async def _(endpoint: Endpoint) -> None:
    token = CancellationToken()
    stream = model(endpoint, max_tokens=300).create_stream(
        [UserMessage(content="Hello", source="user")], cancellation_token=token
    )
    await anext(stream)
    await stream.aclose()
    token.cancel()
    assert (await short(endpoint).create([UserMessage(content="Hello", source="user")])).content


run_all()
