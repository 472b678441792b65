"""Items of a Responses request's `input`: messages, calls, tool results, reasoning."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator
from pydantic_core import PydanticCustomError

from serve.protocol.base import BRANCH, LIST_TAG, TEXT_TAG, RequestModel, one_or_many, type_branch
from serve.protocol.messages import ToolName

_TEXT_PARTS = ("input_text", "output_text", "text", "refusal")
_STORED = {"item_reference", "compaction", "compaction_trigger"}


def _is_a_text_part(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in _TEXT_PARTS:
        raise PydanticCustomError(
            "conflict", "This model only reads text; remove parts of type {kind}", {"kind": repr(kind[:60])}
        )
    return value


class InputPart(RequestModel):
    """One part of a content; this endpoint only reads text."""

    type: Literal["input_text", "output_text", "text", "refusal"]
    text: str | None = None
    refusal: str | None = None
    """The text of a part of type `refusal`."""
    annotations: Any = None
    logprobs: Any = None
    parsed: Any = None
    prompt_cache_breakpoint: Any = None
    """Clients send back these four: accepted and ignored."""

    @field_validator("refusal")
    @classmethod
    def _one_text(cls, value: str | None, info: Any) -> str | None:
        if (value is None) == (info.data.get("text") is None):
            raise PydanticCustomError("conflict", "Give exactly one of `text` and `refusal`")
        return value

    def said(self) -> str:
        """The part's text."""
        return self.text or self.refusal or ""


Parts = Annotated[list[Annotated[InputPart, BeforeValidator(_is_a_text_part)]], Field(max_length=256)]
Content = Annotated[
    Annotated[str, Tag(TEXT_TAG)] | Annotated[Parts, Tag(LIST_TAG)],
    one_or_many("Input should be a string or a list of text parts"),
]


class _Item(RequestModel):
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    """Accepted and ignored, like ids, since nothing is stored."""


class MessageItem(_Item):
    """A message; `type` is optional."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    phase: Literal["commentary", "final_answer"] | None = None
    """Taken and not used."""


class CallItem(_Item):
    """A function call of the model."""

    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1, max_length=256)]
    name: ToolName
    arguments: Annotated[str, Field(json_schema_extra={"contentMediaType": "application/json"})]
    parsed_arguments: Any = None
    """OpenAI's client adds this when it parses a call: accepted and ignored."""
    namespace: None = None
    caller: Any = None
    created_by: Any = None


class CallOutputItem(_Item):
    """A tool's result of a call."""

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(min_length=1, max_length=256)]
    output: Content
    name: str | None = None
    namespace: None = None
    caller: Any = None
    created_by: Any = None


class ReasoningPart(RequestModel):
    """One text of the reasoning."""

    type: Literal["reasoning_text", "summary_text", "text"]
    text: str


class ReasoningItem(_Item):
    """The model's reasoning; without `content` the summary is used."""

    type: Literal["reasoning"]
    summary: list[ReasoningPart] | None = None
    content: list[ReasoningPart] | None = None
    encrypted_content: None = None

    @field_validator("encrypted_content", mode="before")
    @classmethod
    def _can_be_read(cls, value: Any) -> Any:
        if value is not None:
            raise PydanticCustomError("conflict", "Only the server that encrypted it can read it; remove the item")
        return value

    def thought(self) -> str:
        """The reasoning's text."""
        return "".join(part.text for part in self.content or self.summary or ())


_KINDS = ("message", "function_call", "function_call_output", "reasoning")


def _is_served(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind in _KINDS:
        return value
    if kind in _STORED:
        rule = "Nothing is stored here, so an item of type {kind} refers to nothing; send the items themselves"
    else:
        rule = "Items of type {kind} belong to tools that this endpoint does not have; remove them"
    raise PydanticCustomError("conflict", rule, {"kind": repr(kind[:60])})


InputItem = Annotated[
    Annotated[MessageItem, Tag(BRANCH + "message")]
    | Annotated[CallItem, Tag(BRANCH + "function_call")]
    | Annotated[CallOutputItem, Tag(BRANCH + "function_call_output")]
    | Annotated[ReasoningItem, Tag(BRANCH + "reasoning")],
    Discriminator(
        lambda value: type_branch(value, _KINDS, default="message"),
        custom_error_type="item",
        custom_error_message="Its type should be message, function_call, function_call_output or reasoning",
    ),
    BeforeValidator(_is_served),
]
