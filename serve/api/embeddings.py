"""POST /v1/embeddings: the mean of the model's last hidden states over the tokens of a text, of length 1.

A language model is not trained to embed: texts about one subject are close to each other only as far as its hidden
states represent that. Engines without access to hidden states refuse.
"""

import asyncio
import base64
import struct
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, Field, field_validator
from pydantic_core import PydanticCustomError

from serve.engines.base import Engine, EngineError
from serve.protocol.base import RequestModel
from serve.protocol.errors import CLIENT_CLOSED_REQUEST, ApiError
from serve.protocol.requests import TokenizeRequest
from serve.protocol.responses import CompletionTokensDetails, Usage
from serve.replies.prompt import PromptEncoder

MAX_TEXTS = 2048

_Text = Annotated[str, Field(min_length=1)] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
_SEVERAL = Field(min_length=1, max_length=MAX_TEXTS)


def _is_text(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value)
    return isinstance(value, list) and bool(value) and all(type(token) is int and token >= 0 for token in value)


class EmbeddingsRequest(RequestModel):
    """The body of POST /v1/embeddings: a text, or its token ids, or several of them."""

    model: Annotated[str, Field(min_length=1)]
    input: Any
    encoding_format: Literal["float", "base64"] | None = None
    """With base64: 32-bit floats, little-endian."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Only the model's own size is supported."""
    user: Annotated[str, Field(max_length=512)] | None = None
    """Accepted and ignored."""

    @field_validator("input", mode="plain", json_schema_input_type=_Text | Annotated[list[_Text], _SEVERAL])
    @classmethod
    def _texts_or_token_ids(cls, value: Any) -> Any:
        several = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
        if len(several) <= MAX_TEXTS and all(_is_text(text) for text in several):
            return value
        raise PydanticCustomError(
            "input", "Input should be a text, a list of token ids, or a list of up to {most} of these, none empty",
            {"most": MAX_TEXTS},
        )  # fmt: skip

    def texts(self) -> list[str | list[int]]:
        """One or more texts or lists of token ids."""
        several = isinstance(self.input, list) and not isinstance(self.input[0], int)
        return self.input if several else [self.input]


class Embedding(BaseModel):
    """The embedding of one text: a list of numbers, or base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(BaseModel):
    """Tokens of all texts."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """The answer of POST /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


class EmbeddingsReply:
    """Has what the log and the rate limits need, like `serve.replies.completion.Reply`."""

    def __init__(self, engine: Engine, body: EmbeddingsRequest, texts: list[list[int]]) -> None:
        """`texts` are the token ids of `body`'s texts, from `tokens_of_texts`."""
        self.id = f"embd-{uuid4().hex}"
        self.status = CLIENT_CLOSED_REQUEST  # until the answer is complete or fails
        self._engine = engine
        self._body = body
        self._texts = texts
        self._num_read = 0

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all texts."""
        return sum(map(len, self._texts))

    def usage(self) -> Usage:
        """The tokens that were read so far."""
        return Usage(
            prompt_tokens=self._num_read,
            completion_tokens=0,
            total_tokens=self._num_read,
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=0),
        )

    async def completion(self, max_seconds: float) -> Embeddings:
        """The answer. Raises ApiError."""
        try:
            async with asyncio.timeout(max_seconds):
                found = [await self._embedding(place, text) for place, text in enumerate(self._texts)]
        except TimeoutError:
            raise self._failed(
                504,
                f"The texts took longer than the limit of {max_seconds:g} seconds; {self._num_read} of "
                f"{self.num_tokens} tokens were read. Send fewer texts per request.",
                "deadline_exceeded",
            ) from None
        except EngineError as error:
            if self._engine.health().is_alive:
                raise self._failed(500, f"The embeddings could not be computed: {error}.") from error
            raise self._failed(503, f"{error}.", "engine_lost") from error
        self.status = 200
        usage = EmbeddingsUsage(prompt_tokens=self.num_tokens, total_tokens=self.num_tokens)
        return Embeddings(data=found, model=self._body.model, usage=usage)

    def _failed(self, status: int, message: str, code: str | None = None) -> ApiError:
        self.status = status
        return ApiError(status, message, code=code)

    async def _embedding(self, place: int, text: list[int]) -> Embedding:
        model = self._body.model
        vector = await self._engine.embed(text, model if model in self._engine.adapters else None)
        self._num_read += len(text)
        if self._body.encoding_format != "base64":
            return Embedding(index=place, embedding=vector)
        packed = struct.pack(f"<{len(vector)}f", *vector)
        return Embedding(index=place, embedding=base64.b64encode(packed).decode())


async def tokens_of_texts(engine: Engine, encoder: PromptEncoder, body: EmbeddingsRequest) -> list[list[int]]:
    """The token ids of each text. Raises ApiError if the engine has no embeddings, or the model
    cannot read a text.
    """
    size = engine.embedding_size
    if size is None:
        why = "this endpoint's engine does not support embeddings; use an endpoint with engine torch"
        raise ApiError(400, f"model: {why}.", "model")
    if body.dimensions not in (None, size):
        raise ApiError(
            400, f"dimensions: got {body.dimensions}; embeddings of this model have {size}, and cannot be shortened.",
            "dimensions",
        )  # fmt: skip
    texts = body.texts()
    is_one = not isinstance(body.input, list) or isinstance(body.input[0], int)
    found = []
    for place, text in enumerate(texts):
        param = "input" if is_one else f"input[{place}]"
        token_ids = await _tokens(encoder, text, param) if isinstance(text, str) else text
        _check(engine, token_ids, param)
        found.append(token_ids)
    return found


async def _tokens(encoder: PromptEncoder, text: str, param: str) -> list[int]:
    try:
        return await encoder.tokens(TokenizeRequest(prompt=text))
    except ApiError as error:
        message = error.error.message.removeprefix("prompt: ")
        raise ApiError(error.status, f"{param}: {message}", param, error.error.code, error.headers) from error


def _check(engine: Engine, token_ids: list[int], param: str) -> None:
    if not token_ids:
        raise ApiError(400, f"{param}: this text has no tokens.", param)
    if (largest := max(token_ids)) >= engine.vocab_size:
        raise ApiError(400, f"{param}: got token id {largest}; the model's are 0 to {engine.vocab_size - 1}.", param)
    if len(token_ids) > engine.max_positions:
        raise ApiError(
            400,
            f"{param}: This model's maximum context length is {engine.max_positions} tokens, and this text takes "
            f"{len(token_ids)}. Shorten it, or split it.",
            param,
            "context_length_exceeded",
        )
