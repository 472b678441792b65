"""A model that answers chat requests in this process by the endpoint's code: the same prompts, engines and parsing.

with AnsweringModel(engine_of(write_plain, threads=2, device="cpu", in_bulk=True), load_tokenizer, cache) as model:
    hello = Turn(({"role": "user", "content": "Hi"},))
    [[answer]] = model.converse([Asked([hello], max_new_tokens=64)], on_end=lambda: None)
"""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from models.chat import Conversation, Message
from models.chat.knowledge import with_knowledge
from models.errors import RayconteurError
from workflows.endpoint.in_process import InProcessEndpoint
from workflows.lm_eval.requests import EndpointRequest
from workflows.record import JsonObject
from workflows.store import content_key
from workflows.suites.reply_cache import ReplyCache
from workflows.suites.suite import Item, Turn

if TYPE_CHECKING:
    from serve.engines.base import Engine
    from serve.knowledge.retrieval import Knowledge

# Nobody waits for a first token here: three times the endpoint's batch gives 10 % more tokens a second on two cores.
_ACTIVE_IN_BULK = 96


@dataclass(frozen=True)
class Asked:
    """A conversation whose replies the model writes, turn by turn."""

    turns: Sequence[Turn]
    max_new_tokens: int
    sampling: Mapping[str, object] = field(default_factory=dict)
    """fields of the requests, such as temperature and seed; without any, replies are greedy"""


@dataclass(frozen=True)
class Answer:
    """A reply as a message, or why there is none."""

    message: Message | None
    error: str = ""


