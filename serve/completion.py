"""A generated reply as one chat completion, or as the events of a stream."""

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from serve.engines.base import Engine, EngineError, GenerationRequest
from serve.errors import ApiError
from serve.protocol import (
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
    FinishReason,
    ReplyMessage,
    Usage,
)
from serve.text import ReplyText

logger = logging.getLogger(__name__)


class Reply:
    """One reply while it is generated: its text in pieces, then why it ended and what it used."""

    def __init__(
        self, engine: Engine, tokenizer: Any, request: GenerationRequest, stops: list[str], model: str
    ) -> None:
        self.id = f"chatcmpl-{uuid4().hex}"
        self.created = int(time.time())
        self.model = model
        self.finish_reason: FinishReason = "length"
        self._engine = engine
        self._request = request
        self._text = ReplyText(tokenizer, stops)
        self._num_tokens = 0

    async def pieces(self) -> AsyncGenerator[str, None]:
        """The visible text as it grows; closing this cancels the generation. Raises ApiError."""
        try:
            async with aclosing(self._engine.submit(self._request)) as events:
                async for event in events:
                    self._num_tokens += 1
                    if event.token_id not in self._request.end_token_ids and (
                        piece := self._text.push(event.token_id)
                    ):
                        yield piece
                    if self._text.is_stopped or event.finish_reason is not None:
                        self.finish_reason = event.finish_reason or "stop"
                        break
                else:
                    raise EngineError("the generation was cancelled")
        except EngineError as error:
            logger.exception("reply %s failed", self.id)
            raise ApiError(500, f"The reply could not be generated: {error}.") from error
        if rest := self._text.finish():
            yield rest
        if self._text.is_stopped:
            self.finish_reason = "stop"

    def usage(self) -> Usage:
        """Tokens so far."""
        num_prompt_tokens = len(self._request.prompt_ids)
        return Usage(
            prompt_tokens=num_prompt_tokens,
            completion_tokens=self._num_tokens,
            total_tokens=num_prompt_tokens + self._num_tokens,
        )

    async def completion(self) -> ChatCompletion:
        """The whole reply at once."""
        async with aclosing(self.pieces()) as pieces:
            content = "".join([piece async for piece in pieces])
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[Choice(message=ReplyMessage(content=content), finish_reason=self.finish_reason)],
            usage=self.usage(),
        )

    async def events(self, include_usage: bool) -> AsyncGenerator[str, None]:
        """The reply as server-sent events: the role, the pieces, the end, the usage if asked for."""
        try:
            yield self._event([self._choice(Delta(role="assistant", content=""))])
            async with aclosing(self.pieces()) as pieces:
                async for piece in pieces:
                    yield self._event([self._choice(Delta(content=piece))])
            yield self._event([self._choice(Delta(), self.finish_reason)])
            if include_usage:
                yield self._event([], self.usage())
        except ApiError as error:
            yield f"data: {error.body()}\n\n"
        yield "data: [DONE]\n\n"

    def _choice(self, delta: Delta, finish_reason: FinishReason | None = None) -> ChunkChoice:
        return ChunkChoice(index=0, delta=delta, logprobs=None, finish_reason=finish_reason)

    def _event(self, choices: list[ChunkChoice], usage: Usage | None = None) -> str:
        chunk = ChatCompletionChunk(
            id=self.id,
            object="chat.completion.chunk",
            created=self.created,
            model=self.model,
            choices=choices,
        )
        if usage is not None:
            chunk.usage = usage
        return f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"
