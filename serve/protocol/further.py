"""Fields of other servers' APIs (vLLM's, SGLang's, llama.cpp's) in chat and text completions."""

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
"""fields that request a format, with the name of the same format in vLLM's `structured_outputs`"""


class FurtherFields(Hints):
    """None of these is in OpenAI's API; null means not set."""

    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Return the log-probabilities of the prompt's tokens, and of this many most likely tokens at each position."""
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    """Keep only this many tokens at the end of the prompt; -1: as many as fit beside the reply."""
    allowed_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=65536)] | None = (
        None
    )
    """The reply uses only these tokens and end tokens."""
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
    """These four are older names in vLLM's API."""
    regex: Rules | None = None
    ebnf: Rules | None = None
    """These two, and the next one, are from SGLang's API."""
    json_schema: SchemaOrText | None = None
    grammar: Rules | None = None
    """These two are from llama.cpp's API."""

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def _some(cls, value: int | None) -> int | None:
        if value == 0:
            raise PydanticCustomError("conflict", "Should be 1 or more, or -1")
        return value

    @field_validator(*KINDS)
    @classmethod
    def _one_of_them(cls, value: Any, info: ValidationInfo) -> Any:
        others = [name for name in KINDS if name in info.data and info.data[name] is not None]
        if value is not None and others:
            raise PydanticCustomError("conflict", "Give only one format; {other} is one too", {"other": others[0]})
        return value

    def further_format(self) -> tuple[str, str, Any] | None:
        """The field that requests a format: its name, the kind of the format, and its value."""
        for name, kind in KINDS.items():
            if (value := getattr(self, name)) is not None:
                return name, kind, value
        return None
