"""Read a pipeline file: YAML with line numbers, `--set` overrides, and all errors at once."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from models.errors import nearest
from workflows.spec.describe import describe_default, describe_type, model_of, named_sections
from workflows.spec.errors import Location, SpecError, SpecProblem, dotted
from workflows.spec.paths import local_paths, with_code, with_paths
from workflows.spec.pipeline import PipelineSpec
from workflows.spec.space_problems import SpaceProblem, problems_of

_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number and only true and false are booleans (as in YAML 1.2)."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (so declared by PyYAML)
        first: [rule for rule in rules if not rule[0].endswith((":float", ":bool", ":timestamp"))]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.[\d_]*|\.\d+|\d[\d_]*(?=[eE]))(?:[eE][-+]?\d+)?$|^[-+]?\.inf$|^\.nan$"),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.I), list("tTfF"))


def read_spec(
    file: str | Path, overrides: list[str] | None = None, may_be_open: bool = True, for_job: bool = False
) -> PipelineSpec:
    """The pipeline in `file`, with `overrides` like `train.learning_rate=2e-4`; raises SpecError.

    Resolves relative data paths from the file's folder. Without `may_be_open`, also refuses an endpoint that other
    machines could use without a key; with `for_job`, whatever a job on a cluster could not use.
    """
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError([SpecProblem(str(file), "", "there is no such file")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError([SpecProblem(str(file), "", f"cannot be read: {error}")]) from None
    values, lines = _parse(text, str(file))
    where = {location: f"{file}:{line}" for location, line in lines.items()}
    for override in overrides or []:
        _apply_override(values, where, override)
    try:
        spec = PipelineSpec.model_validate(values)
    except ValidationError as error:
        problems: list[SpecProblem] = []
        for problem in (_problem(item, where, str(file)) for item in error.errors()):
            # A field of several types complains once for each of them.
            if not any(f"{problem.field}.".startswith(f"{known.field}.") for known in problems):
                problems.append(problem)
        raise SpecError(sorted(problems, key=lambda problem: _line_number(problem.where))) from None
    if wrong := [_space_problem(problem, where, str(file)) for problem in problems_of(spec)]:
        raise SpecError(sorted(wrong, key=lambda problem: _line_number(problem.where)))
    if spec.serve.is_open and not may_be_open:
        raise SpecError([SpecProblem(_place(("serve", "host"), where, str(file)), "serve.host", _open_to_all(spec))])
    if for_job and (unfit := _unfit_for_job(spec, where, str(file))):
        raise SpecError(sorted(unfit, key=lambda problem: _line_number(problem.where)))
    folder = path.resolve().parent
    # A job uploads what a link beside the pipeline file points to, wherever that is.
    resolved = os.path.abspath if for_job else os.path.realpath
    absolute = {field: resolved(folder / Path(named).expanduser()) for field, named in local_paths(spec).items()}
    return with_code(_with_certificate_files(with_paths(spec, absolute), folder), lambda name: f"{folder}/{name}")


def _with_certificate_files(spec: PipelineSpec, folder: Path) -> PipelineSpec:
    """Make certificate paths absolute. They are not in `local_paths`: a job does not upload them."""
    if spec.serve.tls is None:
        return spec
    named = {name: str(folder / Path(file).expanduser()) for name, file in spec.serve.tls.model_dump().items()}
    serve = spec.serve.model_copy(update={"tls": spec.serve.tls.model_copy(update=named)})
    return spec.model_copy(update={"serve": serve})


def _space_problem(problem: SpaceProblem, where: dict[Location, str], file: str) -> SpecProblem:
    """A mistake in the search space or the metric, with its place in the file."""
    location: Location = ("tune", problem.section, *filter(None, [problem.field]))
    words = problem.words
    if problem.error is not None:
        words += _problem(problem.error, {}, "").problem
    return SpecProblem(_place(location, where, file), dotted(location), words)


def refusal_of_values(error: ValidationError) -> str:
    """Why a trial's values are not allowed: the dotted field and the rule."""
    problem = _problem(error.errors()[0], {}, "")
    return f"{problem.field}: {problem.problem}" if problem.field else problem.problem


def parse_value(label: str, text: str) -> tuple[str, Any]:
    """The field and the value of `dotted.field=value`, parsed as YAML; raises SpecError."""
    name, equals, given = text.partition("=")
    if not equals or not name.strip():
        raise SpecError([SpecProblem(label, "", "must be field=value, as in train.learning_rate=2e-4")])
    try:
        return name.strip(), yaml.load(given, Loader=_Loader)
    except yaml.YAMLError as error:
        raise SpecError([SpecProblem(label, name, f"the value is not YAML: {error}")]) from None


