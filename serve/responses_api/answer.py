"""Answers of the Responses API."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve.protocol.responses import Source, TokenLogprob

Status = Literal["in_progress", "completed", "incomplete", "failed"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class _Part(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class OutputText(_Part):
    """Text of the model."""

    type: Literal["output_text"] = "output_text"
    text: str = ""
    annotations: list[Any] = Field(default_factory=list, max_length=0)
    logprobs: list[TokenLogprob] = []
    """Empty unless requested."""


class OutputMessage(_Part):
    """A message of the model."""

    type: Literal["message"] = "message"
    id: str
    role: Literal["assistant"] = "assistant"
    status: ItemStatus
    content: list[OutputText]


class ReasoningText(_Part):
    """The model's thinking, as generated."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str = ""


class OutputReasoning(_Part):
    """The thinking before a message or a call; it has no summary."""

    type: Literal["reasoning"] = "reasoning"
    id: str
    status: ItemStatus
    summary: list[Any] = Field(default_factory=list, max_length=0)
    content: list[ReasoningText]
    encrypted_content: None = None


class OutputCall(_Part):
    """A function call; `arguments` is JSON, truncated if the status is `incomplete`."""

    type: Literal["function_call"] = "function_call"
    id: str
    call_id: str
    """The `call_id` for its result, a `function_call_output`."""
    name: str
    arguments: str
    status: ItemStatus


OutputItem = OutputMessage | OutputReasoning | OutputCall


class InputTokensDetails(_Part):
    """Details of the input tokens."""

    cached_tokens: int | None
    """Tokens that were cached from an earlier request; null if the engine does not report it."""


class OutputTokensDetails(_Part):
    """Details of the generated tokens."""

    reasoning_tokens: int


class ResponseUsage(_Part):
    """Tokens of one request."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(_Part):
    """Why a reply failed after its stream had started."""

    code: Literal["server_error", "invalid_prompt"]
    message: str


class IncompleteDetails(_Part):
    """Why a reply is not complete."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseText(_Part):
    """The format of the reply."""

    format: dict[str, Any]
    verbosity: str | None = None


class ResponseReasoning(_Part):
    """The requested reasoning settings."""

    effort: str | None = None
    summary: str | None = None


class Response(_Part):
    """The answer of POST /v1/responses, with the settings that it was generated with."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    """Seconds since 1970."""
    completed_at: int | None = None
    status: Status
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    output: list[OutputItem]
    usage: ResponseUsage | None = None
    model: str
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    temperature: float
    top_p: float
    top_logprobs: int
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    text: ResponseText
    reasoning: ResponseReasoning
    truncation: Literal["auto", "disabled"]
    metadata: dict[str, str]
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    background: Literal[False] = False
    previous_response_id: None = None
    """Nothing is stored."""
    sources: list[Source] | None = None
    """Not in OpenAI's API: the passages of the endpoint's documents that the prompt has."""
