"""Fields of requests that change nothing of a reply: clients send them, they are taken and not used.

What they ask for is the case anyway, or does not exist here. A value that would change a reply is refused.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from serve.protocol.base import Off, On, RequestModel

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


_INSTEAD = {
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
    priority: int | None = None
    cache_salt: Annotated[str, Field(max_length=512)] | None = None
    request_id: Annotated[str, Field(max_length=512)] | None = None
    rid: Annotated[str, Field(max_length=512)] | None = None
    """The id of a request is in the header `x-request-id`."""
    use_beam_search: Off | None = None
    length_penalty: Annotated[float, Field(ge=1, le=1)] | None = None
    early_stopping: Off | None = None
    skip_special_tokens: On | None = None
    spaces_between_special_tokens: bool | None = None
    detokenize: On | None = None
    include_reasoning: On | None = None
    separate_reasoning: On | None = None
    stream_reasoning: On | None = None
    cache_prompt: bool | None = None
    return_hidden_states: Off | None = None
    kv_transfer_params: None = None
    mm_processor_kwargs: None = None
    logits_processors: None = None
    vllm_xargs: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    typical_p: Annotated[float, Field(ge=1, le=1)] | None = None
    mirostat: Annotated[int, Field(ge=0, le=0)] | None = None
    dry_multiplier: Annotated[float, Field(ge=0, le=0)] | None = None
    xtc_probability: Annotated[float, Field(ge=0, le=0)] | None = None
    timings_per_token: Off | None = None
    id_slot: int | None = None
    lora_path: None = None
    """These are of the APIs of vLLM, SGLang and llama.cpp, where they have this meaning unless they are set."""


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

    @field_validator("audio", "web_search_options", mode="before")
    @classmethod
    def _say_what_to_do(cls, value: Any, info: ValidationInfo) -> Any:
        if value:
            raise PydanticCustomError("conflict", _INSTEAD[str(info.field_name)])
        return None
