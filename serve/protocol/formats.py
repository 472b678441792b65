"""Formats that a request may ask its reply to have."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PlainValidator, Tag, WithJsonSchema
from pydantic_core import PydanticCustomError, from_json

from serve.protocol.base import BRANCH, RequestModel, type_branch


class TextFormat(RequestModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(RequestModel):
    """Any JSON object."""

    type: Literal["json_object"]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    """Not in OpenAI's API: what it has to look like."""


class JsonSchema(RequestModel):
    """What a reply has to look like."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    """None: any JSON object"""
    description: str | None = None
    strict: bool | None = None
    """A reply always follows the schema, whatever this says."""


class JsonSchemaFormat(RequestModel):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


BY_FORMAT = Discriminator(
    lambda value: type_branch(value, ("text", "json_object", "json_schema")),
    custom_error_type="response_format",
    custom_error_message="Its type should be text, json_object or json_schema",
)

ResponseFormat = Annotated[
    Annotated[TextFormat, Tag(BRANCH + "text")]
    | Annotated[JsonObjectFormat, Tag(BRANCH + "json_object")]
    | Annotated[JsonSchemaFormat, Tag(BRANCH + "json_schema")],
    BY_FORMAT,
]

Choices = Annotated[list[Annotated[str, Field(min_length=1, max_length=4096)]], Field(min_length=1, max_length=1024)]


def _schema(value: Any) -> dict[str, Any]:
    """A JSON schema, or one as text."""
    found = value
    if isinstance(value, str):
        try:
            found = from_json(value, allow_inf_nan=False)
        except ValueError:
            found = None
    if isinstance(found, dict):
        return found
    raise PydanticCustomError("schema", "Input should be a JSON schema, an object or the text of one")


_JSON = {"type": "string", "contentMediaType": "application/json"}
SchemaOrText = Annotated[
    dict[str, Any], PlainValidator(_schema), WithJsonSchema({"anyOf": [{"type": "object"}, _JSON]})
]


class StructuredOutputs(RequestModel):
    """What vLLM calls structured outputs: one of these, and no `response_format` beside it."""

    choice: Choices | None = None
    """The reply is one of these texts."""
    regex: Annotated[str, Field(min_length=1)] | None = None
    """The reply matches this regular expression from its first letter to its last."""
    grammar: Annotated[str, Field(min_length=1)] | None = None
    """The reply follows this grammar in Lark's form, from its rule `start`."""
    json_: Annotated[SchemaOrText | None, Field(alias="json")] = None
    """The reply is JSON of this schema."""
    json_object: bool | None = None
    """The reply is any JSON object."""
    disable_any_whitespace: bool | None = None
    disable_fallback: bool | None = None
    whitespace_pattern: None = None
    structural_tag: None = None
    """Of these the first two are taken and not used: white space is fixed, and nothing falls back."""

    def kinds(self) -> list[str]:
        """The names of those that are asked for."""
        found = {"choice": self.choice, "regex": self.regex, "grammar": self.grammar, "json": self.json_}
        return [name for name, value in found.items() if value is not None] + ["json_object"] * bool(self.json_object)


def one_kind(value: StructuredOutputs | None) -> StructuredOutputs | None:
    """Raises where several are asked for, or none."""
    if value is not None and len(value.kinds()) != 1:
        raise PydanticCustomError("conflict", "Give one of choice, regex, grammar, json and json_object")
    return value
