"""Generated replies as one answer of OpenAI's API, or as the events of a stream."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from json.encoder import encode_basestring
from typing import Any
from uuid import uuid4

from pydantic import BaseModel

from serve.protocol.errors import CLIENT_CLOSED_REQUEST, ApiError
from serve.protocol.responses import (
    BestOf,
    ChatCompletionChunk,
    CompletionTokensDetails,
    PromptTokensDetails,
    TextCompletionChunk,
    Usage,
)
from serve.replies.generation import DrawnToken, Generation, Piece

Chunk = ChatCompletionChunk | TextCompletionChunk
Choose = Callable[[list[int], list[list[int]]], Awaitable[BestOf]]
"""of a prompt's replies, in tokens, the one to answer with"""


class Reply(ABC):
    """The replies to one request: `n` of them to each prompt."""

    def __init__(
        self,
        generations: Sequence[Generation],
        model: str,
        n: int,
        with_logprobs: bool,
        choose: Choose | None = None,
        fingerprint: str | None = None,
    ) -> None:
        """`n` replies are generated to each prompt; with `choose` one of them all is answered with. `fingerprint`
        names the release."""
        self.id = f"{self._prefix}-{uuid4().hex}"
        self.created = int(time.time())
        self.model = model
        self.status = CLIENT_CLOSED_REQUEST  # until it is known better
        """HTTP's, as it would have been had all of it been known when the answer began"""
        self._generations = generations
        self._n = n
        self._with_logprobs = with_logprobs
        self._choose = choose
        self._best_of: BestOf | None = None
        self._frames: dict[int, tuple[str, ...]] = {}
        self._fingerprint = fingerprint

    @property
    @abstractmethod
    def _prefix(self) -> str:
        """Of the answer's id."""

    @abstractmethod
    def _whole(self, texts: list[str], thoughts: list[str], tokens: list[list[DrawnToken]]) -> BaseModel:
        """The answer without `stream`."""

    @abstractmethod
    def _opening(self, index: int) -> Chunk | None:
        """The event before the first one of a reply."""

    @abstractmethod
    def _event(self, index: int, piece: Piece | None) -> Chunk:
        """What an event says of a reply; None for its end."""

    @abstractmethod
    def _chunk(self, choices: list[Any]) -> Chunk:
        """An event with these choices."""

    def _usage_event(self) -> Chunk:
        """The last one, if it was asked for."""
        chunk = self._chunk([])
        chunk.usage = self.usage()
        return chunk

    def usage(self) -> Usage:
        """Tokens so far; a prompt counts once, however many replies it has."""
        prompts = sum(generation.num_prompt_tokens for generation in self._generations[:: self._n])
        replies = sum(generation.num_tokens for generation in self._generations)
        thought = sum(generation.num_thought for generation in self._generations)
        return Usage(
            prompt_tokens=prompts,
            completion_tokens=replies,
            total_tokens=prompts + replies,
            prompt_tokens_details=self._cached(),
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=thought),
        )

    def _cached(self) -> PromptTokensDetails | None:
        """Of a prompt with several replies, what none of them has read."""
        told = [generation.num_cached for generation in self._generations]
        known = [number for number in told if number is not None]
        if len(known) < len(told):
            return None
        prompts = range(0, len(known), self._n)
        return PromptTokensDetails(cached_tokens=sum(min(known[first : first + self._n]) for first in prompts))

    def _common(self) -> dict[str, Any]:
        """What every answer and event begins with."""
        return {
            "id": self.id,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self._fingerprint,
        }

    async def completion(self) -> BaseModel:
        """The whole answer at once."""
        try:
            return await self._completion()
        except ApiError as error:
            self.status = error.status
            raise

    async def _completion(self) -> BaseModel:
        texts, thoughts = [""] * len(self._generations), [""] * len(self._generations)
        tokens: list[list[DrawnToken]] = [[] for _ in texts]
        async with aclosing(self._pieces()) as pieces:
            async for index, piece in pieces:
                if piece is not None:
                    texts[index] += piece.text
                    thoughts[index] += piece.thought
                    tokens[index] += piece.tokens
        if self._choose is not None:
            first = self._generations[0]
            self._best_of = await self._choose(first.prompt_ids, [each.token_ids for each in self._generations])
        self.status = 200
        return self._whole(texts, thoughts, tokens)

    async def events(self, include_usage: bool, usage_so_far: bool = False) -> AsyncGenerator[str, None]:
        """The answer as server-sent events: the pieces as they come, each reply's end, the usage if asked for, with
        `usage_so_far` in every event.

        Nothing comes before there is something of a reply: until then ApiError is raised, later it is an event.
        """
        begun: set[int] = set()
        with_usage = include_usage and usage_so_far
        try:
            async with aclosing(self._pieces()) as pieces:
                async for index, piece in pieces:
                    if piece is not None and piece.is_plain and index in begun and not with_usage:
                        yield self._plain(index, piece.text)
                        continue
                    events = [self._event(index, piece)]
                    if index not in begun:
                        begun.add(index)
                        events = [opening, *events] if (opening := self._opening(index)) else events
                    for event in events:
                        if with_usage:
                            event.usage = self.usage()
                        yield _sent(event)
            if include_usage:
                yield _sent(self._usage_event())
            self.status = 200
        except ApiError as error:
            self.status = error.status
            if not begun:
                raise
            yield f"data: {error.body()}\n\n"
        yield "data: [DONE]\n\n"

    def _plain(self, index: int, text: str) -> str:
        """The event of a piece that is nothing but text, which most are: around the text it is always the same."""
        frame = self._frames.get(index)
        if frame is None:
            frame = self._frames[index] = tuple(_sent(self._event(index, Piece("\0"))).split('"\\u0000"'))
        before, after = frame
        return before + encode_basestring(text) + after

    async def _pieces(self) -> AsyncGenerator[tuple[int, Piece | None], None]:
        """Of all replies as they come, with their numbers; None after a reply's last one."""
        if len(self._generations) == 1:
            async with aclosing(self._generations[0].pieces()) as pieces:
                async for piece in pieces:
                    yield 0, piece
            yield 0, None
            return
        found: asyncio.Queue[tuple[int, Piece | None] | BaseException] = asyncio.Queue()
        tasks = [asyncio.create_task(self._follow(index, found)) for index in range(len(self._generations))]
        try:
            left = len(tasks)
            while left:
                item = await found.get()
                if isinstance(item, BaseException):
                    raise item
                left -= item[1] is None
                yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, index: int, found: "asyncio.Queue[tuple[int, Piece | None] | BaseException]") -> None:
        try:
            async with aclosing(self._generations[index].pieces()) as pieces:
                async for piece in pieces:
                    found.put_nowait((index, piece))
            found.put_nowait((index, None))
        except Exception as error:
            found.put_nowait(error)


def _sent(event: BaseModel) -> str:
    return f"data: {event.model_dump_json(exclude_unset=True)}\n\n"
