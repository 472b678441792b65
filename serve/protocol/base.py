"""What all requests of OpenAI's API share: unknown fields are refused by name, null means the default.

A field that is not declared is refused by name: a client never believes that an ignored setting worked.
"""

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, WithJsonSchema
from pydantic_core import PydanticCustomError

# Names that pydantic puts into an error's location for the branches of a union; they name no field.
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


# Not Literal[False] and Literal[1], which take 0.0 and true as well.
Off = Annotated[bool, _only(False), WithJsonSchema({"type": "boolean", "const": False})]
On = Annotated[bool, _only(True), WithJsonSchema({"type": "boolean", "const": True})]
One = Annotated[int, _only(1), WithJsonSchema({"type": "integer", "const": 1})]


def one_or_many(rule: str) -> Discriminator:
    """Tells a text from a list; `rule` is what is said of anything else."""
    return Discriminator(_text_or_list, custom_error_type="text_or_list", custom_error_message=rule)


def type_branch(value: Any, kinds: Collection[str], default: str | None = None) -> str | None:
    """The branch of an object by its `type`, which is `default` where it has none; None for one that is unknown."""
    kind = (value.get("type") or default) if isinstance(value, dict) else getattr(value, "type", None)
    return f"{BRANCH}{kind}" if isinstance(kind, str) and kind in kinds else None


def _text_or_list(value: Any) -> str | None:
    if isinstance(value, str):
        return TEXT_TAG
    return LIST_TAG if isinstance(value, list) else None
