"""A generated reply as a Responses API answer, or as the events of its stream."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import count
from typing import Any, Literal
from uuid import uuid4

from serve.protocol.errors import CLIENT_CLOSED_REQUEST, ApiError
from serve.protocol.responses import CompletionTokensDetails, Source, Usage
from serve.replies.generation import Generation
from serve.responses_api.answer import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    Response,
    ResponseError,
    ResponseReasoning,
    ResponseText,
    ResponseUsage,
    Status,
)
from serve.responses_api.events import ErrorEvent, Event, ResponseEvent
from serve.responses_api.output import Output
from serve.responses_api.request import ResponsesRequest
from serve.responses_api.translation import Translation

Phase = Literal[
    "response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed"
]


class ResponsesReply:
    """The interface of `serve.replies.completion.Reply`, for one reply whose answer has items."""

    def __init__(
        self,
        asked: ResponsesRequest,
        chat: Translation,
        generations: Sequence[Generation],
        sources: list[Source] | None = None,
    ) -> None:
        self.id = f"resp_{uuid4().hex}"
        self.status = CLIENT_CLOSED_REQUEST  # until the answer is complete or fails
        """the HTTP status for the log; a stream's headers are sent before it is known"""
        self._created = int(time.time())
        self._asked = asked
        self._chat = chat
        self._sources = sources
        [self._generation] = generations
        self._output = Output()
        self._numbers = count()

    def usage(self) -> Usage:
        """The tokens so far."""
        generation = self._generation
        return Usage(
            prompt_tokens=generation.num_prompt_tokens,
            completion_tokens=generation.num_tokens,
            total_tokens=generation.num_prompt_tokens + generation.num_tokens,
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=generation.num_thought),
        )

    async def completion(self) -> Response:
        """The whole answer at once. Raises ApiError."""
        try:
            async for _ in self._generated():
                pass
        except ApiError as error:
            self.status = error.status
            raise self._chat.explained(error) from error
        self.status = 200
        return self._answer("incomplete" if self._is_cut else "completed")

    async def events(self, **_options_of_chats: bool) -> AsyncGenerator[str, None]:
        """The answer as server-sent events; the last one has the usage.

        There is no event before the first piece: until then it raises ApiError, later the error is an event.
        """
        has_begun = False
        try:
            async with aclosing(self._generated()) as generated:
                async for event in generated:
                    if not has_begun:
                        has_begun = True
                        yield self._sent(self._phase("response.created", "in_progress"))
                        yield self._sent(self._phase("response.in_progress", "in_progress"))
                    yield self._sent(event)
            self.status = 200
            if self._is_cut:
                yield self._sent(self._phase("response.incomplete", "incomplete"))
            else:
                yield self._sent(self._phase("response.completed", "completed"))
        except ApiError as error:
            self.status = error.status
            if not has_begun:
                raise self._chat.explained(error) from error
            for failure in self._failed(self._chat.explained(error)):
                yield self._sent(failure)

    async def _generated(self) -> AsyncGenerator[Event, None]:
        """The events of the reply's pieces and its end; serialize each one before awaiting the next."""
        async with aclosing(self._generation.pieces()) as pieces:
            async for piece in pieces:
                for event in self._output.take(piece):
                    yield event
        for event in self._output.end(self._generation.tool_calls, self._is_cut):
            yield event

    @property
    def _is_cut(self) -> bool:
        return self._generation.finish_reason == "length"

    def _sent(self, event: Event) -> str:
        event.sequence_number = next(self._numbers)
        return f"event: {event.type}\ndata: {event.model_dump_json()}\n\n"

    def _phase(self, phase: Phase, status: Status, error: ResponseError | None = None) -> ResponseEvent:
        begins = phase in ("response.created", "response.in_progress")
        answer = self._answer(status, error).model_copy(update={"output": [], "usage": None} if begins else {})
        return ResponseEvent(type=phase, response=answer)

    def _failed(self, error: ApiError) -> list[Event]:
        self._output.fail()
        code = error.error.code or error.error.type
        told = ErrorEvent(code=code, message=error.error.message, param=error.error.param)
        why = ResponseError(
            code="server_error" if error.status >= 500 else "invalid_prompt", message=error.error.message
        )
        return [told, self._phase("response.failed", "failed", why)]

    def _answer(self, status: Status, error: ResponseError | None = None) -> Response:
        usage = self.usage()
        return Response(
            id=self.id,
            created_at=self._created,
            completed_at=int(time.time()) if status == "completed" else None,
            status=status,
            error=error,
            incomplete_details=IncompleteDetails() if status == "incomplete" else None,
            output=self._output.items,
            usage=ResponseUsage(
                input_tokens=usage.prompt_tokens,
                input_tokens_details=InputTokensDetails(cached_tokens=self._generation.num_cached),
                output_tokens=usage.completion_tokens,
                output_tokens_details=OutputTokensDetails(
                    reasoning_tokens=usage.completion_tokens_details.reasoning_tokens
                ),
                total_tokens=usage.total_tokens,
            ),
            sources=self._sources,
            **_settings(self._asked),
        )


def _settings(asked: ResponsesRequest) -> dict[str, Any]:
    """The settings of the request that the answer repeats, with defaults filled in."""
    choice = asked.tool_choice
    tools = [
        {"description": None, "parameters": None, "strict": None} | tool.model_dump(exclude_unset=True)
        for tool in asked.tools or ()
    ]
    text = asked.text.model_dump(by_alias=True, exclude_none=True) if asked.text else {}
    return {
        "model": asked.model,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": asked.max_tool_calls,
        "temperature": 1.0 if asked.temperature is None else asked.temperature,
        "top_p": 1.0 if asked.top_p is None else asked.top_p,
        "top_logprobs": asked.top_logprobs or 0,
        "tools": tools,
        "tool_choice": "auto" if choice is None else choice if isinstance(choice, str) else choice.model_dump(),
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "text": ResponseText(**{"format": {"type": "text"}, **text}),
        "reasoning": ResponseReasoning(
            effort=asked.reasoning.effort if asked.reasoning else None,
            summary=asked.reasoning.summary if asked.reasoning else None,
        ),
        "truncation": asked.truncation or "disabled",
        "metadata": asked.metadata or {},
        "user": asked.user,
        "safety_identifier": asked.safety_identifier,
        "prompt_cache_key": asked.prompt_cache_key,
    }
