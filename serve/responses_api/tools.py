"""Tools and formats of a Responses request, which are less nested than in a chat."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from serve.protocol.base import BRANCH, TEXT_TAG, Off, RequestModel, type_branch
from serve.protocol.formats import BY_FORMAT, JsonObjectFormat, TextFormat
from serve.protocol.messages import ToolName


def _is_a_function(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind == "function":
        return value
    if kind == "custom":
        rule = "Tools of type custom take free text, which is not supported; use a function with one string"
    else:
        rule = (
            "Tools of type {kind} run on OpenAI's servers, not on this endpoint; use a function of your"
            " own and answer its calls"
        )
    raise PydanticCustomError("conflict", rule, {"kind": repr(kind[:60])})


class FunctionTool(RequestModel):
    """A function that the model may call."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments, an object; null means no arguments"""
    strict: bool | None = None
    """Ignored: the arguments of a required call always follow the schema."""
    defer_loading: Off | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    output_schema: Any = None
    """Accepted and ignored."""


AnyTool = Annotated[FunctionTool, BeforeValidator(_is_a_function)]


class ChosenFunction(RequestModel):
    """A function that must or may be called."""

    type: Literal["function"]
    name: ToolName


class AllowedTools(RequestModel):
    """The tools that may be called; the prompt contains only these."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[Annotated[ChosenFunction, BeforeValidator(_is_a_function)]], Field(min_length=1)]


def _choice_branch(value: Any) -> str | None:
    return TEXT_TAG if isinstance(value, str) else type_branch(value, ("function", "allowed_tools"))


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(TEXT_TAG)]
    | Annotated[ChosenFunction, Tag(BRANCH + "function")]
    | Annotated[AllowedTools, Tag(BRANCH + "allowed_tools")],
    Discriminator(
        _choice_branch,
        custom_error_type="tool_choice",
        custom_error_message="Input should be none, auto, required, a function, or allowed_tools with functions",
    ),
]


class SchemaFormat(RequestModel):
    """JSON that follows a schema; `strict` is ignored, since a reply always follows it."""

    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class TextOptions(RequestModel):
    """The format of the reply's text."""

    format: (
        Annotated[
            Annotated[TextFormat, Tag(BRANCH + "text")]
            | Annotated[JsonObjectFormat, Tag(BRANCH + "json_object")]
            | Annotated[SchemaFormat, Tag(BRANCH + "json_schema")],
            BY_FORMAT,
        ]
        | None
    ) = None
    verbosity: Literal["low", "medium", "high"] | None = None
    """Accepted and ignored: a hint for models that were trained with it."""

    def chat_format(self) -> dict[str, Any] | None:
        """The `response_format` of a chat request."""
        if not isinstance(self.format, SchemaFormat):
            return None if self.format is None else {"type": self.format.type}
        return {"type": "json_schema", "json_schema": self.format.model_dump(exclude={"type"}, by_alias=True)}


def chat_tools(
    tools: Sequence[FunctionTool] | None, choice: str | ChosenFunction | AllowedTools | None
) -> tuple[list[dict[str, Any]] | None, Any]:
    """The `tools` and `tool_choice` of a chat request; without tools there is no choice."""
    chosen: Any = choice
    if isinstance(choice, AllowedTools):
        allowed = {each.name for each in choice.tools}
        tools, chosen = [tool for tool in tools or () if tool.name in allowed], choice.mode
    elif isinstance(choice, ChosenFunction):
        chosen = {"type": "function", "function": {"name": choice.name}}
    kept = {"name", "description", "parameters", "strict"}
    named = [
        {"type": "function", "function": tool.model_dump(include=kept, exclude_unset=True)} for tool in tools or ()
    ]
    return named or None, chosen if named else None
