"""Response formats of requests."""

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
    """Not in OpenAI's API: a JSON schema for the object."""


class JsonSchema(RequestModel):
    """A named JSON schema of the reply."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    """None: any JSON object"""
    description: str | None = None
    strict: bool | None = None
    """Ignored: the reply always follows the schema."""


class JsonSchemaFormat(RequestModel):
    """JSON that follows a schema."""

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
    """A JSON schema, as an object or as JSON text."""
    found = value
    if isinstance(value, str):
        try:
            found = from_json(value, allow_inf_nan=False)
        except ValueError:
            found = None
    if isinstance(found, dict):
        return found
    raise PydanticCustomError("schema", "Input should be a JSON schema, as an object or as JSON text")


_JSON = {"type": "string", "contentMediaType": "application/json"}
SchemaOrText = Annotated[
    dict[str, Any], PlainValidator(_schema), WithJsonSchema({"anyOf": [{"type": "object"}, _JSON]})
]


class StructuredOutputs(RequestModel):
    """vLLM's structured outputs: exactly one of these, and no `response_format`."""

    choice: Choices | None = None
    """The reply is one of these strings."""
    regex: Annotated[str, Field(min_length=1)] | None = None
    """The whole reply matches this regular expression."""
    grammar: Annotated[str, Field(min_length=1)] | None = None
    """The reply follows this grammar in Lark syntax, from its rule `start`."""
    json_: Annotated[SchemaOrText | None, Field(alias="json")] = None
    """The reply is JSON that follows this schema."""
    json_object: bool | None = None
    """The reply is any JSON object."""
    disable_any_whitespace: bool | None = None
    disable_fallback: bool | None = None
    whitespace_pattern: None = None
    structural_tag: None = None
    """The first two of these are accepted and ignored: white space is fixed, and there is no fallback."""

    def kinds(self) -> list[str]:
        """The names of the requested kinds."""
        found = {"choice": self.choice, "regex": self.regex, "grammar": self.grammar, "json": self.json_}
        return [name for name, value in found.items() if value is not None] + ["json_object"] * bool(self.json_object)


def one_kind(value: StructuredOutputs | None) -> StructuredOutputs | None:
    """Raise if several kinds are requested, or none."""
    if value is not None and len(value.kinds()) != 1:
        raise PydanticCustomError("conflict", "Give exactly one of choice, regex, grammar, json and json_object")
    return value
