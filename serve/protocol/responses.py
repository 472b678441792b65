"""Answers of OpenAI's API, and of the endpoint's own routes."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length"]
ReplyReason = Literal["stop", "length", "tool_calls", "function_call"]


class _Answer(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class CompletionTokensDetails(_Answer):
    """Details of the completion tokens."""

    reasoning_tokens: int
    """tokens of thinking, including its opening and closing"""


class PromptTokensDetails(_Answer):
    """Details of the prompt tokens."""

    cached_tokens: int
    """prompt tokens that were cached from an earlier request"""


class Usage(_Answer):
    """Tokens of one request; a generated end-of-turn token counts as a completion token."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    """null if the engine does not report it."""
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(_Answer):
    """A token at this position, and the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int] | None
    """The token's bytes, which may be a part of a character; null if the vocabulary does not contain them."""


class TokenLogprob(TopLogprob):
    """The sampled token, with the most likely ones at its position, by the model's own logits: before temperature,
    penalties and biases."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(_Answer):
    """The log-probabilities of a reply's tokens."""

    content: list[TokenLogprob]
    refusal: None


class PromptLogprob(_Answer):
    """The log-probability of a token at a position of the prompt; not in OpenAI's API."""

    logprob: float
    rank: int | None
    """1 for the most likely token; null if the token is not among the requested most likely ones."""
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""for each token of a prompt, by token id; null for the first one"""


class TextLogprobs(_Answer):
    """Log-probabilities of a text completion; an offset counts the characters before a token in the answer's text.
    With `echo` the prompt's tokens come before the reply's, and the first one has nulls."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CalledFunction(_Answer):
    """A called function; `arguments` is JSON, truncated if finish_reason is `length`."""

    name: str
    arguments: str


class CalledTool(_Answer):
    """A tool call."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class CalledFunctionDelta(_Answer):
    """The function's name in the first event of a call, and the next part of its arguments in each."""

    name: str | None = None
    arguments: str


class CalledToolDelta(_Answer):
    """The next part of a tool call; unset fields are omitted from the JSON."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunctionDelta


class ReplyMessage(_Answer):
    """The assistant's whole turn; `content` is null if it only contains tool calls."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning_content: str | None = None
    """Not in OpenAI's API: the model's reasoning before the text, if its chat template supports reasoning."""
    refusal: None = None
    tool_calls: list[CalledTool] | None = None
    function_call: CalledFunction | None = None
    """The deprecated form, in the answer to a request with `functions`."""


class BestOf(_Answer):
    """How `best_of` chose the reply; not in OpenAI's API."""

    scores: list[float]
    """the discriminator's logit of every generated reply; higher means closer to the replies of the training data"""
    chosen: int
    """the index of the chosen reply"""


class Choice(_Answer):
    """One of `n` replies."""

    index: int
    message: ReplyMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: ReplyReason
    stop_reason: str | int | None = None
    """Not in OpenAI's API: the stop string, or the one of `stop_token_ids`, that ended the reply."""
    token_ids: list[int] | None = None
    """Not in OpenAI's API: with `return_token_ids`, the token ids of the reply."""
    best_of: BestOf | None = None


class Source(_Answer):
    """A passage that the prompt has; not in OpenAI's API."""

    id: int
    """its number in the prompt, as in `[1]`"""
    name: str
    """the document that it is from"""
    text: str


class ChatCompletion(_Answer):
    """The answer to a request without `stream`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    """Seconds since 1970."""
    model: str
    system_fingerprint: str | None
    """The key of the served release."""
    choices: list[Choice]
    usage: Usage
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None
    """Not in OpenAI's API: with `return_token_ids` and `prompt_logprobs`."""
    sources: list[Source] | None = None
    """Not in OpenAI's API: the passages of the endpoint's documents that the prompt has."""


class Delta(_Answer):
    """What a chunk adds to the assistant's turn; unset fields are omitted from the JSON."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CalledToolDelta] | None = None
    function_call: CalledFunctionDelta | None = None


class ChunkChoice(_Answer):
    """What a chunk adds to one of the replies."""

    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None
    finish_reason: ReplyReason | None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None


class ChatCompletionChunk(_Answer):
    """One event of a streamed answer; unset fields are left out of the JSON."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChunkChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = None
    sources: list[Source] | None = None
    """In the last event of each reply."""


class TextChoice(_Answer):
    """One reply to one prompt, or what an event adds to it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: ReplyReason | None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None
    """These four are as in chat completions."""


class TextCompletion(_Answer):
    """The answer of POST /v1/completions without `stream`."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[TextChoice]
    usage: Usage


class TextCompletionChunk(_Answer):
    """One event of a streamed answer; unset fields are left out of the JSON."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[TextChoice]
    usage: Usage | None = None


class Tokens(_Answer):
    """The answer of POST /tokenize."""

    count: int
    max_model_len: int
    """Maximum number of tokens of a prompt and its reply together."""
    tokens: list[int]
    token_strs: list[str] | None = None
    """With `return_token_strs`: the tokens' names in the vocabulary."""


class Model(_Answer):
    """A model that the endpoint serves."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "rayconteur"
    root: str
    parent: str | None = None
    """Not in OpenAI's API, like `root`, the model's own name: the base model of this adapter."""
    max_model_len: int
    """Not in OpenAI's API: maximum number of tokens of a prompt and its reply together."""


class ModelList(_Answer):
    """The answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(_Answer):
    """The answer of GET /health; `release` is the key of the served release. Idle: there is no replica now, and the
    next request starts one."""

    status: Literal["ok", "failed", "idle"]
    model: str
    release: str
    problem: str | None = None
    """The part that is stuck or has stopped, if there is one."""


class Error(_Answer):
    """An error; `param` names the field, and `code` identifies the kind of error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(_Answer):
    """The body of every error answer."""

    error: Error