def _unfit_for_job(spec: PipelineSpec, where: dict[Location, str], file: str) -> list[SpecProblem]:
    """What runs locally but not as a job on a cluster: a store on this machine, credentials in the file."""
    problems = []
    if "://" not in spec.store and not spec.store.startswith("/"):
        words = (
            f"got {spec.store!r}, a folder of this machine; all nodes of a job must reach the store: use "
            "s3://bucket/path, gs://bucket/path, or the absolute path of a shared folder"
        )
        problems.append(SpecProblem(_place(("store",), where, file), "store", words))
    for name, path in spec.serve.tls.model_dump().items() if spec.serve.tls else ():
        if not path.startswith("/"):
            words = (
                f"got {path!r}; a job does not upload this file, the head node must have it: give its absolute path"
            )
            problems.append(SpecProblem(_place(("serve", "tls", name), where, file), f"serve.tls.{name}", words))
    from workflows.store import without_secrets  # pyarrow comes with it

    for location, text in _texts(spec.model_dump()):
        if without_secrets(text) != text:
            words = (
                "contains credentials, which Ray's dashboard would show; remove them and give the cluster's nodes a "
                "role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (for gs:// GOOGLE_APPLICATION_CREDENTIALS) "
                "in the environment that starts Ray"
            )
            problems.append(SpecProblem(_place(location, where, file), dotted(location), words))
    return problems


def _texts(value: Any, at: Location = ()) -> Iterator[tuple[Location, str]]:
    """Every string in plain data, with its location."""
    if isinstance(value, str):
        yield at, value
    elif isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(inner, (*at, key))


def _open_to_all(spec: PipelineSpec) -> str:
    return (
        f"got {spec.serve.host!r}, where other machines reach the endpoint, and serve.keys is none, so anybody may "
        "use it; set serve.keys: required and create a key with `rayconteur keys create PIPELINE NAME`, or listen on "
        "127.0.0.1, or use --insecure"
    )


def _place(location: Location, where: dict[Location, str], file: str) -> str:
    """The place of a field, or of the innermost section around it."""
    return next((where[location[:end]] for end in range(len(location), -1, -1) if location[:end] in where), file)


def _line_number(where: str) -> int:
    tail = where.rpartition(":")[2]
    return int(tail) if tail.isdigit() else 0


def _parse(text: str, file: str) -> tuple[dict[str, object], dict[Location, int]]:
    """The file's values, and the line (from 1) of each of them."""
    lines: dict[Location, int] = {(): 1}
    problems: list[SpecProblem] = []
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        values = {} if root is None else _construct(loader, root, (), lines, problems, file)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        words = " ".join(part for part in (error.context, error.problem) if part)
        raise SpecError([SpecProblem(f"{file}:{line}", "", f"not YAML: {words}")]) from None
    except yaml.YAMLError as error:
        raise SpecError([SpecProblem(f"{file}:1", "", f"not YAML: {error}")]) from None
    except RecursionError:
        raise SpecError([SpecProblem(f"{file}:1", "", "nested too deeply, or refers to itself")]) from None
    if not isinstance(values, dict):
        problems.append(SpecProblem(f"{file}:1", "", "a pipeline file is a mapping of fields to values"))
    if problems:
        raise SpecError(problems)
    return values, lines


def _construct(
    loader: _Loader,
    node: yaml.Node,
    at: Location,
    lines: dict[Location, int],
    problems: list[SpecProblem],
    file: str,
) -> Any:
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(loader, item, (*at, index), lines, problems, file) for index, item in enumerate(node.value)
        ]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node, deep=True)
    first: dict[str, int] = {}
    for key_node, _ in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in first:
            fix = "merge a list, `<<: [*a, *b]`" if key_node.tag == _MERGE else "keep one"
            problems.append(
                SpecProblem(f"{file}:{line}", dotted((*at, key)), f"is set twice, first on line {first[key]}; {fix}")
            )
        first.setdefault(key, line)
    values: dict[str, object] = {}
    for key, (key_node, value_node) in _merged(node).items():
        inner = (*at, key)
        lines[inner] = key_node.start_mark.line + 1
        values[key] = _construct(loader, value_node, inner, lines, problems, file)
    return values


