"""A model that answers chat requests in this process by the endpoint's code: the same prompts, engines and parsing.

with AnsweringModel(write_plain, tokenizer_folder, threads=2, device="cpu", in_bulk=True, cache=cache) as model:
    hello = Turn(({"role": "user", "content": "Hi"},))
    [[answer]] = model.converse([Asked([hello], max_new_tokens=64)], on_end=lambda: None)
"""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from models.chat import Conversation, Message
from workflows.record import JsonObject
from workflows.scorecard.reply_cache import ReplyCache
from workflows.suites.suite import Item, Turn

if TYPE_CHECKING:
    from serve.engines.base import Engine, Precision

_NO_LIMIT = 1_000_000
_MAX_SECONDS = 86_400.0


@dataclass(frozen=True)
class Asked:
    """A conversation whose replies the model writes, turn by turn."""

    turns: Sequence[Turn]
    max_new_tokens: int


@dataclass(frozen=True)
class Answer:
    """A reply as a message, or why there is none."""

    message: Message | None
    error: str = ""


class AnsweringModel:
    """A model with its engine and endpoint, for use with `with`."""

    def __init__(
        self,
        write_plain: Callable[[Path], Path],
        tokenizer_folder: Path,
        threads: int,
        device: str,
        in_bulk: bool,
        cache: ReplyCache,
    ) -> None:
        """`write_plain`: returns a folder that engines load; it may write to the folder that it gets. `in_bulk`: so
        many replies are wanted that it pays to convert the model for a faster engine.
        """
        self._write_plain, self._tokenizer_folder = write_plain, tokenizer_folder
        self._threads, self._device, self._in_bulk = threads, device, in_bulk
        self._cache = cache
        self._open = contextlib.ExitStack()
        self._loop = asyncio.new_event_loop()
        self._client: Any = None

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

    async def _conversation(self, asked: Asked) -> list[Answer]:
        item = Item("", tuple(asked.turns))
        replies: list[Message] = []
        while len(replies) < len(asked.turns):
            answer = await self._answer(item.conversation(replies), asked.max_new_tokens)
            if answer.message is None:  # nor is there one to the turns that would answer it
                return [*map(Answer, replies), *[answer] * (len(asked.turns) - len(replies))]
            replies.append(answer.message)
        return [*map(Answer, replies)]

    async def _answer(self, conversation: Conversation, max_new_tokens: int) -> Answer:
        request: dict[str, Any] = {
            "model": "model",
            "messages": [_sent(message) for message in conversation.messages],
            "temperature": 0,
            "max_tokens": max_new_tokens,
        }
        if conversation.tools:
            request["tools"] = conversation.tools
        known = self._cache.find(request)
        if known is not None:
            return Answer(known)
        if self._client is None:
            self._start()
        response = await self._client.post("/v1/chat/completions", json=request)
        if response.status_code >= 500:
            raise RuntimeError(f"the engine failed with status {response.status_code}: {response.text}")
        if response.status_code != 200:
            return Answer(None, str(response.json()["error"]["message"]))
        message = _read(response.json()["choices"][0]["message"])
        self._cache.add(request, message)
        return Answer(message)

    def _start(self) -> None:
        import httpx

        from models.base.load import load_tokenizer
        from serve.api.routes import create_app
        from serve.api.settings import ApiSettings

        engine = self._engine()
        self._open.callback(engine.close)
        settings = ApiSettings(max_queued_requests=_NO_LIMIT, max_seconds=_MAX_SECONDS)
        app = create_app(engine, load_tokenizer(self._tokenizer_folder), "model", settings=settings)
        self._open.callback(app.state.watch.close)
        transport = httpx.ASGITransport(app=app)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://model", timeout=None)
        self._open.callback(lambda: self._loop.run_until_complete(self._client.aclose()))

    def _engine(self) -> "Engine":
        """In float32 on CPUs, where the tokens of every engine are those of transformers, in any batch."""
        made = Path(self._open.enter_context(tempfile.TemporaryDirectory()))
        folder = self._write_plain(made / "plain")
        if self._device == "cpu" and self._in_bulk:
            from models.export.openvino_export import export, folder_refusal
            from serve.engines.openvino import OpenVINOEngine

            if folder_refusal(folder) is None:
                export(folder, made / "openvino", "fp32")
                return OpenVINOEngine(made / "openvino", "fp32", num_threads=self._threads)
        from serve.engines.torch import TorchEngine

        precision: Precision = "fp32" if self._device == "cpu" else "auto"
        return TorchEngine(folder, precision, num_threads=self._threads, device=self._device)


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
