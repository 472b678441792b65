"""langchain-openai's ChatOpenAI, alone and in agents on LangGraph."""

from typing import Annotated, Any, Literal, TypedDict

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import BaseModel, ConfigDict, Field
from trial import Endpoint, run_all, usage

SUM = '2 and 3 together? [[add({"a": 2, "b": 3}) => It is 5.]]'
TWO_SUMS = 'Both? [[add({"a": 2, "b": 3}) & add({"a": 4, "b": 5}) => They are 5 and 9.]]'


class Mood(BaseModel):
    """How somebody feels."""

    model_config = ConfigDict(extra="forbid")
    is_friendly: bool = Field(description="whether they like us")
    tone: Literal["warm", "cool"] = "warm"


@tool
def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


def chat(endpoint: Endpoint, **fields: Any) -> ChatOpenAI:
    told = {"max_tokens": 6, "max_retries": 0, "timeout": 60, **fields}
    return ChatOpenAI(model=endpoint.model, base_url=endpoint.url, api_key=endpoint.key, **told)


def able(endpoint: Endpoint) -> ChatOpenAI:
    return chat(endpoint, max_tokens=120, temperature=0)


@usage("invoke")
def _(endpoint: Endpoint) -> None:
    reply = chat(endpoint).invoke("Hello")
    assert reply.content
    assert reply.usage_metadata["total_tokens"]


@usage("ainvoke")
async def _(endpoint: Endpoint) -> None:
    assert (await chat(endpoint).ainvoke([("system", "Be brief."), ("human", "Hello")])).content


@usage("stream, with usage")
def _(endpoint: Endpoint) -> None:
    whole: Any = None
    for chunk in chat(endpoint, stream_usage=True).stream("Hello"):
        whole = chunk if whole is None else whole + chunk
    assert whole.content
    assert whole.usage_metadata


@usage("astream_events")
async def _(endpoint: Endpoint) -> None:
    events = [event["event"] async for event in chat(endpoint).astream_events("Hello")]
    assert "on_chat_model_stream" in events


@usage("batch")
def _(endpoint: Endpoint) -> None:
    assert len(chat(endpoint).batch(["One", "Two", "Three"])) == 3


@usage("prompt | model | parser")
def _(endpoint: Endpoint) -> None:
    chain = (
        ChatPromptTemplate([("system", "You are {who}."), ("human", "{said}")]) | chat(endpoint) | StrOutputParser()
    )
    assert chain.invoke({"who": "brief", "said": "Hello"})


@usage("history: system, human, ai, human")
def _(endpoint: Endpoint) -> None:
    asked = chat(endpoint)
    said: list[Any] = [SystemMessage("Be brief."), HumanMessage("Hello")]
    said += [asked.invoke(said), HumanMessage("And then?")]
    assert asked.invoke(said).content


@usage("messages with names, two human turns in a row")
def _(endpoint: Endpoint) -> None:
    said = [HumanMessage("I am Ada", name="ada"), HumanMessage("I am Bob", name="bob")]
    assert chat(endpoint).invoke(said).content


@usage("bind_tools: call, ToolMessage, answer, further question")
def _(endpoint: Endpoint) -> None:
    asked = able(endpoint).bind_tools([add])
    said: list[Any] = [HumanMessage(SUM)]
    reply = asked.invoke(said)
    [call] = reply.tool_calls
    assert call["args"] == {"a": 2, "b": 3}
    said += [reply, add.invoke(call)]
    assert isinstance(said[-1], ToolMessage)
    answer = asked.invoke(said)
    assert answer.content == "It is 5."
    assert chat(endpoint).invoke([*said, answer, HumanMessage("Sure?")]).content


@usage("bind_tools: streamed call chunks")
def _(endpoint: Endpoint) -> None:
    whole: Any = None
    for chunk in able(endpoint).bind_tools([add]).stream(SUM):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls[0]["args"] == {"a": 2, "b": 3}


@usage("bind_tools: tool_choice any, strict")
def _(endpoint: Endpoint) -> None:
    @tool
    def switch(is_on: bool) -> str:
        """Turn the light on or off."""
        return "done"

    reply = able(endpoint).bind_tools([switch], tool_choice="any", strict=True).invoke("Hello")
    assert reply.tool_calls[0]["name"] == "switch"


@usage("with_structured_output: json_schema (the default)")
def _(endpoint: Endpoint) -> None:
    assert isinstance(able(endpoint).with_structured_output(Mood).invoke("Hello"), Mood)


@usage("with_structured_output: function_calling")
def _(endpoint: Endpoint) -> None:
    asked = able(endpoint).with_structured_output(Mood, method="function_calling")
    assert isinstance(asked.invoke("Hello"), Mood)


@usage("with_structured_output: json_mode, include_raw")
def _(endpoint: Endpoint) -> None:
    asked = able(endpoint).with_structured_output(Mood, method="json_mode", include_raw=True)
    assert asked.invoke('In JSON. [[{"is_friendly": true}]]')["parsed"] == Mood(is_friendly=True)


@usage("with_structured_output: a TypedDict")
def _(endpoint: Endpoint) -> None:
    class Told(TypedDict):
        """What is told."""

        is_true: Annotated[bool, ..., "whether it is"]

    assert "is_true" in able(endpoint).with_structured_output(Told).invoke('Hello [[{"is_true": true}]]')


@usage("logprobs, n, stop, seed, penalties")
def _(endpoint: Endpoint) -> None:
    reply = chat(endpoint, logprobs=True, temperature=0).invoke("Hello")
    assert reply.response_metadata["logprobs"]["content"]
    fields = {"seed": 1, "stop": ["END"], "presence_penalty": 0.1, "frequency_penalty": 0.1, "n": 2}
    assert len(chat(endpoint, **fields).generate([[HumanMessage("Hello")]]).generations[0]) == 2


@usage("ChatOpenAI over responses")
def _(endpoint: Endpoint) -> None:
    assert chat(endpoint, use_responses_api=True, max_tokens=16).invoke("Hello").text


@usage("ChatOpenAI over responses: tool loop")
def _(endpoint: Endpoint) -> None:
    asked = chat(endpoint, use_responses_api=True, max_tokens=120).bind_tools([add])
    said: list[Any] = [HumanMessage(SUM)]
    reply = asked.invoke(said)
    said += [reply, add.invoke(reply.tool_calls[0])]
    assert asked.invoke(said).text == "It is 5."


@usage("OpenAI, the completions model")
def _(endpoint: Endpoint) -> None:
    asked = OpenAI(model=endpoint.model, base_url=endpoint.url, api_key=endpoint.key, max_tokens=5, max_retries=0)
    assert asked.invoke("Once upon")
    assert "".join(asked.stream("Once upon"))


@usage("OpenAIEmbeddings, texts as tokens of another tokenizer turned off")
def _(endpoint: Endpoint) -> None:
    asked = OpenAIEmbeddings(
        model=endpoint.model, base_url=endpoint.url, api_key=endpoint.key, check_embedding_ctx_length=False
    )
    assert len(asked.embed_documents(["a cat", "a dog"])) == 2


@usage("create_agent: tool loop")
def _(endpoint: Endpoint) -> None:
    agent = create_agent(able(endpoint), [add], system_prompt="Be brief.")
    said = agent.invoke({"messages": [{"role": "user", "content": SUM}]})["messages"]
    assert said[-1].content == "It is 5."


@usage("create_agent: two calls in a turn")
def _(endpoint: Endpoint) -> None:
    said = create_agent(able(endpoint), [add]).invoke({"messages": [("user", TWO_SUMS)]})["messages"]
    assert said[-1].content == "They are 5 and 9."


@usage("create_agent with a checkpointer: a further question after the tool")
def _(endpoint: Endpoint) -> None:
    agent = create_agent(able(endpoint), [add], checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    agent.invoke({"messages": [("user", SUM)]}, thread)
    said = agent.invoke({"messages": [("user", "Sure? [[Yes.]]")]}, thread)["messages"]
    assert said[-1].content == "Yes."


@usage("create_agent: streamed messages")
def _(endpoint: Endpoint) -> None:
    agent = create_agent(able(endpoint), [add])
    chunks = list(agent.stream({"messages": [("user", SUM)]}, stream_mode="messages"))
    assert "".join(chunk.text for chunk, _ in chunks if isinstance(chunk, AIMessage)) == "It is 5."


@usage("create_agent: response_format")
def _(endpoint: Endpoint) -> None:
    agent = create_agent(able(endpoint), [], response_format=Mood)
    assert isinstance(agent.invoke({"messages": [("user", "Hello")]})["structured_response"], Mood)


@usage("StateGraph with ToolNode and tools_condition")
def _(endpoint: Endpoint) -> None:
    class State(TypedDict):
        messages: Annotated[list[Any], add_messages]

    asked = able(endpoint).bind_tools([add])
    graph = StateGraph(State)
    graph.add_node("ask", lambda state: {"messages": [asked.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([add]))
    graph.add_edge(START, "ask")
    graph.add_conditional_edges("ask", tools_condition, {"tools": "tools", END: END})
    graph.add_edge("tools", "ask")
    assert graph.compile().invoke({"messages": [("user", SUM)]})["messages"][-1].content == "It is 5."


run_all()
