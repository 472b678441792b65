"""A request to what the engine needs: rules of the conversation, token ids, room for the reply."""

import asyncio
import copy
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from models.chat import RESERVED, ChatTemplateError, encode_prompt, end_token_ids
from serve.engines.base import Engine, GenerationRequest
from serve.errors import ApiError
from serve.formats import Formats
from serve.generation import Reading
from serve.protocol import (
    ChatRequest,
    CompletionRequest,
    GenerationFields,
    TokenizeRequest,
    Tool,
)
from serve.replies.form import learned_form
from serve.turns import turns_of

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

_WHOLE_FUNCTION = {"description": "", "parameters": {"type": "object", "properties": {}}}


class PromptEncoder:
    """Turns requests into prompts in a thread of its own, so that a long one does not delay other replies."""

    def __init__(self, tokenizer: Any, engine: Engine, default_max_tokens: int) -> None:
        # A copy: a fast tokenizer refuses to encode in one thread while another thread changes its settings.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._end_token_ids = end_token_ids(tokenizer)
        self._engine = engine
        self._default_max_tokens = default_max_tokens
        self._form = learned_form(self._tokenizer)
        self._formats = Formats(self._tokenizer, engine.vocab_size, self._end_token_ids, self._form)
        self._reserved = RESERVED | self._tokenizer.special_tokens_map.keys()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prompt")

    def reading(self, request: GenerationFields, prompt_ids: list[int]) -> Reading | None:
        """How the reply to this prompt is read; None where all of it is text."""
        if not isinstance(request, ChatRequest):
            return None
        functions = {tool.function.name: tool.function.parameters or {} for tool in request.usable_tools()}
        reader = self._form.reader(functions, prompt_ids, must_call=bool(request.required_tools()))
        is_single = request.parallel_tool_calls is False or not self._form.is_parallel
        return Reading(self._form, reader, 1 if is_single else None) if reader is not None else None

    async def chat(self, request: ChatRequest) -> list[GenerationRequest]:
        """The engine's requests, one for each reply; raises ApiError."""
        return await self._in_thread(self._chat, request)

    async def completion(self, request: CompletionRequest) -> list[GenerationRequest]:
        """The same for plain texts: the replies to the first one, then those to the next."""
        return await self._in_thread(self._completion, request)

    async def tokens(self, request: TokenizeRequest) -> list[int]:
        """Token ids of a text, or of messages as a chat's prompt; raises ApiError."""
        return await self._in_thread(self._tokens, request)

    async def _in_thread(self, function: Callable[[Asked], Answer], request: Asked) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, request)

    def _chat(self, request: ChatRequest) -> list[GenerationRequest]:
        prompt_ids = self._chat_ids(request, request.usable_tools())
        return self._requests(request, prompt_ids, "messages", grammar=self._formats.of_chat(request, prompt_ids))

    def _completion(self, request: CompletionRequest) -> list[GenerationRequest]:
        found = []
        for prompt in request.prompts():
            prompt_ids = self._text_ids(prompt, "prompt") if isinstance(prompt, str) else prompt
            if (largest := max(prompt_ids)) >= self._engine.vocab_size:
                raise _unknown_token("prompt", largest, self._engine.vocab_size)
            found += self._requests(request, prompt_ids, "prompt")
        return found

    def _tokens(self, request: TokenizeRequest) -> list[int]:
        if request.messages is not None:
            return self._chat_ids(request, request.tools or [])
        if request.prompt is None:
            raise ApiError(400, "Missing required parameter: prompt or messages.", "prompt")
        return self._text_ids(request.prompt, "prompt") if request.prompt else []

    def _text_ids(self, text: str, param: str) -> list[int]:
        try:
            token_ids = list(self._tokenizer(text)["input_ids"])
        except UnicodeEncodeError as error:
            raise ApiError(400, f"{param}: a character that is no text: {error.reason}.", param) from None
        if not token_ids:
            raise ApiError(400, f"{param}: no token stands for this text; there is nothing to go on with.", param)
        return token_ids

    def _chat_ids(self, request: ChatRequest | TokenizeRequest, used: list[Tool]) -> list[int]:
        """The prompt of a chat in which these tools may be called."""
        messages = turns_of(request.messages or [], self._form)
        if self._form.style is None and (used or any("tool_calls" in message for message in messages)):
            param = "tools" if used else "messages"
            why = "this model's chat template has no place for tools, or writes calls in a way that is not read back"
            raise ApiError(400, f"{param}: {why}.", param)
        variables = request.chat_template_kwargs or {}
        if taken := sorted(variables.keys() & self._reserved):
            param = f"chat_template_kwargs.{taken[0]}"
            raise ApiError(400, f"{param}: the endpoint sets this itself.", param)
        tools = [tool.model_dump(exclude_unset=True) for tool in used]
        whole = [{**tool, "function": {**_WHOLE_FUNCTION, **tool["function"]}} for tool in tools]
        # Some templates need what a tool may be without; others would write it.
        for given in (tools, whole) if tools != whole else (tools,):
            try:
                return encode_prompt(self._tokenizer, messages, given or None, variables or None)
            except ChatTemplateError as error:
                refusal = error
        raise ApiError(400, f"messages: {refusal}.", "messages") from refusal

    def _requests(
        self, request: GenerationFields, prompt_ids: list[int], param: str, grammar: Any = None
    ) -> list[GenerationRequest]:
        """One for each reply; raises ApiError for what does not fit, or the engine cannot do."""
        first = GenerationRequest(
            prompt_ids=prompt_ids,
            max_new_tokens=self._room(request, len(prompt_ids), param),
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            top_k=request.top_k or 0,
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            repetition_penalty=request.repetition_penalty or 1.0,
            logit_bias=self._bias(request),
            num_logprobs=request.num_logprobs(),
            grammar=grammar,
            seed=request.seed,
            end_token_ids=self._end_token_ids,
            adapter=request.model if request.model in self._engine.adapters else None,
        )
        if (refusal := self._engine.refusal(first)) is not None:
            name, why = refusal
            raise ApiError(400, f"{name}: this endpoint's engine cannot do this: {why}.", name)
        return [first, *(_again(first, number) for number in range(1, request.num_replies()))]

    def _bias(self, request: GenerationFields) -> dict[int, float]:
        bias = {int(name): value for name, value in (request.logit_bias or {}).items()}
        if bias and (largest := max(bias)) >= self._engine.vocab_size:
            raise _unknown_token("logit_bias", largest, self._engine.vocab_size)
        return bias

    def _room(self, request: GenerationFields, num_prompt_tokens: int, param: str) -> int:
        """Tokens that the reply may have; raises ApiError when it does not fit in the model's positions."""
        limit_name, limit = request.token_limit()
        most = self._engine.max_positions
        left = most - num_prompt_tokens
        if left >= (1 if limit is None else limit):
            return min(self._default_max_tokens, left) if limit is None else limit
        wanted = "a reply needs at least 1" if limit is None else f"{limit_name} asks for {limit}"
        raise ApiError(
            400,
            f"This model's maximum context length is {most} tokens, and the {param} take{'s' * (param == 'prompt')} "
            f"{num_prompt_tokens}, which leaves {max(left, 0)} for the reply; {wanted}. "
            f"Shorten the {param}{'' if limit is None else f' or lower {limit_name}'}.",
            param if left < 1 else limit_name,
            "context_length_exceeded",
        )


def _again(request: GenerationRequest, number: int) -> GenerationRequest:
    """The request for another reply to the same prompt."""
    seed = None if request.seed is None else request.seed + number
    return dataclasses.replace(request, seed=seed, request_id=f"{request.request_id}-{number}")


def _unknown_token(param: str, token_id: int, vocab_size: int) -> ApiError:
    return ApiError(400, f"{param}: got token {token_id}; the model knows 0 to {vocab_size - 1}.", param)
