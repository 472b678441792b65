"""A reference of every field of a pipeline file: type, bounds, default and description."""

from dataclasses import dataclass, replace
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from workflows.spec.pipeline import PipelineSpec


def named_sections(field: FieldInfo | None) -> dict[str, type[BaseModel]]:
    """The sections that a field can choose from by `name`; empty for all other fields."""
    if field is None or field.discriminator is None:
        return {}
    return {model.model_fields["name"].default: model for model in get_args(field.annotation)}


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The section inside an annotation such as `AdapterSpec | None` or `list[Source]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := model_of(inner))), None)


@dataclass(frozen=True)
class FieldReference:
    """One entry of the reference: a field's dotted path, type with bounds, default and description."""

    path: str
    type: str
    default: str
    description: str


def all_fields(model: type[BaseModel] = PipelineSpec, prefix: str = "") -> list[FieldReference]:
    """All fields of the pipeline file, in the order of their declaration."""
    rows = []
    for name, field in model.model_fields.items():
        text = " ".join((field.description or "").split())
        path = prefix + name
        rows.append(FieldReference(path, describe_type(field), describe_default(field), text))
        for word, section in named_sections(field).items():
            # The dotted path does not contain the section's name; the suffix tells fields of the same name apart.
            rows += [replace(row, path=f"{row.path} [{word}]") for row in all_fields(section, f"{path}.")]
        if named_sections(field):
            continue
        if inner := model_of(field.annotation):
            rows += all_fields(inner, f"{path}.{'0.' if 'list[' in str(field.annotation) else ''}")
    return rows


# The command that writes docs/fields.md.
PAGE_COMMAND = "rayconteur spec --markdown > docs/fields.md"

_PAGE_HEAD = f"""\
# Fields of a pipeline file

All fields, in the order of the stages. `--set PATH=VALUE` overrides a field. A `0` in a path is the index of a list
element. `[dpo]` after a path means that the field exists only if `name` is `dpo`. The default `section` means the
defaults of the section's own fields.

This page is generated: change the docstrings in `workflows/spec/`, then run `{PAGE_COMMAND}`.
"""


def fields_page() -> str:
    """The reference as Markdown: a table for each section of the pipeline file."""
    fields = all_fields()
    sections = {row.path.partition(".")[0] for row in fields if "." in row.path}
    page = [_PAGE_HEAD]
    heading = ""
    for row in fields:
        top = row.path.partition(".")[0]
        section = top if top in sections else "The pipeline"
        if section != heading:
            heading = section
            page.append(f"\n## {heading}\n\n| field | type | default | |\n|---|---|---|---|\n")
        cells = (f"`{row.path}`", f"`{row.type}`", f"`{row.default}`", row.description)
        page.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n")
    return "".join(page)


_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >=", "pattern": "matches"}


def describe_type(field: FieldInfo) -> str:
    """A field's type and bounds, such as `int >= 1, <= 1024`."""
    if named := named_sections(field):
        return " | ".join(named)
    bounds = [
        f"{sign} {_number(getattr(rule, key))}"
        for rule in [*field.metadata, *_inner_metadata(field.annotation)]
        for key, sign in _BOUNDS.items()
        if getattr(rule, key, None) is not None
    ]
    return f"{_type_name(field.annotation)} {', '.join(bounds)}".strip()


def _inner_metadata(annotation: Any) -> list[Any]:
    found: list[Any] = []
    for inner in get_args(annotation):
        for extra in getattr(inner, "__metadata__", ()):
            found += getattr(extra, "metadata", [extra])
    return found


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type_name(annotation: Any) -> str:
    if hasattr(annotation, "__metadata__"):
        return _type_name(annotation.__origin__)
    if annotation is None or annotation is type(None):
        return "null"
    arguments = get_args(annotation)
    if isinstance(annotation, type) and not arguments:
        return "section" if issubclass(annotation, BaseModel) else annotation.__name__
    if getattr(annotation, "__origin__", None) is dict:
        return "mapping"
    if getattr(annotation, "__origin__", None) is list:
        return f"list of {_type_name(arguments[0])}"
    if arguments and all(isinstance(argument, str) for argument in arguments):
        return " | ".join(str(argument) for argument in arguments)
    return " | ".join(_type_name(argument) for argument in arguments)


def describe_default(field: FieldInfo) -> str:
    """A field's default value, or `required`."""
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return str(getattr(field.default, "name", "section"))
    return "null" if field.default is None else _number(field.default)
