"""One reply while it is generated: pieces of text and thinking, tool calls, log-probabilities, finish reason."""

import asyncio
import dataclasses
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NamedTuple

from serve.engines.base import Engine, EngineError, GenerationRequest, TokenEvent, Unfollowable
from serve.metrics import TokenClock
from serve.parsing.call_reader import Call
from serve.parsing.decoder import TokenDecoder, overlap, token_bytes, token_text
from serve.parsing.form import ReplyForm
from serve.parsing.reader import Reader
from serve.parsing.text import ReplyText, Shown
from serve.protocol.errors import LOST, ApiError
from serve.protocol.responses import PromptLogprob, ReplyReason, TokenLogprob, TopLogprob

logger = logging.getLogger(__name__)

_LEAST = -9999.0  # JSON has no infinity; OpenAI's API writes this too


@dataclass(frozen=True)
class DrawnToken:
    """A sampled token with its log-probability, and the number of characters of the reply before it."""

    offset: int
    logprob: TokenLogprob


class Piece(NamedTuple):
    """The next part of the visible text, the tokens that it completes, if requested, and the next part of the
    thinking. A tuple, since it is created for every token: a frozen dataclass takes three times as long."""

    text: str
    tokens: "Sequence[DrawnToken]" = ()
    thought: str = ""
    calls: "Sequence[CallDelta]" = ()

    @property
    def is_plain(self) -> bool:
        """Whether it only has text."""
        return not (self.tokens or self.thought or self.calls)


@dataclass(frozen=True)
class ToolCall:
    """A tool call of the model; `arguments` is JSON, truncated if the reply was."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class CallDelta:
    """The next part of call number `index`: its arguments, and in the first part its id and name."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Reading:
    """How a reply is parsed: by `reader`, which is only for this reply; at most `max_calls` calls count."""

    form: ReplyForm
    reader: Reader
    max_calls: int | None = None


@dataclass(frozen=True)
class Wishes:
    """What a request wants to know about a reply besides its text."""

    shows_stop: bool = False
    """whether the text includes the stop string that ended it"""
    prompt_text: str | None = None
    """the prompt's text, if the answer starts with it (`echo`)"""
    names_ids: bool = False
    """whether log-probabilities name tokens by id"""
    stop_token_ids: frozenset[int] = frozenset()
    """tokens that end the reply beside the model's own end tokens"""
    is_prompt_alone: bool = False
    """whether only the prompt's log-probabilities are requested, and no reply"""


