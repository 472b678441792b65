"""Bodies and answers of routes that are not in OpenAI's API: /detokenize, /version, /load, /tokenizer_info."""

import asyncio
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from serve.engines.base import Engine
from serve.protocol.base import RequestModel
from serve.protocol.errors import ApiError


class DetokenizeRequest(RequestModel):
    """The body of POST /detokenize: token ids, at most the model's context length."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]


class DetokenizedText(BaseModel):
    """The answer of POST /detokenize: the text of all tokens, including control tokens."""

    prompt: str


class Version(BaseModel):
    """The answer of GET /version: the program's version, and the key of the served release."""

    version: str
    release: str


class InputTokens(BaseModel):
    """The answer of POST /v1/responses/input_tokens (in OpenAI's API): the length of a request's prompt."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class Load(BaseModel):
    """The answer of GET /load: the number of replies that run or wait."""

    server_load: int


class TokenizerInfo(BaseModel):
    """The answer of GET /tokenizer_info: what a client needs to render prompts itself."""

    tokenizer_class: str
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    vocab_size: int
    model_max_length: int


def load_of(engine: Engine) -> Load:
    """The number of replies that run or wait."""
    health = engine.health()
    return Load(server_load=health.num_active + health.num_waiting)


def tokenizer_info(tokenizer: Any, engine: Engine) -> TokenizerInfo:
    """The served model's tokenizer."""
    named = {
        name: tokenizer.special_tokens_map.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")
    }
    return TokenizerInfo(
        tokenizer_class=type(tokenizer).__name__,
        chat_template=tokenizer.get_chat_template(),
        vocab_size=len(tokenizer),
        model_max_length=engine.max_positions,
        **{name: None if token is None else str(token) for name, token in named.items()},
    )


def version_of(release_key: str) -> Version:
    """The program's version and the release."""
    try:
        return Version(version=version("rayconteur"), release=release_key)
    except PackageNotFoundError:  # run from a checkout without installation
        return Version(version="unknown", release=release_key)


async def detokenized(tokenizer: Any, engine: Engine, body: DetokenizeRequest) -> DetokenizedText:
    """The text of the tokens. Raises ApiError."""
    if len(body.tokens) > engine.max_positions:
        raise ApiError(
            400, f"tokens: got {len(body.tokens)}; the model reads at most {engine.max_positions}.",
            "tokens",
        )  # fmt: skip
    if body.tokens and (largest := max(body.tokens)) >= engine.vocab_size:
        raise ApiError(
            400, f"tokens: got token id {largest}; the model's are 0 to {engine.vocab_size - 1}.", "tokens"
        )
    text = await asyncio.to_thread(tokenizer.decode, body.tokens, clean_up_tokenization_spaces=False)
    return DetokenizedText(prompt=str(text))
