"""The base of all requests of OpenAI's API: unknown fields are refused, null means the default.

The error names the unknown field, so a client never assumes that an ignored setting had an effect.
"""

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, WithJsonSchema
from pydantic_core import PydanticCustomError

# pydantic puts names of union branches into an error's location; they are not names of fields.
BRANCH = "as "
TEXT_TAG = BRANCH + "text"
LIST_TAG = BRANCH + "list"


class RequestModel(BaseModel):
    """A request, or an object in one."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


def _only(wanted: int) -> AfterValidator:
    def check(value: int) -> int:
        if value != wanted:
            raise PydanticCustomError("only", "Input should be {wanted}", {"wanted": str(wanted)})
        return value

    return AfterValidator(check)


# Not Literal[False] and Literal[1], which also accept 0.0 and true.
Off = Annotated[bool, _only(False), WithJsonSchema({"type": "boolean", "const": False})]
On = Annotated[bool, _only(True), WithJsonSchema({"type": "boolean", "const": True})]
One = Annotated[int, _only(1), WithJsonSchema({"type": "integer", "const": 1})]


def one_or_many(rule: str) -> Discriminator:
    """A discriminator of a text and a list; `rule` is the error message for anything else."""
    return Discriminator(_text_or_list, custom_error_type="text_or_list", custom_error_message=rule)


def type_branch(value: Any, kinds: Collection[str], default: str | None = None) -> str | None:
    """The branch of an object by its `type`, or `default` if it has none; None for an unknown type."""
    kind = (value.get("type") or default) if isinstance(value, dict) else getattr(value, "type", None)
    return f"{BRANCH}{kind}" if isinstance(kind, str) and kind in kinds else None


def _text_or_list(value: Any) -> str | None:
    if isinstance(value, str):
        return TEXT_TAG
    return LIST_TAG if isinstance(value, list) else None
