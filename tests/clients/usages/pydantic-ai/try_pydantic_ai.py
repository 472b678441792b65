"""Pydantic AI's agents, with its models for chat completions and for responses."""

from typing import Any

from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelRetry, ModelSettings, NativeOutput, PromptedOutput, RunContext, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from trial import Endpoint, run_all, usage

SUM = '2 and 3 together? [[add({"a": 2, "b": 3}) => It is 5.]]'
TWO_SUMS = 'Both? [[add({"a": 2, "b": 3}) & add({"a": 4, "b": 5}) => They are 5 and 9.]]'
SETTINGS = ModelSettings(max_tokens=6)
ROOM = ModelSettings(max_tokens=120, temperature=0)


class Mood(BaseModel):
    """How somebody feels."""

    is_friendly: bool = Field(description="whether they like us")
    strength: int = Field(default=1, ge=0, le=9)


def model(endpoint: Endpoint) -> OpenAIChatModel:
    return OpenAIChatModel(endpoint.model, provider=OpenAIProvider(base_url=endpoint.url, api_key=endpoint.key))


def adder(endpoint: Endpoint, **settings: Any) -> Agent[Any, Any]:
    agent: Agent[Any, Any] = Agent(model(endpoint), model_settings=ROOM, **settings)

    @agent.tool_plain
    def add(a: int, b: int) -> int:
        """The sum."""
        return a + b

    return agent


@usage("run_sync")
def _(endpoint: Endpoint) -> None:
    assert Agent(model(endpoint), model_settings=SETTINGS).run_sync("Hello").output


@usage("run, with instructions")
async def _(endpoint: Endpoint) -> None:
    agent = Agent(model(endpoint), instructions="Be brief.", model_settings=SETTINGS)
    reply = await agent.run("Hello")
    assert reply.output
    assert reply.usage


@usage("system_prompt, dynamic with dependencies")
async def _(endpoint: Endpoint) -> None:
    agent = Agent(model(endpoint), deps_type=str, system_prompt="Be brief.", model_settings=SETTINGS)

    @agent.system_prompt
    def named(context: RunContext[str]) -> str:
        return f"The user is {context.deps}."

    assert (await agent.run("Hello", deps="Ada")).output


@usage("run_stream, text deltas")
async def _(endpoint: Endpoint) -> None:
    async with Agent(model(endpoint), model_settings=SETTINGS).run_stream("Hello") as run:
        assert "".join([piece async for piece in run.stream_text(delta=True)])


@usage("message_history: a second turn")
def _(endpoint: Endpoint) -> None:
    agent = Agent(model(endpoint), instructions="Be brief.", model_settings=SETTINGS)
    first = agent.run_sync("Hello")
    assert agent.run_sync("And then?", message_history=first.new_messages()).output


@usage("tool loop")
def _(endpoint: Endpoint) -> None:
    assert adder(endpoint).run_sync(SUM).output == "It is 5."


@usage("tool loop, then a further question")
def _(endpoint: Endpoint) -> None:
    first = adder(endpoint).run_sync(SUM)
    agent = Agent(model(endpoint), model_settings=SETTINGS)
    assert agent.run_sync("Sure?", message_history=first.all_messages()).output


@usage("tool loop, two calls in a turn")
def _(endpoint: Endpoint) -> None:
    assert adder(endpoint).run_sync(TWO_SUMS).output == "They are 5 and 9."


@usage("tool loop, streamed")
async def _(endpoint: Endpoint) -> None:
    async with adder(endpoint).run_stream(SUM) as run:
        assert await run.get_output() == "It is 5."


@usage("a tool that asks to try again (ModelRetry)")
def _(endpoint: Endpoint) -> None:
    agent = Agent(model(endpoint), model_settings=ROOM)

    @agent.tool_plain(retries=2)
    def look(word: str) -> str:
        """Look it up."""
        if word == "a":
            raise ModelRetry("not that word")
        return "found"

    said = agent.run_sync('Look. [[look({"word": "a"}) => look({"word": "b"}) => Found.]]')
    assert said.output == "Found."


