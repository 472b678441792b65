"""The base class and the types that all sections of the pipeline file share."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

Precision = Literal["auto", "bf16", "fp32"]
PositiveInt = Annotated[int, Field(ge=1, le=1_000_000_000)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]

HOW: JsonDict = {"affects_result": False}
"""marks a field that changes how a stage runs but not its result: an artifact's key leaves it out"""

ADDED: JsonDict = {"in_key_at_default": False}
"""marks a field that is younger than the stores in use: an artifact's key has it only where it is not the default"""


def named(value: Any) -> Any:
    """Expand the short form of a field that chooses a section by `name`: `dpo` becomes `{name: dpo}`."""
    return {"name": value} if isinstance(value, str) else value


class Section(BaseModel):
    """A section of the pipeline file: immutable, and without undeclared fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, strict=False
    )

    def result_fields(self) -> dict[str, object]:
        """The values that change a stage's result, as plain data: the section's part of an artifact's key."""
        values: dict[str, object] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("affects_result") is False:
                continue
            value = getattr(self, name)
            if extra == ADDED and value == field.get_default(call_default_factory=True):
                continue
            values[name] = value.result_fields() if isinstance(value, Section) else _plain(value)
        return values


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [item.result_fields() if isinstance(item, Section) else item for item in value]
    return value.isoformat() if isinstance(value, date) else value
