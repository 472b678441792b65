"""OpenAI's Agents SDK, with chat completions and with responses."""

from typing import Any

from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrailTripwireTriggered,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    SQLiteSession,
    function_tool,
    input_guardrail,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel
from trial import Endpoint, run_all, usage

SUM = '2 and 3 together? [[add({"a": 2, "b": 3}) => It is 5.]]'
SHORT = ModelSettings(max_tokens=16)
ROOM = ModelSettings(max_tokens=120, temperature=0)
set_tracing_disabled(True)


class Mood(BaseModel):
    is_friendly: bool


@function_tool
def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


def model(endpoint: Endpoint, kind: Any = OpenAIChatCompletionsModel) -> Any:
    asking = AsyncOpenAI(base_url=endpoint.url, api_key=endpoint.key, max_retries=0)
    return kind(model=endpoint.model, openai_client=asking)


def agent(
    endpoint: Endpoint, settings: ModelSettings = ROOM, kind: Any = OpenAIChatCompletionsModel, **more: Any
) -> Any:
    told = {"name": "Ada", "instructions": "Be brief.", **more}
    return Agent(model=model(endpoint, kind), model_settings=settings, **told)


@usage("chats: Runner.run")
async def _(endpoint: Endpoint) -> None:
    assert (await Runner.run(agent(endpoint, SHORT), "Hello")).final_output


@usage("chats: Runner.run_sync")
def _(endpoint: Endpoint) -> None:
    assert Runner.run_sync(agent(endpoint, SHORT), "Hello").final_output


@usage("chats: run_streamed, text deltas")
async def _(endpoint: Endpoint) -> None:
    run = Runner.run_streamed(agent(endpoint, SHORT), "Hello")
    events = [event async for event in run.stream_events()]
    assert any(
        event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent) for event in events
    )
    assert run.final_output


@usage("chats: tool loop")
async def _(endpoint: Endpoint) -> None:
    assert (await Runner.run(agent(endpoint, tools=[add]), SUM)).final_output == "It is 5."


@usage("chats: tool loop, streamed")
async def _(endpoint: Endpoint) -> None:
    run = Runner.run_streamed(agent(endpoint, tools=[add]), SUM)
    names = [event.name async for event in run.stream_events() if event.type == "run_item_stream_event"]
    assert {"tool_called", "tool_output"} <= set(names)
    assert run.final_output == "It is 5."


@usage("chats: to_input_list, a further question after the tool")
async def _(endpoint: Endpoint) -> None:
    first = await Runner.run(agent(endpoint, tools=[add]), SUM)
    said = [*first.to_input_list(), {"role": "user", "content": "Sure?"}]
    assert (await Runner.run(agent(endpoint, SHORT), said)).final_output


@usage("chats: output_type")
async def _(endpoint: Endpoint) -> None:
    assert isinstance((await Runner.run(agent(endpoint, output_type=Mood), "Hello")).final_output, Mood)


@usage("chats: a session remembers")
async def _(endpoint: Endpoint) -> None:
    session = SQLiteSession("one")
    asked = agent(endpoint, SHORT)
    await Runner.run(asked, "Hello", session=session)
    assert (await Runner.run(asked, "And then?", session=session)).final_output
    assert len(await session.get_items()) == 4


@usage("chats: handoff to another agent")
async def _(endpoint: Endpoint) -> None:
    other = agent(endpoint, name="Bob")
    lead = agent(endpoint, handoffs=[other])
    run = await Runner.run(lead, "Hand over. [[transfer_to_bob({}) => Bob here.]]")
    assert (run.last_agent.name, run.final_output) == ("Bob", "Bob here.")


@usage("chats: an agent as a tool")
async def _(endpoint: Endpoint) -> None:
    other = agent(endpoint, SHORT, name="Bob")
    lead = agent(endpoint, tools=[other.as_tool(tool_name="bob", tool_description="Ask Bob")])
    assert (await Runner.run(lead, 'Ask. [[bob({"input": "Hello?"}) => Done.]]')).final_output == "Done."


@usage("chats: input guardrail asks the endpoint first")
async def _(endpoint: Endpoint) -> None:
    judge = agent(endpoint, output_type=Mood)

    @input_guardrail
    async def always(context: Any, _agent: Any, said: Any) -> GuardrailFunctionOutput:
        verdict = (await Runner.run(judge, said, context=context.context)).final_output
        return GuardrailFunctionOutput(output_info=verdict, tripwire_triggered=True)

    try:
        await Runner.run(agent(endpoint, SHORT, input_guardrails=[always]), "Hello")
    except InputGuardrailTripwireTriggered:
        return
    raise AssertionError("not triggered")


@usage("chats: tool_choice required, then free")
async def _(endpoint: Endpoint) -> None:
    must = ModelSettings(max_tokens=120, temperature=0, tool_choice="required")
    assert (await Runner.run(agent(endpoint, must, tools=[add]), SUM)).final_output == "It is 5."


@usage("chats: parallel_tool_calls false, temperature, top_p, penalties, metadata")
async def _(endpoint: Endpoint) -> None:
    settings = ModelSettings(
        max_tokens=16, temperature=0.5, top_p=0.9, presence_penalty=0.1, frequency_penalty=0.1,
        parallel_tool_calls=False, metadata={"run": "1"}, include_usage=True, store=False,
    )  # fmt: skip
    assert (await Runner.run(agent(endpoint, settings, tools=[add]), "Hello")).final_output


@usage("chats: RunConfig with call_model_input_filter")
async def _(endpoint: Endpoint) -> None:
    config = RunConfig(call_model_input_filter=lambda data: data.model_data)
    assert (await Runner.run(agent(endpoint, SHORT), "Hello", run_config=config)).final_output


@usage("responses: Runner.run")
async def _(endpoint: Endpoint) -> None:
    assert (await Runner.run(agent(endpoint, ROOM, OpenAIResponsesModel), "Hi [[Good day!]]")).final_output


@usage("responses: run_streamed")
async def _(endpoint: Endpoint) -> None:
    run = Runner.run_streamed(agent(endpoint, ROOM, OpenAIResponsesModel), "Hello [[Good day to you!]]")
    assert [event async for event in run.stream_events()]
    assert run.final_output == "Good day to you!"


@usage("responses: tool loop and a further question")
async def _(endpoint: Endpoint) -> None:
    asked = agent(endpoint, ROOM, OpenAIResponsesModel, tools=[add])
    first = await Runner.run(asked, SUM)
    assert first.final_output == "It is 5."
    said = [*first.to_input_list(), {"role": "user", "content": "Sure? [[Yes.]]"}]
    assert (await Runner.run(asked, said)).final_output == "Yes."


@usage("responses: output_type")
async def _(endpoint: Endpoint) -> None:
    asked = agent(endpoint, ROOM, OpenAIResponsesModel, output_type=Mood)
    assert isinstance((await Runner.run(asked, "Hello")).final_output, Mood)


run_all()
