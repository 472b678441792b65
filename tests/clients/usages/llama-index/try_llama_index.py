"""LlamaIndex with its `OpenAILike` model."""

from typing import Any, Literal

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, ConfigDict
from trial import Endpoint, run_all, usage

SUM = '2 and 3 together? [[add({"a": 2, "b": 3}) => It is 5.]]'


class Mood(BaseModel):
    """How somebody feels."""

    model_config = ConfigDict(extra="forbid")
    is_friendly: bool
    tone: Literal["warm", "cool"]


def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


def model(endpoint: Endpoint, **fields: Any) -> OpenAILike:
    told: dict[str, Any] = {"is_chat_model": True, "is_function_calling_model": True, "max_tokens": 120, **fields}
    return OpenAILike(
        model=endpoint.model, api_base=endpoint.url, api_key=endpoint.key, max_retries=0, context_window=2048, **told
    )


def short(endpoint: Endpoint, **fields: Any) -> OpenAILike:
    return model(endpoint, max_tokens=6, **fields)


@usage("chat")
def _(endpoint: Endpoint) -> None:
    said = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Hello")]
    assert short(endpoint).chat(said).message.content


@usage("complete, of a chat model")
def _(endpoint: Endpoint) -> None:
    assert short(endpoint).complete("Hello").text


@usage("complete, of a completions model")
def _(endpoint: Endpoint) -> None:
    assert short(endpoint, is_chat_model=False).complete("Once upon").text


@usage("stream_chat")
def _(endpoint: Endpoint) -> None:
    *_, last = short(endpoint).stream_chat([ChatMessage(role="user", content="Hello")])
    assert last.message.content


@usage("stream_complete, of a completions model")
def _(endpoint: Endpoint) -> None:
    *_, last = short(endpoint, is_chat_model=False).stream_complete("Once upon")
    assert last.text


@usage("achat, astream_chat")
async def _(endpoint: Endpoint) -> None:
    said = [ChatMessage(role="user", content="Hello")]
    assert (await short(endpoint).achat(said)).message.content
    assert [part async for part in await short(endpoint).astream_chat(said)]


@usage("the message is sent back")
def _(endpoint: Endpoint) -> None:
    said = [ChatMessage(role="user", content="Hello")]
    said += [short(endpoint).chat(said).message, ChatMessage(role="user", content="And then?")]
    assert short(endpoint).chat(said).message.content


@usage("predict_and_call")
def _(endpoint: Endpoint) -> None:
    reply = model(endpoint).predict_and_call([FunctionTool.from_defaults(add)], SUM)
    assert str(reply) == "5"


@usage("chat_with_tools, the tool's answer, a further question")
def _(endpoint: Endpoint) -> None:
    asked = model(endpoint)
    tools = [FunctionTool.from_defaults(add)]
    said = [ChatMessage(role="user", content=SUM)]
    reply = asked.chat_with_tools(tools, chat_history=said)
    [call] = asked.get_tool_calls_from_response(reply)
    said += [reply.message, ChatMessage(role="tool", content="5", additional_kwargs={"tool_call_id": call.tool_id})]
    answer = asked.chat_with_tools(tools, chat_history=said).message
    assert answer.content == "It is 5."
    assert short(endpoint).chat([*said, answer, ChatMessage(role="user", content="Sure?")]).message.content


@usage("as_structured_llm, by a function")
def _(endpoint: Endpoint) -> None:
    asked = model(endpoint, temperature=0).as_structured_llm(Mood)
    assert isinstance(asked.chat([ChatMessage(role="user", content="Hello")]).raw, Mood)


@usage("structured_predict, should_use_structured_outputs")
def _(endpoint: Endpoint) -> None:
    asked = model(endpoint, temperature=0, should_use_structured_outputs=True)
    assert isinstance(asked.structured_predict(Mood, PromptTemplate("Hello {who}"), who="Ada"), Mood)


@usage("FunctionAgent: tool loop and a further question")
async def _(endpoint: Endpoint) -> None:
    agent = FunctionAgent(tools=[add], llm=model(endpoint), system_prompt="Be brief.", streaming=False)
    context = Context(agent)
    assert str(await agent.run(SUM, ctx=context)) == "It is 5."
    assert str(await agent.run("Sure? [[Yes.]]", ctx=context)) == "Yes."


@usage("FunctionAgent, streaming")
async def _(endpoint: Endpoint) -> None:
    agent = FunctionAgent(tools=[add], llm=model(endpoint))
    assert str(await agent.run(SUM)) == "It is 5."


@usage("ReActAgent: tools by text")
async def _(endpoint: Endpoint) -> None:
    agent = ReActAgent(tools=[add], llm=model(endpoint))
    assert str(await agent.run("Hello [[Thought: I know it.\nAnswer: Good day.]]")) == "Good day."


@usage("AgentWorkflow with a handoff")
async def _(endpoint: Endpoint) -> None:
    ada = FunctionAgent(name="ada", description="first", llm=model(endpoint), can_handoff_to=["bob"])
    bob = FunctionAgent(name="bob", description="second", llm=model(endpoint))
    team = AgentWorkflow(agents=[ada, bob], root_agent="ada")
    script = 'Go. [[handoff({"to_agent": "bob", "reason": "his"}) => Bob here.]]'
    assert str(await team.run(script)) == "Bob here."


run_all()
