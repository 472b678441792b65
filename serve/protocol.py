"""Requests and responses of OpenAI's chat completions API, as far as this endpoint serves it.

A field that is not declared here is refused by name: a client never believes that an ignored setting worked.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

FinishReason = Literal["stop", "length"]

# Names that pydantic puts into an error's location for the branches of a union; they name no field.
TEXT_TAG = "as text"
LIST_TAG = "as list"


def _text_or_list(value: Any) -> str | None:
    if isinstance(value, str):
        return TEXT_TAG
    return LIST_TAG if isinstance(value, list) else None


def _one_or_many(rule: str) -> Discriminator:
    return Discriminator(_text_or_list, custom_error_type="text_or_list", custom_error_message=rule)


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_Request):
    """One part of a message's content; this endpoint reads text alone."""

    type: Literal["text"]
    text: str


class ChatMessage(_Request):
    """One turn of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[
        Annotated[str, Tag(TEXT_TAG)] | Annotated[list[TextPart], Field(min_length=1, max_length=256), Tag(LIST_TAG)],
        _one_or_many("Input should be a string or a list of text parts"),
    ]

    def text(self) -> str:
        """The content as one string: parts stand on lines of their own."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class StreamOptions(_Request):
    """What a stream carries besides the text."""

    include_usage: bool | None = None


StopString = Annotated[str, Field(min_length=1, max_length=256)]


class ChatRequest(_Request):
    """The body of POST /v1/chat/completions; null means the default, as in OpenAI's API."""

    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096), FailFast()]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Default 1; 0 takes the likeliest token each time."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens to generate at most; the older name of `max_completion_tokens`."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: (
        Annotated[
            Annotated[StopString, Tag(TEXT_TAG)] | Annotated[list[StopString], Field(max_length=4), Tag(LIST_TAG)],
            _one_or_many("Input should be a string or a list of up to 4 strings"),
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    """The same seed and request give the same reply from the same release and kind of machine, as far as an engine's
    sums do not depend on what it decodes beside it: OpenVINO's do in other precisions than fp32."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None

    @field_validator("max_completion_tokens")
    @classmethod
    def _one_limit(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("max_tokens") is not None:
            raise PydanticCustomError("conflict", "Give either max_tokens or max_completion_tokens, not both")
        return value

    @field_validator("stream_options")
    @classmethod
    def _only_in_a_stream(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise PydanticCustomError("conflict", "Only a request with stream true may have stream_options")
        return value

    def stop_strings(self) -> list[str]:
        """`stop` as a list, empty when there is none."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def token_limit(self) -> tuple[str, int | None]:
        """The name of the field that limits the reply, and its value in tokens."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens


class Usage(BaseModel):
    """Tokens of one request; a generated end-of-turn token counts as a completion token."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ReplyMessage(BaseModel):
    """The assistant's whole turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The only choice: `n` is 1."""

    index: Literal[0] = 0
    message: ReplyMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """The answer to a request without `stream`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    """Seconds since 1970."""
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    """What a chunk adds to the assistant's turn; unset fields are left out of the JSON."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """The only choice of a chunk."""

    index: int
    delta: Delta
    logprobs: None
    finish_reason: FinishReason | None


class ChatCompletionChunk(BaseModel):
    """One event of a streamed answer; unset fields are left out of the JSON."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class Model(BaseModel):
    """A model that the endpoint serves."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "rayconteur"


class ModelList(BaseModel):
    """The answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """The answer of GET /health; `release` is the key of the release that is served."""

    status: Literal["ok", "failed"]
    model: str
    release: str


class Error(BaseModel):
    """What was wrong; `param` names the field, `code` the kind for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: Error
