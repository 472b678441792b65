"""Bodies and answers of routes that are not in OpenAI's API: POST /detokenize, GET /version."""

import asyncio
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

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