def _merged(node: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """The entries of a mapping by their keys. Those of a merge (`<<: *anchor`) yield to the mapping's own, and those
    of later mappings in its list to those of earlier ones (yaml.org/type/merge.html).
    """
    own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        if key.tag != _MERGE:
            own[str(key.value)] = (key, value)
            continue
        for part in value.value[::-1] if isinstance(value, yaml.SequenceNode) else [value]:
            if not isinstance(part, yaml.MappingNode):
                raise yaml.constructor.ConstructorError(
                    None, None, f"`<<` merges a mapping or a list of mappings, got a {part.id}", part.start_mark
                )
            merged |= _merged(part)
    return merged | own


def _apply_override(values: dict[str, object], where: dict[Location, str], override: str) -> None:
    """Set one `dotted.field=value` in the raw values; the value is parsed as YAML."""
    label = f"--set {override}"
    name, value = parse_value(label, override)
    keys: list[str | int] = [int(part) if part.isdigit() else part for part in name.split(".")]
    if keys[:2] == ["tune", "space"] and len(keys) > 2:  # its keys are dotted fields themselves
        keys = ["tune", "space", dotted(tuple(keys[2:]))]
    target: Any = values
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(target, list):
            if not isinstance(key, int) or key >= len(target):
                raise SpecError(
                    [SpecProblem(label, name, f"{key!r} is not an index of a list of {len(target)} (from 0)")]
                )
        elif not isinstance(target, dict):
            raise SpecError([SpecProblem(label, name, f"{dotted(tuple(keys[:depth]))} has no fields")])
        where[tuple(keys[: depth + 1])] = label
        if last:
            target[key] = value
        else:
            if isinstance(target, dict) and not isinstance(target.get(key), dict | list):
                named = named_sections(_field_at(tuple(keys[: depth + 1])))
                target[key] = {"name": target[key]} if named and isinstance(target.get(key), str) else {}
            target = target[key]


def _problem(error: Any, where: dict[Location, str], file: str) -> SpecProblem:
    """Translate a pydantic error: the place, the dotted field, the value, the rule, the fix."""
    location, field = _field_location(error["loc"]), _field_at(error["loc"])
    kind, got, rule = error["type"], error["input"], error["msg"]
    if kind.startswith("union_tag"):
        names = error["ctx"].get("expected_tags") or ", ".join(named_sections(field))
        rule = f"must be one of {names}"
        if kind == "union_tag_not_found" or (*location, "name") in where:
            location = (*location, "name")
        got, field = got.get("name"), None
    place = _place(location, where, file)
    if kind == "union_tag_not_found":
        return SpecProblem(place, dotted(location), f"is required; {rule}")
    if kind == "extra_forbidden":
        siblings = _field_names(error["loc"][:-1])
        near = nearest(str(location[-1]), siblings, 0.5)
        parent = dotted(location[:-1])
        prefix = f"{parent}." if parent else ""
        fix = f"did you mean {prefix}{near}?" if near else f"known here: {', '.join(siblings)}"
        return SpecProblem(place, dotted(location), f"unknown field; {fix}")
    if kind == "missing":
        return SpecProblem(place, dotted(location), f"is required; {_first_sentence(field)}")
    rule = rule.removeprefix("Value error, ").replace("Input should", "must")
    if kind == "value_error":
        return SpecProblem(place, dotted(location), rule)
    allowed = f"; allowed: {describe_type(field)}, default {describe_default(field)}" if field else ""
    near_value = nearest(got, re.findall(r"'([^']+)'", rule)) if isinstance(got, str) else None
    hint = f"; did you mean {near_value}?" if near_value else ""
    return SpecProblem(place, dotted(location), f"got {got!r}; {rule}{allowed}{hint}")


def _walk(location: Location) -> tuple[Location, FieldInfo | None, type[BaseModel] | None]:
    """What stands at a pydantic location: its place in the file, the field, and the section that it holds.

    pydantic puts the names of union members between fields; they are not in the file.
    """
    kept: list[str | int] = []
    field: FieldInfo | None = None
    model: type[BaseModel] | None = PipelineSpec
    named: dict[str, type[BaseModel]] = {}
    for part in location:
        if isinstance(part, str) and part in named:
            model, named = named[part], {}
            continue
        if isinstance(part, str) and re.search(r"[\[(-]|^(?:str|int|float|bool)$", part):
            continue
        kept.append(part)
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if model else None
        named = named_sections(field)
        model = model_of(field.annotation) if field and not named else None
    return tuple(kept), field, model


def _field_location(location: Location) -> Location:
    return _walk(location)[0]


def _field_at(location: Location) -> FieldInfo | None:
    return _walk(location)[1]


def _field_names(location: Location) -> list[str]:
    model = _walk(location)[2]
    return list(model.model_fields) if model else []


def _first_sentence(field: FieldInfo | None) -> str:
    text = " ".join(field.description.split()) if field and field.description else "give it a value"
    return re.split(r"(?<=[.;])\s", text)[0].rstrip(".;")
