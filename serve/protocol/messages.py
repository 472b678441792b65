"""Messages and tools of a request; what the endpoint answers with can be sent back as it is."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError, from_json

from serve.protocol.base import LIST_TAG, TEXT_TAG, RequestModel, one_or_many


class ContentPart(RequestModel):
    """One part of a message's content; this endpoint reads text alone."""

    type: Literal["text", "refusal", "input_text", "output_text"]
    """The last two are what the Responses API calls texts."""
    text: Annotated[str | None, Field(validate_default=True)] = None
    refusal: Annotated[str | None, Field(validate_default=True)] = None
    """The text of a part of that type, in an assistant's message."""
    cache_control: Any = None
    """Taken and not used: prompts are cached without it."""
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
        """Its text."""
        return self.text or self.refusal or ""


ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
_Arguments = Annotated[str, Field(json_schema_extra={"contentMediaType": "application/json"})] | dict[str, Any] | None


class FunctionCall(RequestModel):
    """What a model has called."""

    name: ToolName
    arguments: Any
    """A JSON object as text, or the object; an empty text and null mean none. Of one that `max_tokens` has cut, what
    there is of it."""
    parsed_arguments: Any = None
    """What OpenAI's client adds when it parses a call: taken and not used."""
    provider_specific_fields: Any = None
    """What LiteLLM adds: taken and not used."""

    @field_validator("arguments", mode="plain", json_schema_input_type=_Arguments)
    @classmethod
    def _is_an_object(cls, value: Any) -> str:
        if isinstance(value, dict):
            return json.dumps(value, ensure_ascii=False)
        if value is None or (isinstance(value, str) and not value.strip()):
            return "{}"
        for partial in (False, "trailing-strings"):
            try:
                # Not json.loads, which takes NaN, halves of characters, and lists in lists without end.
                found = from_json(value, allow_inf_nan=False, allow_partial=partial)
            except (ValueError, TypeError):
                continue
            if isinstance(found, dict):
                return value if not partial else json.dumps(found, ensure_ascii=False)
        raise PydanticCustomError("arguments", "Input should be a JSON object")


class ToolCall(RequestModel):
    """A call of a model's, as it was answered with."""

    id: Annotated[str, Field(max_length=256)] | None = None
    """The first answer without `tool_call_id` belongs to the first call without an id."""
    type: Literal["function"] | None = None
    function: FunctionCall
    index: int | None = None
    """What streams have: taken and not used."""
    provider_specific_fields: Any = None


class ChatMessage(RequestModel):
    """One turn of the conversation, a call in the assistant's turn, or what a tool has answered to one."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: (
        Annotated[
            Annotated[str, Tag(TEXT_TAG)] | Annotated[list[ContentPart], Field(max_length=256), Tag(LIST_TAG)],
            one_or_many("Input should be a string or a list of text parts"),
        ]
        | None
    ) = None
    reasoning_content: str | None = None
    """Not in OpenAI's API: what the assistant thought, as it was answered with; the chat template decides what it
    writes of that."""
    reasoning: str | None = None
    """Another name of it."""
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    function_call: FunctionCall | None = None
    """The older form of one call."""
    tool_call_id: str | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    """The speaker's, or the tool's; most templates write none."""
    refusal: str | None = None
    """The assistant's text where `content` is empty."""
    audio: None = None
    annotations: Any = None
    parsed: Any = None
    index: int | None = None
    provider_specific_fields: Any = None
    """These four are there in what clients send back: taken and not used."""

    def text(self) -> str | None:
        """What it says, in one text."""
        content = self.content
        found = "".join(part.said() for part in content) if isinstance(content, list) else content
        return found or self.refusal or found


class Function(RequestModel):
    """What a model may call."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments, an object; None means that there are none"""
    strict: bool | None = None
    """Where the reply has to be a call, its arguments follow the schema, whatever this says."""


class Tool(RequestModel):
    """A function with its kind."""

    type: Literal["function"]
    function: Function
    cache_control: Any = None
    """Taken and not used."""


class FunctionName(RequestModel):
    """One of the request's functions."""

    name: ToolName


class NamedTool(RequestModel):
    """The function that has to be called."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(RequestModel):
    """Some of the request's functions."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=128)]


class AllowedToolsChoice(RequestModel):
    """A reply may call, or with `required` has to call, one of these; the prompt has these alone."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools
