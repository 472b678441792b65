"""Hugging Face's smolagents with its `OpenAIModel`."""

from typing import Any

from smolagents import ChatMessage, CodeAgent, OpenAIModel, ToolCallingAgent, tool
from trial import Endpoint, run_all, usage

HELLO: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]


@tool
def add(a: int, b: int) -> int:
    """The sum of two numbers.

    Args:
        a: one
        b: the other
    """
    return a + b


def model(endpoint: Endpoint, **fields: Any) -> OpenAIModel:
    return OpenAIModel(endpoint.model, api_base=endpoint.url, api_key=endpoint.key, **{"max_tokens": 100, **fields})


@usage("model: generate")
def _(endpoint: Endpoint) -> None:
    reply = model(endpoint, max_tokens=6).generate(HELLO)
    assert isinstance(reply, ChatMessage)
    assert reply.content
    assert reply.token_usage.output_tokens


@usage("model: generate_stream")
def _(endpoint: Endpoint) -> None:
    assert "".join(part.content or "" for part in model(endpoint, max_tokens=6).generate_stream(HELLO))


@usage("model: stop_sequences")
def _(endpoint: Endpoint) -> None:
    said = [{"role": "user", "content": [{"type": "text", "text": "Count [[one, two, three]]"}]}]
    assert "three" not in model(endpoint).generate(said, stop_sequences=["three"]).content


@usage("model: response_format with a JSON schema")
def _(endpoint: Endpoint) -> None:
    schema = {
        "type": "object",
        "properties": {"is_on": {"type": "boolean"}},
        "required": ["is_on"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "light", "schema": schema}}
    assert "is_on" in model(endpoint, temperature=0).generate(HELLO, response_format=wanted).content


@usage("model: tools_to_call_from (a required call)")
def _(endpoint: Endpoint) -> None:
    @tool
    def switch(is_on: bool) -> str:
        """Turns the light on or off.

        Args:
            is_on: whether it shall be on
        """
        return "done"

    reply = model(endpoint, temperature=0).generate(HELLO, tools_to_call_from=[switch])
    assert reply.tool_calls[0].function.name == "switch"


@usage("ToolCallingAgent: loop to its final answer")
def _(endpoint: Endpoint) -> None:
    agent = ToolCallingAgent(tools=[add], model=model(endpoint), max_steps=4, verbosity_level=0)
    assert str(agent.run('Add. [[add({"a": 2, "b": 3}) => final_answer({"answer": "5"})]]')) == "5"


@usage("ToolCallingAgent: a further question (reset=False)")
def _(endpoint: Endpoint) -> None:
    agent = ToolCallingAgent(tools=[add], model=model(endpoint), max_steps=4, verbosity_level=0)
    agent.run('Add. [[add({"a": 2, "b": 3}) => final_answer({"answer": "5"})]]')
    assert str(agent.run('Sure? [[final_answer({"answer": "yes"})]]', reset=False)) == "yes"


@usage("ToolCallingAgent: stream_outputs")
def _(endpoint: Endpoint) -> None:
    agent = ToolCallingAgent(tools=[add], model=model(endpoint), max_steps=4, verbosity_level=0, stream_outputs=True)
    assert str(agent.run('Add. [[add({"a": 2, "b": 3}) => final_answer({"answer": "5"})]]')) == "5"


@usage("CodeAgent: code in its own tags")
def _(endpoint: Endpoint) -> None:
    agent = CodeAgent(tools=[add], model=model(endpoint), max_steps=2, verbosity_level=0)
    assert agent.run("Add. [[Thought: easy.\n<code>\nfinal_answer(add(2, 3))\n</code>]]") == 5


@usage("CodeAgent: use_structured_outputs_internally")
def _(endpoint: Endpoint) -> None:
    agent = CodeAgent(
        tools=[add], model=model(endpoint), max_steps=2, verbosity_level=0, use_structured_outputs_internally=True
    )
    said = agent.run('Add. [[{"thought": "easy", "code": "final_answer(add(2, 3))"}]]')
    assert said == 5


run_all()
