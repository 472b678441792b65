"""vLLM's paged, continuous batching on GPUs, through the client that Ray Serve's `LLMServer` starts.

engine = VLLMEngine(client, loop)    # vllm.v1.engine.async_llm.AsyncLLM, as serve/deployment/vllm_replica.py has
async for event in engine.submit(GenerationRequest(prompt_ids, max_new_tokens=64)): ...

Nothing here needs vLLM before a request comes.
"""

import asyncio
import concurrent.futures
import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve.engines.base import Engine, EngineError, EngineHealth, Event, GenerationRequest, TokenEvent, tokens_of
from serve.engines.vllm_settings import sampling_arguments

# vLLM silently raises a lower temperature to this one.
_LOWEST_TEMPERATURE = 0.01


@dataclass
class _Stream:
    """An open request, the queue of its events, and the task that fetches them."""

    request: GenerationRequest
    loop: asyncio.AbstractEventLoop
    events: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)
    fetching: "concurrent.futures.Future[None] | None" = None

    def deliver(self, *events: Event) -> None:
        """May be called from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing reads the stream
            for event in events:
                self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class VLLMEngine(Engine):
    """Decodes up to `max_active` requests together; further ones wait. Long prompts are read in parts meanwhile.

    Biases are applied before penalties. If vLLM's process dies, every open request fails, and the engine has stopped.
    """

    def __init__(
        self, client: Any, loop: asyncio.AbstractEventLoop, adapters: Mapping[str, str] | None = None
    ) -> None:
        """`client` runs in `loop`, which may differ from the requests' loop, and was started with `adapters`, folders
        of LoRA adapters by name."""
        self._client = client
        self._loop = loop
        self._adapters = dict(adapters or {})
        self._vocab_size = int(client.model_config.get_vocab_size())
        self._streams: dict[str, _Stream] = {}
        self._is_closed = False

    @property
    def max_positions(self) -> int:
        return int(self._client.model_config.max_model_len)

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def max_active(self) -> int:
        return int(self._client.vllm_config.scheduler_config.max_num_seqs)

    @property
    def adapters(self) -> Sequence[str]:
        return tuple(self._adapters)

    def refusal(self, request: GenerationRequest) -> tuple[str, str] | None:
        if not request.is_greedy and request.temperature < _LOWEST_TEMPERATURE:
            return "temperature", f"vLLM's minimum is {_LOWEST_TEMPERATURE}; use 0 for the likeliest token"
        if request.num_prompt_logprobs is not None:
            return "echo", "vLLM's log-probabilities of prompts are not supported; use an endpoint with engine torch"
        if request.bad_words:
            return "bad_words", "not supported with vLLM; use an endpoint with engine torch"
        if request.grammar and request.num_logprobs is not None:
            return "logprobs", (
                "vLLM's log-probabilities cover only tokens that the format or the required call allows; "
                "remove one of the two"
            )
        return None

    async def submit(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        self._refuse(request)
        stream = self._streams[request.request_id] = _Stream(request, asyncio.get_running_loop())
        stream.fetching = asyncio.run_coroutine_threadsafe(self._fetch(stream), self._loop)
        try:
            async for event in tokens_of(stream.events):
                yield event
        finally:
            self._end(stream)

    def cancel(self, request_id: str) -> None:
        if (stream := self._streams.get(request_id)) is not None:
            stream.deliver(None)
            self._end(stream)

    def health(self) -> EngineHealth:
        num_open = len(self._streams)
        is_alive = not self._is_closed and not self._client.errored
        return EngineHealth(is_alive, min(num_open, self.max_active), max(0, num_open - self.max_active))

    def close(self) -> None:
        self._is_closed = True
        for stream in list(self._streams.values()):
            stream.deliver(EngineError("the engine has stopped"))
            self._end(stream)
        self._client.shutdown()

    def _refuse(self, request: GenerationRequest) -> None:
        if self._is_closed:
            raise EngineError("the engine has stopped")
        self.check_fits(request)
        self.check_tokens(request)
        if request.request_id in self._streams:
            raise ValueError(f"request_id: {request.request_id!r} is already being generated")

    def _end(self, stream: _Stream) -> None:
        if self._streams.get(stream.request.request_id) is stream:
            del self._streams[stream.request.request_id]
        assert stream.fetching is not None
        stream.fetching.cancel()

    async def _fetch(self, stream: _Stream) -> None:
        """Pass vLLM's outputs of a request to its stream as they arrive; runs in the client's loop."""
        request = stream.request
        try:
            async with contextlib.aclosing(self._ask(request)) as outputs:
                async for output in outputs:
                    stream.deliver(*_events(output.outputs[0], request, output.num_cached_tokens))
        except asyncio.CancelledError:
            # vLLM aborts it too, but not while it is still accepting the request.
            with contextlib.suppress(Exception):
                await self._client.abort(request.request_id)
            raise
        except Exception as error:
            failure = EngineError(f"vLLM could not generate the next token: {error}")
            failure.__cause__ = error
            stream.deliver(failure)

    def _ask(self, request: GenerationRequest) -> Any:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        grammar = StructuredOutputsParams(grammar=request.grammar.lark) if request.grammar else None
        parameters = SamplingParams(
            **sampling_arguments(request), structured_outputs=grammar, output_kind=RequestOutputKind.DELTA
        )
        adapter = None
        if request.adapter is not None:
            number = list(self._adapters).index(request.adapter) + 1
            adapter = LoRARequest(request.adapter, number, self._adapters[request.adapter])
        return self._client.generate(
            tokens_input(request.prompt_ids), parameters, request.request_id, lora_request=adapter
        )


def _events(output: Any, request: GenerationRequest, num_cached: int | None) -> Iterator[Event]:
    """The events of a `vllm.outputs.CompletionOutput`: its tokens, and an abnormal end."""
    reason = output.finish_reason
    is_whole = reason in (None, "stop", "length")
    token_ids = list(output.token_ids)
    for place, token_id in enumerate(token_ids):
        is_last = is_whole and place == len(token_ids) - 1
        logprobs = () if request.num_logprobs is None else _logprobs(output.logprobs[place], token_id, request)
        event = TokenEvent(token_id, reason if is_last else None, *logprobs)
        yield event._replace(num_cached=num_cached)
    if reason == "abort":
        yield None
    elif not is_whole or (reason is not None and not token_ids):
        yield EngineError(f"vLLM ended the reply: {reason}")


def _logprobs(
    found: dict[int, Any], token_id: int, request: GenerationRequest
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Those of the sampled token and of the likeliest ones, which vLLM returns together."""
    likeliest = sorted(found.items(), key=lambda item: item[1].rank)[: request.num_logprobs]
    return found[token_id].logprob, tuple((each, told.logprob) for each, told in likeliest)
