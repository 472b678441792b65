"""Fields of requests that change nothing of a reply: clients send them, they are taken and not used.

What they ask for is the case anyway, or does not exist here. A value that would change a reply is refused.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from serve.protocol.base import Off, On, RequestModel, Zero

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


_INSTEAD = {
    "functions": "This is the older form; send tools",
    "function_call": "This is the older form; send tool_choice",
    "audio": "This endpoint answers in text; leave it out, or null",
    "web_search_options": "This endpoint searches nothing; leave it out, or give the model a tool",
}


class Hints(RequestModel):
    """Of chats and of plain texts."""

    user: Annotated[str, Field(max_length=512)] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_retention: Annotated[str, Field(max_length=64)] | None = None
    """Prompts are cached without being asked."""
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    """There is one."""
    priority: Zero | None = None
    use_beam_search: Off | None = None
    length_penalty: Annotated[float, Field(ge=1, le=1)] | None = None
    early_stopping: Off | None = None
    skip_special_tokens: On | None = None
    spaces_between_special_tokens: bool | None = None
    detokenize: On | None = None
    truncate_prompt_tokens: None = None
    """These are of vLLM's API, where they have this meaning unless they are set."""


class ChatHints(Hints):
    """Of chats alone."""

    store: Off | None = None
    """Nothing is stored."""
    metadata: Metadata | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    """No chat template knows it."""
    prediction: dict[str, Any] | None = None
    """It would make OpenAI's answers quicker, not different."""
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    audio: None = None
    web_search_options: None = None
    functions: None = None
    function_call: None = None
    """The older form of `tools` and `tool_choice`."""

    @field_validator("functions", "function_call", "audio", "web_search_options", mode="before")
    @classmethod
    def _say_what_to_do(cls, value: Any, info: ValidationInfo) -> Any:
        if value:
            raise PydanticCustomError("conflict", _INSTEAD[str(info.field_name)])
        return None