class AnsweringModel:
    """A model with its engine and endpoint, for use with `with`."""

    def __init__(
        self,
        start_engine: "Callable[[contextlib.ExitStack], Engine]",
        load_tokenizer: Callable[[], Any],
        cache: ReplyCache | None = None,
        knowledge: "Knowledge | None" = None,
    ) -> None:
        """`start_engine` is called for the first reply that is not in the cache; what it puts on the stack is closed
        after the engine. `knowledge`: the endpoint's, of which prompts have the passages that they are about.
        """
        self._start_engine, self._load_tokenizer, self._cache = start_engine, load_tokenizer, cache
        self._knowledge = knowledge
        self._open = contextlib.ExitStack()
        self._loop = asyncio.new_event_loop()
        self._endpoint: InProcessEndpoint | None = None
        self._answers: dict[str, asyncio.Future[Answer]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        self._loop.close()

    def converse(self, asked: Sequence[Asked], on_end: Callable[[], object]) -> list[list[Answer]]:
        """The replies to the turns of each conversation, all conversations at once; calls `on_end` after each one.

        Replies that are in the cache are taken from there; the engine starts with the first one that is not.
        """

        async def one(each: Asked) -> list[Answer]:
            answers = await self._conversation(each)
            on_end()
            return answers

        async def everything() -> list[list[Answer]]:
            return list(await asyncio.gather(*map(one, asked)))

        return self._loop.run_until_complete(everything())

    def ask(self, requests: Sequence[EndpointRequest], on_end: Callable[[], object]) -> list[JsonObject]:
        """The answers to lm-eval's requests, all at once, or from the cache; calls `on_end` after each one.

        Raises RayconteurError for a request that the endpoint refuses.
        """

        async def one(request: EndpointRequest) -> JsonObject:
            found = self._cache.find_answer(request.key) if self._cache else None
            if found is None:
                response = await self._post(request.route, request.body)
                if response.status_code != 200:
                    raise RayconteurError(f"evaluate.lm_eval: {response.json()['error']['message']}")
                found = request.read(response.json())
                if self._cache:
                    self._cache.add_answer(request.key, found)
            on_end()
            return found

        async def everything() -> list[JsonObject]:
            return list(await asyncio.gather(*map(one, requests)))

        return self._loop.run_until_complete(everything())

    @property
    def has_started(self) -> bool:
        """Whether an engine runs: some answer was not in the cache."""
        return self._endpoint is not None

    async def _conversation(self, asked: Asked) -> list[Answer]:
        item = Item("", tuple(asked.turns))
        replies: list[Message] = []
        while len(replies) < len(asked.turns):
            conversation = self._informed(item.conversation(replies), asked.turns[0].brings_knowledge)
            answer = await self._answer(conversation, asked)
            if answer.message is None:  # nor is there one to the turns that would answer it
                return [*map(Answer, replies), *[answer] * (len(asked.turns) - len(replies))]
            replies.append(answer.message)
        return [*map(Answer, replies)]

    def _informed(self, conversation: Conversation, is_informed: bool) -> Conversation:
        """The conversation with the passages that the endpoint would put into its prompt."""
        if self._knowledge is None or is_informed:
            return conversation
        asked = [message["content"] for message in conversation.messages if message["role"] == "user"]
        messages = with_knowledge(conversation.messages, self._knowledge.find(asked))
        return Conversation(messages, conversation.tools)

    async def _answer(self, conversation: Conversation, asked: Asked) -> Answer:
        request: dict[str, Any] = {
            "model": "model",
            "messages": [_sent(message) for message in conversation.messages],
            **(asked.sampling or {"temperature": 0}),
            "max_tokens": asked.max_new_tokens,
        }
        if conversation.tools:
            request["tools"] = conversation.tools
        key = content_key(request)
        if key not in self._answers:  # two suites may ask the same
            self._answers[key] = asyncio.ensure_future(self._new_answer(request))
        return await self._answers[key]

    async def _new_answer(self, request: JsonObject) -> Answer:
        known = self._cache.find(request) if self._cache else None
        if known is not None:
            return Answer(known)
        response = await self._post("/v1/chat/completions", request)
        if response.status_code != 200:
            return Answer(None, str(response.json()["error"]["message"]))
        message = _read(response.json()["choices"][0]["message"])
        if self._cache:
            self._cache.add(request, message)
        return Answer(message)

    async def _post(self, route: str, body: JsonObject) -> Any:
        """The response: an answer, or what is wrong with the request."""
        if self._endpoint is None:
            self._endpoint = self._start()
        response = await self._endpoint.post(route, body)
        if response.status_code >= 500:
            raise RuntimeError(f"the engine failed with status {response.status_code}: {response.text}")
        return response

    def _start(self) -> InProcessEndpoint:
        engine = self._start_engine(self._open)
        self._open.callback(engine.close)
        endpoint = InProcessEndpoint(engine, self._load_tokenizer())
        self._open.callback(lambda: self._loop.run_until_complete(endpoint.close()))
        return endpoint


def engine_of(
    write_plain: Callable[[Path], Path], threads: int, device: str, in_bulk: bool
) -> "Callable[[contextlib.ExitStack], Engine]":
    """Starts the engine of a folder, which `write_plain` returns; it may write to the folder that it gets.

    In float32 on CPUs, where the tokens of every engine are those of transformers, in any batch. `in_bulk`: so many
    replies are wanted that it pays to convert the model for a faster engine.
    """

    def start(open_with: contextlib.ExitStack) -> "Engine":
        made = Path(open_with.enter_context(tempfile.TemporaryDirectory()))
        folder = write_plain(made / "plain")
        if device == "cpu" and in_bulk:
            from models.export.openvino_export import export, folder_refusal
            from serve.engines.openvino import OpenVINOEngine

            if folder_refusal(folder) is None:
                export(folder, made / "openvino", "fp32")
                return OpenVINOEngine(made / "openvino", "fp32", _ACTIVE_IN_BULK, threads)
        from serve.engines.torch import TorchEngine

        return TorchEngine(folder, "fp32" if device == "cpu" else "auto", num_threads=threads, device=device)

    return start


def _read(message: dict[str, Any]) -> Message:
    """A reply of the endpoint in normal form; a call whose arguments are no JSON object keeps them as text."""
    read: dict[str, Any] = {"role": "assistant", "content": message.get("content") or ""}
    if message.get("reasoning_content"):
        read["reasoning_content"] = message["reasoning_content"]
    if message.get("tool_calls"):
        read["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _arguments(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
    return read  # type: ignore[return-value]


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _sent(message: Message) -> JsonObject:
    """A message as it stands in a request."""
    return {key: value for key, value in message.items() if key != "train"}
