"""Generated replies as an answer of OpenAI's API, or as the events of a stream."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any
from uuid import uuid4

from pydantic import BaseModel

from models.chat.knowledge import Passage
from serve.protocol.errors import CLIENT_CLOSED_REQUEST, ApiError
from serve.protocol.requests import GenerationFields
from serve.protocol.responses import (
    BestOf,
    ChatCompletionChunk,
    CompletionTokensDetails,
    PromptLogprobs,
    PromptTokensDetails,
    Source,
    TextCompletionChunk,
    Usage,
)
from serve.replies.generation import DrawnToken, Generation, Piece

Chunk = ChatCompletionChunk | TextCompletionChunk
Choose = Callable[[list[int], list[list[int]]], Awaitable[BestOf]]
"""chooses one of the replies to a prompt, all in token ids"""


@dataclass(frozen=True)
class ReplyOptions:
    """What an answer has beside its text, as the request asks for it."""

    model: str
    n: int
    """replies to each prompt"""
    with_logprobs: bool
    has_token_ids: bool = False
    num_prompt_logprobs: int | None = None
    """log-probabilities for each token of the prompt; None for none"""
    calls_functions: bool = False
    """whether tool calls have their older form, `function_call`"""
    fingerprint: str | None = None
    """names the release"""
    choose: Choose | None = None
    """chooses one of all replies, which is the answer"""
    passages: Sequence[Passage] = ()
    """of the endpoint's documents, in the prompt"""

    @classmethod
    def of(
        cls,
        body: GenerationFields,
        fingerprint: str | None,
        choose: Choose | None,
        passages: Sequence[Passage] = (),
    ) -> "ReplyOptions":
        """Those of a request."""
        return cls(
            model=body.model,
            n=body.num_replies(),
            with_logprobs=body.num_logprobs() is not None,
            has_token_ids=bool(body.return_token_ids),
            num_prompt_logprobs=body.prompt_logprobs,
            calls_functions=body.calls_functions(),
            fingerprint=fingerprint,
            choose=choose,
            passages=passages,
        )

    def sources(self) -> list[Source] | None:
        """The passages as the answer names them; None if there are none."""
        found = enumerate(self.passages, start=1)
        return [Source(id=number, name=each.name, text=each.text) for number, each in found] or None


class Reply(ABC):
    """The replies to one request."""

    def __init__(self, generations: Sequence[Generation], options: ReplyOptions) -> None:
        self.id = f"{self._prefix}-{uuid4().hex}"
        self.created = int(time.time())
        self.model = options.model
        self.status = CLIENT_CLOSED_REQUEST  # until the answer is complete or fails
        """the HTTP status for the log; a stream's headers are sent before it is known"""
        self._generations = generations
        self._n = options.n
        self._with_logprobs = options.with_logprobs
        self._choose = options.choose
        self._best_of: BestOf | None = None
        self._frames: dict[int, tuple[str, ...]] = {}
        self._fingerprint = options.fingerprint
        self._has_ids = options.has_token_ids
        self._calls_functions = options.calls_functions
        self._num_prompt_logprobs = options.num_prompt_logprobs
        self._told_ids = [0] * len(generations)
        self._tells_usage = False
        self._sources = options.sources()

    @property
    @abstractmethod
    def _prefix(self) -> str:
        """The prefix of the answer's id."""

    @abstractmethod
    def _whole(self, texts: list[str], thoughts: list[str], tokens: list[list[DrawnToken]]) -> BaseModel:
        """The answer without `stream`."""

    @abstractmethod
    def _opening(self, index: int) -> Chunk | None:
        """An event before the first one of a reply, if it needs one."""

    @abstractmethod
    def _event(self, index: int, piece: Piece | None) -> Chunk:
        """The event for a piece of a reply; None for its end."""

    @abstractmethod
    def _tell_prompt(self, event: Any, index: int) -> None:
        """Add the prompt's token ids to an event of the reply."""

    @abstractmethod
    def _chunk(self, choices: list[Any]) -> Chunk:
        """An event with these choices."""

    def _ids(self, index: int) -> list[int] | None:
        """A reply's token ids, if requested."""
        return self._generations[index].token_ids if self._has_ids else None

    def _prompt_logprobs(self, index: int) -> PromptLogprobs | None:
        """The log-probabilities of a reply's prompt, if requested; the first of several replies to the prompt has
        them.
        """
        if self._num_prompt_logprobs is None:
            return None
        return self._generations[index - index % self._n].prompt_logprobs(self._num_prompt_logprobs)

    def _usage_event(self) -> Chunk:
        """The last event, if usage is requested."""
        chunk = self._chunk([])
        chunk.usage = self.usage()
        return chunk

    def usage(self) -> Usage:
        """The tokens so far; a prompt counts once for all its replies."""
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
        """Cached tokens; for a prompt with several replies, the minimum over the replies."""
        told = [generation.num_cached for generation in self._generations]
        known = [number for number in told if number is not None]
        if len(known) < len(told):
            return None
        prompts = range(0, len(known), self._n)
        return PromptTokensDetails(cached_tokens=sum(min(known[first : first + self._n]) for first in prompts))

    def _common(self) -> dict[str, Any]:
        """The common fields of answers and events."""
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
        """The answer as server-sent events: pieces as they arrive, each reply's end, and the usage if requested, with
        `usage_so_far` in every event.

        There is no event before the first piece: until then it raises ApiError, later the error is an event.
        """
        begun: set[int] = set()
        with_usage = include_usage and usage_so_far
        self._tells_usage = include_usage
        try:
            async with aclosing(self._pieces()) as pieces:
                async for index, piece in pieces:
                    is_plain = piece is not None and piece.is_plain and not (with_usage or self._has_ids)
                    if piece is not None and is_plain and index in begun:
                        yield self._plain(index, piece.text)
                        continue
                    for event in self._events_of(index, piece, is_first=index not in begun):
                        begun.add(index)
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

    def _events_of(self, index: int, piece: Piece | None, is_first: bool) -> list[Chunk]:
        events = [self._event(index, piece)]
        if self._has_ids:
            told, token_ids = self._told_ids[index], self._generations[index].token_ids
            events[0].choices[0].token_ids = token_ids[told:]
            self._told_ids[index] = len(token_ids)
        if is_first and (opening := self._opening(index)):
            events.insert(0, opening)
        if is_first and self._has_ids:
            self._tell_prompt(events[0], index)
        if self._tells_usage:  # as in OpenAI's API, where only the last event has it
            for event in events:
                event.usage = None
        return events

    def _plain(self, index: int, text: str) -> str:
        """The event of a piece with only text, as most are: everything around the text is always the same."""
        frame = self._frames.get(index)
        if frame is None:
            [event] = self._events_of(index, Piece("\0"), is_first=False)
            frame = self._frames[index] = tuple(_sent(event).split('"\\u0000"'))
        before, after = frame
        return before + encode_basestring(text) + after

    async def _pieces(self) -> AsyncGenerator[tuple[int, Piece | None], None]:
        """The pieces of all replies as they arrive, with the replies' indices; None after a reply's last one."""
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
