"""Bodies and answers of routes that are not in OpenAI's API: /detokenize, /version, /load, /tokenizer_info."""

import asyncio
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from serve.engines.base import Engine
from serve.protocol.base import RequestModel
from serve.protocol.errors import ApiError


class DetokenizeRequest(RequestModel):
    """The body of POST /detokenize: token ids, as many as the model reads."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]


class DetokenizedText(BaseModel):
    """The answer of POST /detokenize: the text of all tokens, control tokens too."""

    prompt: str


class Version(BaseModel):
    """The answer of GET /version: of the program, and the key of the release that is served."""

    version: str
    release: str


class InputTokens(BaseModel):
    """The answer of POST /v1/responses/input_tokens, which is in OpenAI's API: of the prompt that a request makes."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class Load(BaseModel):
    """The answer of GET /load: the replies that are generated or wait."""

    server_load: int


class TokenizerInfo(BaseModel):
    """The answer of GET /tokenizer_info: what a client needs to write prompts by itself."""

    tokenizer_class: str
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    vocab_size: int
    model_max_length: int


def load_of(engine: Engine) -> Load:
    """How much there is to do."""
    health = engine.health()
    return Load(server_load=health.num_active + health.num_waiting)


def tokenizer_info(tokenizer: Any, engine: Engine) -> TokenizerInfo:
    """Of the model that is served."""
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
    """What runs here."""
    try:
        return Version(version=version("rayconteur"), release=release_key)
    except PackageNotFoundError:  # run from its folder, without having been installed
        return Version(version="unknown", release=release_key)


async def detokenized(tokenizer: Any, engine: Engine, body: DetokenizeRequest) -> DetokenizedText:
    """The text of the tokens. Raises ApiError."""
    if len(body.tokens) > engine.max_positions:
        raise ApiError(
            400, f"tokens: got {len(body.tokens)}; at most {engine.max_positions} are read, as by the model.",
            "tokens",
        )  # fmt: skip
    if body.tokens and (largest := max(body.tokens)) >= engine.vocab_size:
        raise ApiError(400, f"tokens: got token {largest}; the model knows 0 to {engine.vocab_size - 1}.", "tokens")
    text = await asyncio.to_thread(tokenizer.decode, body.tokens, clean_up_tokenization_spaces=False)
    return DetokenizedText(prompt=str(text))
