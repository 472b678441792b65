"""A chat request to what the engine needs: rules of the conversation, token ids, room for the reply."""

import asyncio
import copy
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from models.chat import ChatTemplateError, Message, check_messages, encode_prompt, end_token_ids
from serve.engines.base import GenerationRequest
from serve.errors import ApiError
from serve.protocol import ChatRequest


class PromptEncoder:
    """Turns requests into prompts in a thread of its own, so that a long one does not delay other replies."""

    def __init__(self, tokenizer: Any, max_positions: int, default_max_tokens: int) -> None:
        # A copy: a fast tokenizer refuses to encode in one thread while another thread changes its settings.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._end_token_ids = end_token_ids(tokenizer)
        self._max_positions = max_positions
        self._default_max_tokens = default_max_tokens
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prompt")

    async def encode(self, request: ChatRequest) -> GenerationRequest:
        """The engine's request; raises ApiError."""
        loop = asyncio.get_running_loop()
        prompt_ids = await loop.run_in_executor(self._thread, self._prompt_ids, request)
        return GenerationRequest(
            prompt_ids=prompt_ids,
            max_new_tokens=self._room(request, len(prompt_ids)),
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=request.seed,
            end_token_ids=self._end_token_ids,
        )

    def _prompt_ids(self, request: ChatRequest) -> list[int]:
        messages = [Message(role=message.role, content=message.text()) for message in request.messages]
        _refuse_bad_turns(messages)
        try:
            return encode_prompt(self._tokenizer, messages)
        except ChatTemplateError as error:
            raise ApiError(400, f"messages: {error}.", "messages") from error

    def _room(self, request: ChatRequest, num_prompt_tokens: int) -> int:
        """Tokens that the reply may have; raises ApiError when it does not fit in the model's positions."""
        limit_name, limit = request.token_limit()
        left = self._max_positions - num_prompt_tokens
        if left >= (1 if limit is None else limit):
            return min(self._default_max_tokens, left) if limit is None else limit
        wanted = "a reply needs at least 1" if limit is None else f"{limit_name} asks for {limit}"
        raise ApiError(
            400,
            f"This model's maximum context length is {self._max_positions} tokens, and the messages take "
            f"{num_prompt_tokens}, which leaves {max(left, 0)} for the reply; {wanted}. "
            f"Shorten the messages{'' if limit is None else f' or lower {limit_name}'}.",
            "messages" if left < 1 else limit_name,
            "context_length_exceeded",
        )


def _refuse_bad_turns(messages: list[Message]) -> None:
    """Raise ApiError, naming the message and the field, for a conversation that cannot be answered."""
    fault = _turn_fault(messages)
    if fault is not None:
        # The first n messages are faulty from some n on: that n is the faulty message.
        last = bisect_left(range(1, len(messages)), True, key=lambda n: _turn_fault(messages[:n]) is not None)
        field = "role" if messages[last]["content"].strip() else "content"
        raise ApiError(400, f"messages[{last}].{field}: {fault}.", f"messages[{last}].{field}")
    if messages[-1]["role"] == "assistant":
        param = f"messages[{len(messages) - 1}].role"
        raise ApiError(400, f"{param}: the last message is the assistant's; there is nothing to reply to.", param)


def _turn_fault(messages: list[Message]) -> str | None:
    try:
        check_messages(messages)
    except ValueError as error:
        return str(error)
    return None