@usage("tool with optional arguments and a dataclass of dependencies")
def _(endpoint: Endpoint) -> None:
    agent = Agent(model(endpoint), deps_type=int, model_settings=ROOM)

    @agent.tool
    def scaled(context: RunContext[int], by: float = 2.0, unit: str | None = None) -> str:
        """Scale it."""
        return f"{context.deps * by} {unit}"

    assert agent.run_sync('Scale. [[scaled({"by": 3}) => Done.]]', deps=2).output == "Done."


@usage("output_type: a model, by a tool")
def _(endpoint: Endpoint) -> None:
    assert isinstance(Agent(model(endpoint), output_type=Mood, model_settings=ROOM).run_sync("Hello").output, Mood)


@usage("output_type: several ToolOutput")
def _(endpoint: Endpoint) -> None:
    kinds: Any = [ToolOutput(Mood, name="mood"), ToolOutput(bool, name="is_it")]
    assert Agent(model(endpoint), output_type=kinds, model_settings=ROOM).run_sync("Hello").output is not None


@usage("output_type: NativeOutput")
def _(endpoint: Endpoint) -> None:
    agent = Agent(model(endpoint), output_type=NativeOutput(Mood), model_settings=ROOM)
    assert isinstance(agent.run_sync("Hello").output, Mood)


@usage("output_type: PromptedOutput")
def _(endpoint: Endpoint) -> None:
    agent = Agent(model(endpoint), output_type=PromptedOutput(Mood), model_settings=ROOM)
    assert agent.run_sync('Hello [[{"is_friendly": true}]]').output == Mood(is_friendly=True)


@usage("output by a tool after a function's call")
def _(endpoint: Endpoint) -> None:
    said = adder(endpoint, output_type=Mood).run_sync(
        'Add. [[add({"a": 2, "b": 3}) => final_result({"is_friendly": true, "strength": 2})]]'
    )
    assert said.output == Mood(is_friendly=True, strength=2)


@usage("structured output, streamed")
async def _(endpoint: Endpoint) -> None:
    async with Agent(model(endpoint), output_type=NativeOutput(Mood), model_settings=ROOM).run_stream("Hi") as run:
        assert isinstance(await run.get_output(), Mood)


@usage("iter over an agent's nodes")
async def _(endpoint: Endpoint) -> None:
    async with adder(endpoint).iter(SUM) as run:
        assert len([node async for node in run]) >= 4


@usage("an agent that asks another one by a tool")
def _(endpoint: Endpoint) -> None:
    helper = Agent(model(endpoint), model_settings=SETTINGS)
    leader = Agent(model(endpoint), model_settings=ROOM)

    @leader.tool_plain
    async def ask(question: str) -> str:
        """Ask the helper."""
        return (await helper.run(question)).output

    assert leader.run_sync('Go. [[ask({"question": "Hello?"}) => Done.]]').output == "Done."


@usage("settings: temperature, top_p, seed, stop, penalties, parallel_tool_calls")
def _(endpoint: Endpoint) -> None:
    settings = ModelSettings(
        max_tokens=5, temperature=0.5, top_p=0.9, seed=1, stop_sequences=["END"], presence_penalty=0.1,
        frequency_penalty=0.1, timeout=60,
    )  # fmt: skip
    assert Agent(model(endpoint), model_settings=settings).run_sync("Hello").output


@usage("OpenAIResponsesModel: run and tool loop")
def _(endpoint: Endpoint) -> None:
    provider = OpenAIProvider(base_url=endpoint.url, api_key=endpoint.key)
    agent: Agent[Any, Any] = Agent(OpenAIResponsesModel(endpoint.model, provider=provider), model_settings=ROOM)

    @agent.tool_plain
    def add(a: int, b: int) -> int:
        """The sum."""
        return a + b

    assert agent.run_sync(SUM).output == "It is 5."


run_all()
