"""Microsoft's Semantic Kernel over OpenAI's client."""

from typing import Any, Literal

from openai import AsyncOpenAI
from pydantic import BaseModel
from semantic_kernel import Kernel
from semantic_kernel.agents import ChatCompletionAgent, ChatHistoryAgentThread
from semantic_kernel.connectors.ai.function_choice_behavior import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion, OpenAIChatPromptExecutionSettings
from semantic_kernel.contents import ChatHistory
from semantic_kernel.functions import KernelArguments, kernel_function
from trial import Endpoint, run_all, usage

SUM = '2 and 3 together? [[sums-add({"a": 2, "b": 3}) => It is 5.]]'


class Sums:
    @kernel_function(description="The sum of two numbers")
    def add(self, a: int, b: int) -> int:
        return a + b


def service(endpoint: Endpoint) -> OpenAIChatCompletion:
    client = AsyncOpenAI(base_url=endpoint.url, api_key=endpoint.key, max_retries=0)
    return OpenAIChatCompletion(ai_model_id=endpoint.model, async_client=client)


def settings(**fields: Any) -> OpenAIChatPromptExecutionSettings:
    return OpenAIChatPromptExecutionSettings(**{"max_tokens": 100, "temperature": 0, **fields})


def history(*said: str) -> ChatHistory:
    found = ChatHistory(system_message="Be brief.")
    for text in said:
        found.add_user_message(text)
    return found


@usage("get_chat_message_content")
async def _(endpoint: Endpoint) -> None:
    assert (await service(endpoint).get_chat_message_content(history("Hello"), settings(max_tokens=6))).content


@usage("get_streaming_chat_message_content")
async def _(endpoint: Endpoint) -> None:
    stream = service(endpoint).get_streaming_chat_message_content(history("Hello"), settings(max_tokens=6))
    assert "".join([str(part) async for part in stream])


@usage("history goes on with the reply")
async def _(endpoint: Endpoint) -> None:
    said = history("Hello")
    said.add_message(await service(endpoint).get_chat_message_content(said, settings(max_tokens=6)))
    said.add_user_message("And then?")
    assert (await service(endpoint).get_chat_message_content(said, settings(max_tokens=6))).content


@usage("Kernel.invoke_prompt")
async def _(endpoint: Endpoint) -> None:
    kernel = Kernel(services=[service(endpoint)])
    arguments = KernelArguments(settings(max_tokens=6), who="Ada")
    assert str(await kernel.invoke_prompt("Hello, {{$who}}", arguments=arguments))


@usage("functions, called by the kernel (Auto)")
async def _(endpoint: Endpoint) -> None:
    kernel = Kernel(services=[service(endpoint)])
    kernel.add_plugin(Sums(), "sums")
    asked = settings(function_choice_behavior=FunctionChoiceBehavior.Auto())
    reply = await service(endpoint).get_chat_message_content(history(SUM), asked, kernel=kernel)
    assert reply.content == "It is 5."


@usage("functions, called by hand; a further question")
async def _(endpoint: Endpoint) -> None:
    kernel = Kernel()
    kernel.add_plugin(Sums(), "sums")
    asked = settings(function_choice_behavior=FunctionChoiceBehavior.Auto(auto_invoke=False))
    reply = await service(endpoint).get_chat_message_content(history(SUM), asked, kernel=kernel)
    assert reply.items[0].function_name == "add"


@usage("ChatCompletionAgent: tool loop and a further question in its thread")
async def _(endpoint: Endpoint) -> None:
    agent = ChatCompletionAgent(
        service=service(endpoint), name="Ada", instructions="Be brief.", plugins=[Sums()],
        function_choice_behavior=FunctionChoiceBehavior.Auto(),
    )  # fmt: skip
    thread = ChatHistoryAgentThread()
    first = await agent.get_response(SUM.replace("sums-", "Sums-"), thread=thread)
    assert str(first) == "It is 5."
    assert str(await agent.get_response("Sure? [[Yes.]]", thread=first.thread)) == "Yes."


@usage("ChatCompletionAgent: streamed")
async def _(endpoint: Endpoint) -> None:
    agent = ChatCompletionAgent(
        service=service(endpoint), name="Ada", arguments=KernelArguments(settings(max_tokens=6))
    )
    assert [part async for part in agent.invoke_stream("Hello")]


@usage("response_format: a pydantic model")
async def _(endpoint: Endpoint) -> None:
    class Mood(BaseModel):
        tone: Literal["warm", "cool"]

    reply = await service(endpoint).get_chat_message_content(history("Hello"), settings(response_format=Mood))
    assert Mood.model_validate_json(str(reply))


run_all()
