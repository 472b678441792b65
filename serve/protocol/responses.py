"""Answers of OpenAI's API, and of the endpoint's own routes."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length"]
ReplyReason = Literal["stop", "length", "tool_calls", "function_call"]


class _Answer(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class CompletionTokensDetails(_Answer):
    """What completion tokens were generated for."""

    reasoning_tokens: int
    """of thinking, with those that open and close it"""


class PromptTokensDetails(_Answer):
    """Where prompt tokens come from."""

    cached_tokens: int
    """that were read before, for another request"""


class Usage(_Answer):
    """Tokens of one request; a generated end-of-turn token counts as a completion token."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    """None where the engine cannot tell."""
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(_Answer):
    """A token that might have been drawn, and the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int] | None
    """Of a token that is a part of a character too; None for one whose bytes the vocabulary does not tell."""


class TokenLogprob(TopLogprob):
    """The token that was drawn, with the likeliest ones in its place. By the model's own scores: before temperature,
    penalties and biases."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(_Answer):
    """The log-probabilities of a reply's tokens."""

    content: list[TokenLogprob]
    refusal: None


class PromptLogprob(_Answer):
    """Of a token of the prompt, or of one that might have stood there; not in OpenAI's API."""

    logprob: float
    rank: int | None
    """From 1, the likeliest; None for a token that is none of the likeliest ones that were asked for."""
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""of each token of a prompt, by the tokens' ids; the first one follows nothing and has null"""


class TextLogprobs(_Answer):
    """The same for a plain text, in that API's form; an offset counts the characters of the answer's text before a
    token. With `echo` the prompt's tokens stand before the reply's; the first one follows nothing and has nulls."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CalledFunction(_Answer):
    """What the model calls; `arguments` is JSON, cut off where finish_reason is `length`."""

    name: str
    arguments: str


class CalledTool(_Answer):
    """One call."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class CalledFunctionDelta(_Answer):
    """The name with the first event of a call, and more of its arguments with each."""

    name: str | None = None
    arguments: str


class CalledToolDelta(_Answer):
    """Some more of a call; unset fields are left out of the JSON."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunctionDelta


class ReplyMessage(_Answer):
    """The assistant's whole turn; its content is null where it is nothing but calls."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning_content: str | None = None
    """Not in OpenAI's API: what the model thought before, where its chat template has a place for that."""
    refusal: None = None
    tool_calls: list[CalledTool] | None = None
    function_call: CalledFunction | None = None
    """The older form, of a request that has `functions`."""


class BestOf(_Answer):
    """How a reply was taken, where there was a choice: not in OpenAI's API."""

    scores: list[float]
    """of every reply that was generated: the discriminator's logits, higher for what is more like the data's"""
    chosen: int
    """the number of the one that was taken, from 0"""


class Choice(_Answer):
    """One of `n` replies."""

    index: int
    message: ReplyMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: ReplyReason
    stop_reason: str | int | None = None
    """Not in OpenAI's API: the stop string, or the one of `stop_token_ids`, that ended the reply."""
    token_ids: list[int] | None = None
    """Not in OpenAI's API: with `return_token_ids`, those of the reply."""
    best_of: BestOf | None = None


class ChatCompletion(_Answer):
    """The answer to a request without `stream`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    """Seconds since 1970."""
    model: str
    system_fingerprint: str | None
    """The key of the release that is served."""
    choices: list[Choice]
    usage: Usage
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None
    """Not in OpenAI's API: what `return_token_ids` and `prompt_logprobs` ask for."""


class Delta(_Answer):
    """What a chunk adds to the assistant's turn; unset fields are left out of the JSON."""

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
    """These four are as in the answers of chats."""


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
    """Tokens that a prompt and its reply may have together."""
    tokens: list[int]
    token_strs: list[str] | None = None
    """With `return_token_strs`: their names in the vocabulary."""


class Model(_Answer):
    """A model that the endpoint serves."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "rayconteur"
    root: str
    parent: str | None = None
    """Not in OpenAI's API, as `root`, which is its own name: the model whose adapter this is."""
    max_model_len: int
    """Not in OpenAI's API: tokens that a prompt and its reply may have together."""


class ModelList(_Answer):
    """The answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(_Answer):
    """The answer of GET /health; `release` is the key of the release that is served. Idle: there is no replica now,
    the next request starts one."""

    status: Literal["ok", "failed", "idle"]
    model: str
    release: str
    problem: str | None = None
    """What is stuck or has stopped, where that is so."""


class Error(_Answer):
    """What was wrong; `param` names the field, `code` the kind for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(_Answer):
    """The body of every answer that is not a success."""

    error: Error
