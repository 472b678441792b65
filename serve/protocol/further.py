"""Fields of other servers' APIs (vLLM's, SGLang's, llama.cpp's) that chats and plain texts have in common."""

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from serve.protocol.formats import Choices, SchemaOrText
from serve.protocol.hints import Hints

Rules = Annotated[str, Field(min_length=1)]


KINDS = {
    "guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar",
    "regex": "regex", "ebnf": "grammar", "json_schema": "json", "grammar": "grammar",
}  # fmt: skip
"""Fields that ask for a format, by the names that vLLM's `structured_outputs` has for the same"""


class FurtherFields(Hints):
    """None of them is in OpenAI's API; null means that it is not asked for."""

    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Return the log-probabilities of the prompt's tokens, and of this many most likely tokens at each position."""
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    """Keep only this many tokens at the end of the prompt; -1: as many as leave room for the reply."""
    allowed_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=65536)] | None = (
        None
    )
    """The reply uses only these tokens, and those that end it."""
    bad_words: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=128)] | None = (
        None
    )
    """Words that the reply must not contain, with and without a space before them."""
    return_token_ids: bool | None = None
    """Return the token ids of the prompt and the reply."""
    return_tokens_as_token_ids: bool | None = None
    """Log-probabilities name tokens as "token_id:5"."""
    guided_json: SchemaOrText | None = None
    guided_regex: Rules | None = None
    guided_choice: Choices | None = None
    guided_grammar: Rules | None = None
    """These four are older names of vLLM's."""
    regex: Rules | None = None
    ebnf: Rules | None = None
    """These two, and the next, are SGLang's."""
    json_schema: SchemaOrText | None = None
    grammar: Rules | None = None
    """These two are llama.cpp's."""

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def _some(cls, value: int | None) -> int | None:
        if value == 0:
            raise PydanticCustomError("conflict", "A prompt has at least one token; give 1 or more, or -1")
        return value

    @field_validator(*KINDS)
    @classmethod
    def _one_of_them(cls, value: Any, info: ValidationInfo) -> Any:
        others = [name for name in KINDS if name in info.data and info.data[name] is not None]
        if value is not None and others:
            raise PydanticCustomError("conflict", "Give one format; {other} is one", {"other": others[0]})
        return value

    def further_format(self) -> tuple[str, str, Any] | None:
        """The name of the field that asks for a format, its kind and its value."""
        for name, kind in KINDS.items():
            if (value := getattr(self, name)) is not None:
                return name, kind, value
        return None
