"""Messages and tools of a request; messages from the endpoint's answers can be sent back unchanged."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError, from_json

from serve.protocol.base import LIST_TAG, TEXT_TAG, RequestModel, one_or_many


class ContentPart(RequestModel):
    """One part of a message's content; this endpoint only reads text."""

    type: Literal["text", "refusal", "input_text", "output_text"]
    """The last two are the Responses API's text types."""
    text: Annotated[str | None, Field(validate_default=True)] = None
    refusal: Annotated[str | None, Field(validate_default=True)] = None
    """The text of a part of type `refusal`, in an assistant's message."""
    cache_control: Any = None
    """Accepted and ignored: prompts are always cached."""
    annotations: Any = None
    """Taken and not used."""

    @field_validator("text", "refusal")
    @classmethod
    def _of_its_type(cls, value: str | None, info: ValidationInfo) -> str | None:
        kind = str(info.data.get("type")).removeprefix("input_").removeprefix("output_")
        if value is None and kind == info.field_name:
            raise PydanticCustomError("missing", "Field required")
        return value

    def said(self) -> str:
        """The part's text."""
        return self.text or self.refusal or ""


ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
_Arguments = Annotated[str, Field(json_schema_extra={"contentMediaType": "application/json"})] | dict[str, Any] | None


class FunctionCall(RequestModel):
    """A function and its arguments, as called by the model."""

    name: ToolName
    arguments: Any
    """A JSON object, or its text; an empty text and null mean no arguments. If `max_tokens` cut the call, the text so
    far."""
    parsed_arguments: Any = None
    """OpenAI's client adds this when it parses a call: accepted and ignored."""
    provider_specific_fields: Any = None
    """LiteLLM adds this: accepted and ignored."""

    @field_validator("arguments", mode="plain", json_schema_input_type=_Arguments)
    @classmethod
    def _is_an_object(cls, value: Any) -> str:
        if isinstance(value, dict):
            return json.dumps(value, ensure_ascii=False)
        if value is None or (isinstance(value, str) and not value.strip()):
            return "{}"
        for partial in (False, "trailing-strings"):
            try:
                # Not json.loads, which accepts NaN, lone surrogates, and endlessly nested lists.
                found = from_json(value, allow_inf_nan=False, allow_partial=partial)
            except (ValueError, TypeError):
                continue
            if isinstance(found, dict):
                return value if not partial else json.dumps(found, ensure_ascii=False)
        raise PydanticCustomError("arguments", "Input should be a JSON object")


class ToolCall(RequestModel):
    """A tool call from an earlier answer."""

    id: Annotated[str, Field(max_length=256)] | None = None
    """The first result without `tool_call_id` belongs to the first call without an id."""
    type: Literal["function"] | None = None
    function: FunctionCall
    index: int | None = None
    """From streams: accepted and ignored."""
    provider_specific_fields: Any = None


class ChatMessage(RequestModel):
    """One turn of the conversation; an assistant's turn may contain tool calls, and a tool's turn is a result."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: (
        Annotated[
            Annotated[str, Tag(TEXT_TAG)] | Annotated[list[ContentPart], Field(max_length=256), Tag(LIST_TAG)],
            one_or_many("Input should be a string or a list of text parts"),
        ]
        | None
    ) = None
    reasoning_content: str | None = None
    """Not in OpenAI's API: the assistant's reasoning from an earlier answer; the chat template decides whether the
    prompt contains it."""
    reasoning: str | None = None
    """Another name of `reasoning_content`."""
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    function_call: FunctionCall | None = None
    """The deprecated form of a single tool call."""
    tool_call_id: str | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    """The name of the speaker or the tool; most chat templates ignore it."""
    refusal: str | None = None
    """The assistant's text if `content` is empty."""
    audio: None = None
    annotations: Any = None
    parsed: Any = None
    index: int | None = None
    provider_specific_fields: Any = None
    """Clients send back these four: accepted and ignored."""

    def text(self) -> str | None:
        """The message's content as one text."""
        content = self.content
        found = "".join(part.said() for part in content) if isinstance(content, list) else content
        return found or self.refusal or found


class Function(RequestModel):
    """A function that the model may call."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments, an object; null means no arguments"""
    strict: bool | None = None
    """Ignored: the arguments of a required call always follow the schema."""


class Tool(RequestModel):
    """A tool of type function."""

    type: Literal["function"]
    function: Function
    cache_control: Any = None
    """Taken and not used."""


class FunctionName(RequestModel):
    """One of the request's functions."""

    name: ToolName


class NamedTool(RequestModel):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(RequestModel):
    """Some of the request's functions."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=128)]


class AllowedToolsChoice(RequestModel):
    """The reply may call, or with `required` must call, one of these; the prompt contains only these."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools
