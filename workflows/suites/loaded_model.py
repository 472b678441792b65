"""An engine over a model that is loaded already, such as the one of a training: greedy replies, many in one batch."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from models.base.sizes import max_positions
from models.generation import evaluating, greedy_replies, own_attention
from serve.engines.base import Engine, EngineError, EngineHealth, GenerationRequest, TokenEvent

_MAX_BATCH = 32
# Requests that arrive within this time are answered together.
_WAIT_S = 0.05


class LoadedModelEngine(Engine):
    """Answers requests in batches, in the thread that waits for them; nothing else may use the model meanwhile."""

    def __init__(self, model: Any) -> None:
        """`model` is transformers' or PEFT's; it is as before once a batch is answered."""
        self._model = model
        self._waiting: deque[tuple[GenerationRequest, asyncio.Future[list[int]]]] = deque()

    @property
    def max_positions(self) -> int:
        return max_positions(self._model.config)

    @property
    def vocab_size(self) -> int:
        return int(self._model.config.get_text_config().vocab_size)

    @property
    def max_active(self) -> int:
        return _MAX_BATCH

    async def submit(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        self.check_fits(request)
        if not request.is_greedy or request.changes_scores or request.num_logprobs is not None:
            raise EngineError("a model in training only generates greedy replies")
        loop = asyncio.get_running_loop()
        answered = loop.create_future()
        if not self._waiting:
            loop.call_later(_WAIT_S, self._answer)
        self._waiting.append((request, answered))
        token_ids = await answered
        for place, token_id in enumerate(token_ids):
            is_last = place == len(token_ids) - 1
            reason = "stop" if token_id in request.end_token_ids else "length"
            yield TokenEvent(token_id, reason if is_last else None)  # type: ignore[arg-type]

    def cancel(self, request_id: str) -> None:
        """Batches end by themselves."""

    def health(self) -> EngineHealth:
        return EngineHealth(True, 0, len(self._waiting))

    def close(self) -> None:
        """Nothing to stop: the model belongs to others."""

    def _answer(self) -> None:
        """All waiting requests; prompts of similar length together, since shorter ones are padded."""
        waiting = sorted(self._waiting, key=lambda each: (each[0].max_new_tokens, len(each[0].prompt_ids)))
        self._waiting.clear()
        for batch in _batches(waiting):
            requests = [request for request, _ in batch]
            try:
                with evaluating(self._model, own_attention(self._model)):
                    replies = greedy_replies(
                        self._model,
                        [request.prompt_ids for request in requests],
                        requests[0].max_new_tokens,
                        sorted(requests[0].end_token_ids),
                    )
            except Exception as error:
                for _, answered in batch:
                    answered.set_exception(error)
                continue
            for (_, answered), reply in zip(batch, replies, strict=True):
                answered.set_result(reply)


def _batches(waiting: Sequence[Any]) -> Sequence[Sequence[Any]]:
    """Groups of requests with the same limit and end tokens."""
    groups: dict[Any, list[list[Any]]] = {}
    for each in waiting:
        group = groups.setdefault((each[0].max_new_tokens, each[0].end_token_ids), [[]])
        if len(group[-1]) == _MAX_BATCH:
            group.append([])
        group[-1].append(each)
    return [batch for group in groups.values() for batch in group]
