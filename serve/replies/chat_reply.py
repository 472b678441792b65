"""The answer to a chat completion: its choices, or the events of its stream."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from serve.protocol.responses import (
    CalledFunction,
    CalledFunctionDelta,
    CalledTool,
    CalledToolDelta,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    ReplyMessage,
    ReplyReason,
)
from serve.replies.completion import Chunk, Reply
from serve.replies.generation import CallDelta, DrawnToken, Generation, Piece, ToolCall


class ChatReply(Reply):
    """The answer to a ChatRequest."""

    _prefix = "chatcmpl"

    def _whole(self, texts: list[str], thoughts: list[str], tokens: list[list[DrawnToken]]) -> BaseModel:
        choices = [
            Choice(
                index=index,
                message=self._message(self._generations[place], self._echo(place) + texts[place], thoughts[place]),
                logprobs=self._logprobs(tokens[place]),
                finish_reason=self._reason(place),
                stop_reason=self._generations[place].stop_reason,
                token_ids=self._ids(place),
                best_of=self._best_of,
            )
            for index, place in enumerate(self._answered())
        ]
        return ChatCompletion(
            **self._common(),
            choices=choices,
            usage=self.usage(),
            prompt_token_ids=self._generations[0].prompt_ids if self._has_ids else None,
            prompt_logprobs=self._prompt_logprobs(0),
            sources=self._sources,
        )

    def _answered(self) -> list[int]:
        """The indices of the replies in the answer."""
        return list(range(len(self._generations))) if self._best_of is None else [self._best_of.chosen]

    def _opening(self, index: int) -> Chunk:
        return self._chunk([self._choice(index, Delta(role="assistant", content=self._echo(index)))])

    def _event(self, index: int, piece: Piece | None) -> Chunk:
        if piece is None:
            reason, cause = self._reason(index), self._generations[index].stop_reason
            end = ChunkChoice(index=index, delta=Delta(), logprobs=None, finish_reason=reason, stop_reason=cause)
            last = self._chunk([end])
            if self._sources:
                last.sources = self._sources
            return last
        delta = Delta(reasoning_content=piece.thought) if piece.thought else Delta()
        if piece.text or not (piece.thought or piece.calls):
            delta.content = piece.text
        if piece.calls and self._calls_functions:
            delta.function_call = _delta_of(piece.calls[0]).function
        elif piece.calls:
            delta.tool_calls = [_delta_of(call) for call in piece.calls]
        return self._chunk([self._choice(index, delta, piece.tokens)])

    def _echo(self, index: int) -> str:
        return self._generations[index].prompt_text or ""

    def _reason(self, index: int) -> ReplyReason:
        reason = self._generations[index].finish_reason
        return "function_call" if reason == "tool_calls" and self._calls_functions else reason

    def _message(self, generation: Generation, text: str, thought: str) -> ReplyMessage:
        calls = [_called(call) for call in generation.tool_calls] or None
        message = ReplyMessage(
            content=(text or None) if calls else text, reasoning_content=thought or None, tool_calls=calls
        )
        if calls and self._calls_functions:
            message.tool_calls, message.function_call = None, calls[0].function
        return message

    def _tell_prompt(self, event: Any, index: int) -> None:
        event.prompt_token_ids = self._generations[index].prompt_ids

    def _choice(self, index: int, delta: Delta, tokens: Sequence[DrawnToken] = ()) -> ChunkChoice:
        logprobs = self._logprobs(tokens) if tokens else None
        return ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=None)

    def _logprobs(self, tokens: Sequence[DrawnToken]) -> ChoiceLogprobs | None:
        if not self._with_logprobs:
            return None
        return ChoiceLogprobs(content=[token.logprob for token in tokens], refusal=None)

    def _chunk(self, choices: list[ChunkChoice]) -> ChatCompletionChunk:
        return ChatCompletionChunk(object="chat.completion.chunk", **self._common(), choices=choices)


def _called(call: ToolCall) -> CalledTool:
    return CalledTool(id=call.id, type="function", function=CalledFunction(name=call.name, arguments=call.arguments))


def _delta_of(call: CallDelta) -> CalledToolDelta:
    if call.id is None:
        return CalledToolDelta(index=call.index, function=CalledFunctionDelta(arguments=call.arguments))
    function = CalledFunctionDelta(name=call.name, arguments=call.arguments)
    return CalledToolDelta(index=call.index, id=call.id, type="function", function=function)
