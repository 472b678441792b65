"""Requests to engine requests: conversation rules, token ids, maximum reply length."""

import asyncio
import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from models.chat import RESERVED, ChatTemplateError, encode_prompt, end_token_ids
from models.chat.knowledge import Passage, with_knowledge
from serve.engines.base import Engine, GenerationRequest
from serve.grammar.formats import Formats
from serve.knowledge.retrieval import Knowledge
from serve.parsing.form import learned_form
from serve.protocol.errors import ApiError
from serve.protocol.messages import ChatMessage, Tool
from serve.protocol.requests import ChatRequest, CompletionRequest, GenerationFields, TokenizeRequest
from serve.replies.conversation_rules import turns_of
from serve.replies.generation import Reading

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

_WHOLE_FUNCTION = {"description": "", "parameters": {"type": "object", "properties": {}}}
# While one prompt takes seconds, three threads are left for others.
_THREADS = 4
# The maximum number of renderings to find the message that a template refuses.
_MAX_TRIED = 64


class PromptEncoder:
    """Converts requests to prompts in its own threads, so that a long one does not delay other replies."""

    def __init__(
        self, tokenizer: Any, engine: Engine, default_max_tokens: int, knowledge: Knowledge | None = None
    ) -> None:
        # A copy: a fast tokenizer fails to encode in one thread while another thread changes its settings.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._end_token_ids = end_token_ids(tokenizer)
        self._engine = engine
        self._default_max_tokens = default_max_tokens
        self._knowledge = knowledge
        self._form = learned_form(self._tokenizer)
        self._formats = Formats(self._tokenizer, engine.vocab_size, self._end_token_ids, self._form)
        self._reserved = RESERVED | self._tokenizer.special_tokens_map.keys()
        self._max_letters = max_letters(self._tokenizer, engine.max_positions)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="prompt")

    def reading(self, request: GenerationFields, prompt_ids: list[int]) -> Reading | None:
        """How to parse the reply to this prompt; None if everything is text."""
        if not isinstance(request, ChatRequest):
            return None
        functions = {tool.function.name: tool.function.parameters or {} for tool in request.usable_tools()}
        reader = self._form.reader(functions, prompt_ids, must_call=bool(request.required_tools()))
        is_single = request.parallel_tool_calls is False or request.calls_functions() or not self._form.is_parallel
        return Reading(self._form, reader, 1 if is_single else None) if reader is not None else None

    def echoes(self, request: GenerationFields, wanted: list[GenerationRequest]) -> list[str | None]:
        """The text that each answer starts with, if it echoes the prompt."""
        if isinstance(request, ChatRequest) and request.echo and request.continue_final_message:
            return [(request.messages[-1].text() or "").lstrip()] * len(wanted)
        if not isinstance(request, CompletionRequest) or not request.echo:
            return [None] * len(wanted)
        texts = [
            prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt, skip_special_tokens=True)
            for prompt in request.prompts()
        ]
        return [text for text in texts for _ in range(request.num_replies())]

    async def passages(self, request: ChatRequest) -> list[Passage]:
        """The passages that the last questions of a chat are about; raises ApiError if there are none to ask for."""
        if self._knowledge is None and request.knowledge:
            raise ApiError(
                400, "knowledge: this endpoint has no documents (serve.knowledge); remove it.", "knowledge"
            )
        if self._knowledge is None or request.knowledge is False:
            return []
        asked = [message.text() or "" for message in request.messages if message.role == "user"]
        return await self._in_thread(self._knowledge.find, asked)

    async def chat(self, request: ChatRequest, passages: Sequence[Passage] = ()) -> list[GenerationRequest]:
        """The engine requests, one for each reply; the prompt has the passages. Raises ApiError."""
        encode = functools.partial(self._chat_ids, used=request.usable_tools(), passages=passages)
        prompt_ids = self._cut(request, await self._in_thread(encode, request))
        return self._requests(request, prompt_ids, "messages", await self._grammar(request, prompt_ids))

    async def completion(self, request: CompletionRequest) -> list[GenerationRequest]:
        """The same for text completions: the replies to the first prompt, then those to the next."""
        found = []
        for whole in await self._in_thread(self._prompts_of_texts, request):
            prompt_ids = self._cut(request, whole)
            found += self._requests(request, prompt_ids, "prompt", await self._grammar(request, prompt_ids))
        return found

    async def _grammar(self, request: GenerationFields, prompt_ids: list[int]) -> Any:
        draft = await asyncio.get_running_loop().run_in_executor(self._threads, self._formats.of, request, prompt_ids)
        if draft is None:
            return None
        for name in ("ignore_eos", "min_tokens"):
            if getattr(request, name):
                raise ApiError(400, f"{name}: the format decides where the reply ends; remove one of the two.", name)
        return await self._formats.compiled(draft)

    async def tokens(self, request: TokenizeRequest) -> list[int]:
        """The token ids of a text, or of messages as a chat prompt; raises ApiError."""
        return await self._in_thread(self._tokens, request)

    def answers(self) -> "Future[int]":
        """A future that is done when one of the threads is free."""
        return self._threads.submit(int)

    def parts(self) -> "dict[str, Callable[[], Future[int]]]":
        """The parts that must work for requests to reach the engine (serve/api/watch.py)."""
        return {
            "the prompt threads": self.answers,
            "the grammar thread": self._formats.answers,
        }

    async def _in_thread(self, function: Callable[[Asked], Answer], request: Asked) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, request)

    def _prompts_of_texts(self, request: CompletionRequest) -> list[list[int]]:
        found = []
        for prompt in request.prompts():
            begins = request.add_special_tokens is not False
            prompt_ids = self._text_ids(prompt, "prompt", begins) if isinstance(prompt, str) else prompt
            if (largest := max(prompt_ids)) >= self._engine.vocab_size:
                raise _unknown_token("prompt", largest, self._engine.vocab_size)
            found.append(prompt_ids)
        return found

    def _tokens(self, request: TokenizeRequest) -> list[int]:
        if request.messages is not None:
            return self._chat_ids(request, request.tools or [])
        if request.prompt is None:
            raise ApiError(400, "Missing required parameter: prompt or messages.", "prompt")
        begins = request.add_special_tokens is not False
        return self._text_ids(request.prompt, "prompt", begins) if request.prompt else []

    def names(self, token_ids: list[int]) -> list[str]:
        """The tokens' names in the vocabulary."""
        return [str(name) for name in self._tokenizer.convert_ids_to_tokens(token_ids)]

    def _cut(self, request: GenerationFields, prompt_ids: list[int]) -> list[int]:
        """The prompt, truncated from the left to the request's `truncate_prompt_tokens`."""
        most = request.truncate_prompt_tokens
        if most is None:
            return prompt_ids
        room = max(1, self._engine.max_positions - max(1, request.token_limit()[1] or 1))
        return prompt_ids[-(room if most < 0 else most) :]

    def _check_letters(self, count: int, param: str) -> None:
        """Raise ApiError for a text that is certainly too long, before encoding it for seconds."""
        if count > self._max_letters:
            raise ApiError(
                400,
                f"This model's maximum context length is {self._engine.max_positions} tokens, and the {param} "
                f"{'has' if param == 'prompt' else 'have'} {count} characters, too many for that. "
                f"Shorten the {param}.",
                param,
                "context_length_exceeded",
            )

    def _text_ids(self, text: str, param: str, begins: bool = True) -> list[int]:
        self._check_letters(len(text), param)
        try:
            token_ids = list(self._tokenizer(text, add_special_tokens=begins)["input_ids"])
        except UnicodeEncodeError as error:
            raise ApiError(400, f"{param}: invalid character: {error.reason}.", param) from None
        if not token_ids:
            raise ApiError(400, f"{param}: this text has no tokens; there is nothing to continue.", param)
        return token_ids

    def _chat_ids(
        self, request: ChatRequest | TokenizeRequest, used: list[Tool], passages: Sequence[Passage] = ()
    ) -> list[int]:
        """The token ids of a chat's prompt with these tools and passages."""
        given = request.messages or []
        self._check_letters(sum(len((message.text() or "").strip()) for message in given), "messages")
        continues = bool(request.continue_final_message)
        if continues and given[-1].role != "assistant":
            words = (
                "continue_final_message: the last message is not the assistant's, so there is nothing to continue."
            )
            raise ApiError(400, words, "continue_final_message")
        messages = with_knowledge(turns_of(given, self._form), passages)
        calls = [number for number, message in enumerate(given) if message.tool_calls or message.function_call]
        if self._form.style is None and (used or calls):
            given_as = "functions" if isinstance(request, ChatRequest) and request.functions else "tools"
            param = given_as if used else f"messages[{calls[0]}].tool_calls"
            why = "this model's chat template has no place for tools, or writes calls in a way that is not read back"
            raise ApiError(400, f"{param}: {why}.", param)
        variables = self._variables(request)
        tools = [tool.model_dump(exclude_unset=True, exclude={"cache_control"}) for tool in used]
        whole = [{**tool, "function": {**_WHOLE_FUNCTION, **tool["function"]}} for tool in tools]
        # Some templates need fields that a tool may omit; others would write them.
        for shown in (tools, whole) if tools != whole else (tools,):
            try:
                opens = request.add_generation_prompt is not False
                return encode_prompt(self._tokenizer, messages, shown or None, variables or None, continues, opens)
            except ChatTemplateError as error:
                refusal = error
        param = self._refused(given, tools, variables)
        raise ApiError(400, f"{param}: {refusal}.", param) from refusal

    def _variables(self, request: ChatRequest | TokenizeRequest) -> dict[str, Any]:
        """The variables of the chat template in the request."""
        variables = dict(request.chat_template_kwargs or {})
        if taken := sorted(variables.keys() & self._reserved):
            param = f"chat_template_kwargs.{taken[0]}"
            raise ApiError(400, f"{param}: the endpoint sets this variable itself; remove it.", param)
        if isinstance(request, ChatRequest) and request.documents:
            if "documents" not in self._tokenizer.get_chat_template():
                why = "this model's chat template has no place for them; write them into a message"
                raise ApiError(400, f"documents: {why}.", "documents")
            variables["documents"] = request.documents
        effort = request.reasoning_effort if isinstance(request, ChatRequest) else None
        if effort is None or not self._form.thinks:
            return variables
        template = self._tokenizer.get_chat_template()
        if effort == "none" and "enable_thinking" in template:
            return {"enable_thinking": False, **variables}
        if effort != "none" and "reasoning_effort" in template:
            return {"reasoning_effort": effort, **variables}
        why = "this model's chat template has no reasoning levels" if effort != "none" else "it cannot be turned off"
        raise ApiError(400, f"reasoning_effort: got {effort!r}; {why}. Remove the field.", "reasoning_effort")

    def _refused(self, messages: list[ChatMessage], tools: list[Any], variables: dict[str, Any]) -> str:
        """The first message that makes the template refuse, if it can be found."""
        for count in range(len(messages) - 1, max(0, len(messages) - _MAX_TRIED), -1):
            try:
                encode_prompt(self._tokenizer, turns_of(messages[:count], self._form), tools or None, variables)
            except (ChatTemplateError, ApiError):
                continue
            return f"messages[{count}]"
        return "messages"

    def _requests(
        self, request: GenerationFields, prompt_ids: list[int], param: str, grammar: Any = None
    ) -> list[GenerationRequest]:
        """One request for each reply; raises ApiError if it does not fit, or the engine does not support it."""
        if request.prompt_logprobs is not None and request.stream:
            raise ApiError(400, "prompt_logprobs: not supported with stream; remove one of them.", "prompt_logprobs")
        most = self._room(request, len(prompt_ids), param)
        if (request.min_tokens or 0) > most:
            why = f"got {request.min_tokens}; the reply has at most {most} tokens"
            raise ApiError(400, f"min_tokens: {why}.", "min_tokens")
        first = GenerationRequest(
            prompt_ids=prompt_ids,
            max_new_tokens=max(1, most),
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            top_k=max(0, request.top_k or 0),
            min_p=request.min_p or 0.0,
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            repetition_penalty=request.repetition_penalty or 1.0,
            logit_bias=self._bias(request),
            num_logprobs=request.num_logprobs(),
            num_prompt_logprobs=request.num_prompt_logprobs(),
            grammar=grammar,
            seed=request.seed,
            end_token_ids=self._ends(request),
            min_new_tokens=request.min_tokens or 0,
            allowed_token_ids=self._allowed(request),
            bad_words=self._bad_words(request),
            adapter=request.model if request.model in self._engine.adapters else None,
        )
        if (refusal := self._engine.refusal(first)) is not None:
            name, why = refusal
            raise ApiError(400, f"{name}: this endpoint's engine does not support it: {why}.", name)
        return [first, *(_again(first, number) for number in range(1, request.num_replies()))]

    def _ends(self, request: GenerationFields) -> frozenset[int]:
        more = frozenset(request.stop_token_ids or ())
        if more and (largest := max(more)) >= self._engine.vocab_size:
            raise _unknown_token("stop_token_ids", largest, self._engine.vocab_size)
        return more if request.ignore_eos else more | self._end_token_ids

    def _allowed(self, request: GenerationFields) -> frozenset[int] | None:
        allowed = request.allowed_token_ids
        if allowed is None:
            return None
        if (largest := max(allowed)) >= self._engine.vocab_size:
            raise _unknown_token("allowed_token_ids", largest, self._engine.vocab_size)
        return frozenset(allowed)

    def _bad_words(self, request: GenerationFields) -> tuple[tuple[int, ...], ...]:
        """The words' token ids, with and without a space before them."""
        written = (text for word in request.bad_words or () for text in (word, f" {word}"))
        return tuple(tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"]) for text in written)

    def _bias(self, request: GenerationFields) -> dict[int, float]:
        bias = {int(name): value for name, value in (request.logit_bias or {}).items()}
        if bias and (largest := max(bias)) >= self._engine.vocab_size:
            raise _unknown_token("logit_bias", largest, self._engine.vocab_size)
        return bias

    def _room(self, request: GenerationFields, num_prompt_tokens: int, param: str) -> int:
        """The maximum number of tokens of the reply; raises ApiError if prompt and reply exceed the model's
        positions.
        """
        limit_name, limit = request.token_limit()
        most = self._engine.max_positions
        left = most - num_prompt_tokens
        if left >= max(1, 1 if limit is None else limit):
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
    """The engine request for another reply to the same prompt."""
    seed = None if request.seed is None else request.seed + number
    return dataclasses.replace(
        request, seed=seed, num_prompt_logprobs=None, request_id=f"{request.request_id}-{number}"
    )


def max_letters(tokenizer: Any, max_tokens: int) -> int:
    """The maximum number of characters of a text with `max_tokens` tokens: by the vocabulary's longest name, and more
    if the tokenizer normalizes texts.
    """
    longest = max(map(len, tokenizer.get_vocab()), default=1)
    normalizes = tokenizer.backend_tokenizer.normalizer is not None
    return max_tokens * longest * (4 if normalizes else 1)


def _unknown_token(param: str, token_id: int, vocab_size: int) -> ApiError:
    return ApiError(400, f"{param}: got token id {token_id}; the model's are 0 to {vocab_size - 1}.", param)
