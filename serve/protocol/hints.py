"""Fields that clients send and that do not change a reply: they are accepted and ignored.

What they request is always the case, or does not exist here. A value that would change a reply is refused.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from serve.protocol.base import Off, On, RequestModel

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


_INSTEAD = {
    "audio": "This endpoint answers in text; remove it, or send null",
    "web_search_options": "This endpoint has no web search; remove it, or give the model a tool",
}


class Hints(RequestModel):
    """Ignored fields of chat and text completions."""

    user: Annotated[str, Field(max_length=512)] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_retention: Annotated[str, Field(max_length=64)] | None = None
    """Ignored: prompts are always cached."""
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    """Ignored: there is one service tier."""
    priority: int | None = None
    cache_salt: Annotated[str, Field(max_length=512)] | None = None
    request_id: Annotated[str, Field(max_length=512)] | None = None
    rid: Annotated[str, Field(max_length=512)] | None = None
    """Ignored: the request id is in the header `x-request-id`."""
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
    """These are from the APIs of vLLM, SGLang and llama.cpp; only their default behavior is supported."""


class ChatHints(Hints):
    """Ignored fields of chat completions."""

    store: Off | None = None
    """Ignored: nothing is stored."""
    metadata: Metadata | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    """Ignored: no chat template supports it."""
    prediction: dict[str, Any] | None = None
    """Ignored: it makes OpenAI's answers faster, not different."""
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    audio: None = None
    web_search_options: None = None

    @field_validator("audio", "web_search_options", mode="before")
    @classmethod
    def _say_what_to_do(cls, value: Any, info: ValidationInfo) -> Any:
        if value:
            raise PydanticCustomError("conflict", _INSTEAD[str(info.field_name)])
        return None