class Generation:
    """A reply while it is generated; `reading` separates thinking and tool calls from its text."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        request: GenerationRequest,
        stops: list[str],
        max_seconds: float,
        clock: TokenClock,
        reading: Reading | None = None,
        wishes: Wishes = Wishes(),
    ) -> None:
        self.finish_reason: ReplyReason = "length"
        self.stop_reason: str | int | None = None
        """the stop string, or the one of the request's stop tokens, that ended it"""
        self.prompt_text = wishes.prompt_text
        self.token_ids: list[int] = []
        self.num_prompt_tokens = len(request.prompt_ids)
        self._engine = engine
        self._tokenizer = tokenizer
        self._request = request
        self._max_seconds = max_seconds
        self._stops = stops
        self._reading = reading
        reader, marks = (reading.reader, reading.form.marks) if reading else (None, None)
        self._text = ReplyText(tokenizer, stops, reader, marks, wishes.shows_stop, request.min_new_tokens)
        self._wishes = wishes
        self._prompt_logprobs: Sequence[tuple[float, Any]] = ()
        self.num_cached: int | None = None
        """cached tokens of the prompt; None if the engine does not report it, or before the first token"""
        self._places: list[int] = []  # the start of each token in the text
        self._unshown: list[tuple[int, DrawnToken]] = []  # each with its end in the reply's characters
        self._is_late = False
        self._clock = clock
        self._told_calls: list[ToolCall] = []
        self._seen_calls: tuple[int, list[Call]] = (0, [])
        self.tool_calls: list[ToolCall] = []
        """the tool calls, once the reply has ended"""

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt's token ids."""
        return self._request.prompt_ids

    @property
    def num_tokens(self) -> int:
        """The number of tokens so far, including the end token."""
        return len(self.token_ids)

    @property
    def num_thought(self) -> int:
        """The number of thinking tokens, including the opening and the closing."""
        return self._text.num_thought(self._places)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The pieces of the reply; closing this generator cancels the generation. Raises ApiError."""
        deadline = asyncio.get_running_loop().call_later(self._max_seconds, self._end_late)
        try:
            async with aclosing(self._engine.submit(self._request)) as events:
                async for event in events:
                    if self._wishes.is_prompt_alone:
                        self._take_prompt(event)
                        break
                    if piece := self._take(event):
                        yield piece
                    if self._text.is_stopped or event.finish_reason is not None:
                        self.finish_reason = event.finish_reason or "stop"
                        break
                else:
                    raise self._cancelled()
        except EngineError as error:
            if isinstance(error.__cause__, Unfollowable):
                raise self._unfollowable(error.__cause__) from error
            logger.exception("reply %s failed", self._request.request_id)
            if not self._engine.health().is_alive:
                raise ApiError(503, f"{error}.", code="engine_lost", headers={LOST: "in"}) from error
            raise ApiError(500, f"The reply could not be generated: {error}.") from error
        finally:
            deadline.cancel()
        rest = self._text.finish(is_cut=self.finish_reason == "length")
        if self._text.is_stopped:
            self.finish_reason = "stop"
        self.stop_reason = self._text.stop or self._end_of_request()
        self._read_calls()
        if piece := self._piece(rest, self._call_deltas()):
            yield piece

    def _end_of_request(self) -> int | None:
        last = self.token_ids[-1] if self.token_ids else None
        return last if self.finish_reason == "stop" and last in self._wishes.stop_token_ids else None

    def _read_calls(self) -> None:
        if self._reading is None:
            return
        calls = self._reading.reader.calls[: self._reading.max_calls]
        form, told = self._reading.form, self._told_calls
        ids = [told[place].id if place < len(told) else form.new_call_id() for place in range(len(calls))]
        self.tool_calls = [
            ToolCall(number, call.name, form.marks.in_json(call.arguments))
            for number, call in zip(ids, calls, strict=True)
        ]
        if calls:
            self.finish_reason = "length" if calls[-1].is_cut else "tool_calls"

    def _call_deltas(self) -> list[CallDelta]:
        """New parts of calls."""
        reading = self._reading
        if reading is None or not (reading.reader.calls or reading.reader.pending):
            return []
        # The reader creates a new list if a call has grown; most tokens of a long call do not change it.
        seen = (len(reading.reader.calls), reading.reader.pending)
        if not self.tool_calls and seen[0] == self._seen_calls[0] and seen[1] is self._seen_calls[1]:
            return []
        self._seen_calls = seen
        if self.tool_calls:
            texts = [(call.name, call.arguments) for call in self.tool_calls]
        else:
            calls = [*reading.reader.calls, *reading.reader.pending][: reading.max_calls]
            texts = [(call.name, self._settled(call)) for call in calls]
        deltas = []
        for place, (name, arguments) in enumerate(texts):
            if place == len(self._told_calls):
                number = self.tool_calls[place].id if self.tool_calls else reading.form.new_call_id()
                self._told_calls.append(ToolCall(number, name, arguments))
                deltas.append(CallDelta(place, arguments, number, name))
                continue
            told = self._told_calls[place]
            if len(arguments) > len(told.arguments) and arguments.startswith(told.arguments):
                deltas.append(CallDelta(place, arguments[len(told.arguments) :]))
                self._told_calls[place] = dataclasses.replace(told, arguments=arguments)
        return deltas

    def _settled(self, call: Call) -> str:
        """The final part of a call's arguments: without an end that may be the start of a stop string."""
        assert self._reading is not None
        text = self._reading.form.marks.in_json(call.settled if call.is_cut else call.arguments)
        return text[: len(text) - max((overlap(text, stop) for stop in self._stops), default=0)]

    def prompt_tokens(self) -> list[tuple[int, TokenLogprob | None]]:
        """The prompt's tokens as positions in its text, and their log-probabilities, if requested; the first token
        has none.
        """
        decoder = TokenDecoder(self._tokenizer)
        place, found = 0, []
        for number, token_id in enumerate(self._request.prompt_ids):
            told = self._prompt_logprobs[number - 1] if number and self._prompt_logprobs else None
            found.append((place, self._told(token_id, *told) if told else None))
            place += len(decoder.push(token_id))
        return found

    def prompt_logprobs(self, count: int) -> list[dict[str, PromptLogprob] | None]:
        """The log-probabilities of the prompt's tokens and of the `count` likeliest ones at each position, by token
        id.
        """
        found: list[dict[str, PromptLogprob] | None] = [None]
        for token_id, (own, likeliest) in zip(self.prompt_ids[1:], self._prompt_logprobs, strict=False):
            ranks = {each: rank for rank, (each, _) in enumerate(likeliest, 1)}
            told = {token_id: own, **dict(likeliest[:count])}
            found.append({
                str(each): PromptLogprob(
                    logprob=max(value, _LEAST), rank=ranks.get(each), decoded_token=self._text_of(each)
                )
                for each, value in told.items()
            })  # fmt: skip
        return found

    def token_name(self, token_id: int) -> str:
        """The text of a single token, or its id if the request says so."""
        return f"token_id:{token_id}" if self._wishes.names_ids else self._text_of(token_id)

    def _text_of(self, token_id: int) -> str:
        return token_text(self._tokenizer, token_id)

    def _take_prompt(self, event: TokenEvent) -> None:
        self._prompt_logprobs = event.prompt_logprobs or self._prompt_logprobs
        self.num_cached = self.num_cached if event.num_cached is None else event.num_cached

    def _take(self, event: TokenEvent) -> Piece | None:
        self.token_ids.append(event.token_id)
        if event.num_cached is not None or event.prompt_logprobs:
            self._take_prompt(event)
        self._clock.token()
        if event.token_id in self._request.end_token_ids:
            return None
        offset = self._text.num_decoded
        self._places.append(offset)
        shown = self._text.push(event.token_id)
        if event.logprob is not None:
            self._unshown.append((self._text.num_decoded, DrawnToken(offset, self._named(event))))
        return self._piece(shown, self._call_deltas() if self._reading else [])

    def _piece(self, shown: Shown, calls: list[CallDelta]) -> Piece | None:
        tokens = self._shown_tokens() if self._unshown else []
        is_something = shown.said or tokens or shown.thought or calls
        return Piece(shown.said, tokens, shown.thought, calls) if is_something else None

    def _shown_tokens(self) -> list[DrawnToken]:
        """The tokens that are completely shown since the last call; without stop strings and thinking."""
        shown = [token for end, token in self._unshown if end <= self._text.num_shown]
        self._unshown = self._unshown[len(shown) :]
        return [token for token in shown if self._text.is_said(token.offset)]

    def _named(self, event: TokenEvent) -> TokenLogprob:
        assert event.logprob is not None
        return self._told(event.token_id, event.logprob, event.top_logprobs)

    def _told(self, token_id: int, logprob: float, likeliest: Sequence[tuple[int, float]]) -> TokenLogprob:
        """The sampled token with the likeliest ones; it is added to them at the end if it is not among them."""
        if likeliest and token_id not in {each for each, _ in likeliest}:
            likeliest = [*likeliest, (token_id, logprob)]
        tops = [self._top(each, value) for each, value in likeliest]
        return TokenLogprob(**self._top(token_id, logprob).model_dump(), top_logprobs=tops)

    def _top(self, token_id: int, logprob: float) -> TopLogprob:
        found = token_bytes(self._tokenizer, token_id, self._text_of(token_id))
        return TopLogprob(
            token=self.token_name(token_id),
            logprob=max(logprob, _LEAST),
            bytes=None if found is None else list(found),
        )

    def _end_late(self) -> None:
        self._is_late = True
        self._engine.cancel(self._request.request_id)

    def _unfollowable(self, error: Unfollowable) -> ApiError:
        grammar, allowed = self._request.grammar, self._request.allowed_token_ids
        param = ("bad_words" if allowed is None else "allowed_token_ids") if grammar is None else grammar.param
        return ApiError(400, f"{param}: after {self.num_tokens} tokens of the reply: {error}.", param)

    def _cancelled(self) -> Exception:
        if not self._is_late:
            return EngineError("the generation was cancelled")
        return ApiError(
            504,
            f"The reply took longer than the limit of {self._max_seconds:g} seconds; "
            f"{self.num_tokens} tokens were generated.",
            code="deadline_exceeded",
        )
