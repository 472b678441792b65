"""The search space of `tune.space`: parses its entries, and checks that the spec allows every value in it.

dimension = parse({"loguniform": [1e-5, 1e-3]})
trial_spec = with_values(spec, {"train.learning_rate": 3e-4})

Imports no library except pydantic.
"""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from models.errors import nearest
from workflows.spec.pipeline import PipelineSpec
from workflows.spec.section import HOW
from workflows.spec.train import TrainSpec
from workflows.spec.tune import MixtureSearchSpec, TuneSpec

Values = dict[str, object]
"""the settings of a trial: dotted field of the pipeline file -> value"""

_KINDS = ("uniform", "loguniform", "int", "logint")
_COMBINATIONS = 256
# Fields that all trials share, because they decide the corpus, its reference values, or the workers.
_SHARED = {"objective.name", "objective.teacher", "objective.top_k", "objective.max_reply_tokens", "precision"}
_SHARED |= {"num_workers", "adapter.quantize"}
_SHARED |= {name for name, field in TrainSpec.model_fields.items() if field.json_schema_extra == HOW}


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included."""

    low: float
    high: float
    is_log: bool
    is_whole: bool

    @property
    def ends(self) -> list[Any]:
        """The two ends: if the field's bounds allow both, they allow everything between."""
        return [self.low, self.high]

    def nearest(self, value: float) -> float:
        """The value of the range that is nearest to `value`."""
        inside = min(max(value, self.low), self.high)
        return round(inside) if self.is_whole else inside


@dataclass(frozen=True)
class Choice:
    """A list of choices."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> list[Any]:
        """All choices."""
        return list(self.values)

    def nearest(self, value: Any) -> Any:
        """The value itself."""
        return value


Dimension = Range | Choice


def parse(entry: Any) -> Dimension:
    """Parse an entry of `tune.space`; raises ValueError with the rule."""
    if isinstance(entry, list):
        if not entry or any(isinstance(value, list | dict) for value in entry):
            raise ValueError(f"got {entry!r}; a list of choices holds one or more plain values, such as [8, 16, 32]")
        if len({repr(value) for value in entry}) < len(entry):
            raise ValueError(f"got {entry!r}; it contains a choice twice, list each once")
        return dimension_of(entry)
    kind, bounds = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else ("", [])
    if kind not in _KINDS:
        near = nearest(str(kind), _KINDS)
        hint = f"; did you mean {near}?" if near else ""
        raise ValueError(
            f"got {entry!r}; must be a list of choices, or one of {', '.join(_KINDS)} with [low, high], such as "
            f"{{loguniform: [1e-5, 1e-3]}}{hint}"
        )
    is_whole, is_log = kind.endswith("int"), kind.startswith("log")
    numbers = int if is_whole else int | float
    are_two = isinstance(bounds, list) and len(bounds) == 2
    if not are_two or not all(isinstance(end, numbers) and not isinstance(end, bool) for end in bounds):
        raise ValueError(f"got {bounds!r}; {kind} needs [low, high], two {'integers' if is_whole else 'numbers'}")
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"got {bounds!r}; low must be below high, and both finite")
    if is_log and low <= 0:
        raise ValueError(f"got {bounds!r}; {kind} needs a low above 0")
    return dimension_of(entry)


def dimension_of(entry: Any) -> Dimension:
    """An entry that `parse` has checked before, such as one of a search on the store."""
    if isinstance(entry, list):
        return Choice(tuple(entry))
    [(kind, (low, high))] = entry.items()
    return Range(low, high, is_log=kind.startswith("log"), is_whole=kind.endswith("int"))


def trials_wanted(tune: TuneSpec) -> int | None:
    """The number of trials; None if only time ends the search. For a mixture, the number of small models."""
    if isinstance(tune.searcher, MixtureSearchSpec):
        return tune.searcher.proxies
    if tune.searcher.name != "grid":
        return tune.trials
    whole = math.prod(len(parse(entry).ends) for entry in tune.space.values())
    return min(whole, tune.trials or whole)


def space_of(spec: PipelineSpec) -> dict[str, Any]:
    """`tune.space`; for a search over mixtures, the weights of all sources."""
    assert spec.tune is not None
    if spec.tune.searcher.name == "mixture":
        return {f"data.sources.{number}.weight": {"uniform": [0.0, 1.0]} for number in range(len(spec.data.sources))}
    return spec.tune.space


def with_values(spec: PipelineSpec, values: Values) -> PipelineSpec:
    """The pipeline of one trial: these values in their dotted fields, and no section `tune`.

    Raises pydantic's ValidationError.
    """
    plain = spec.model_dump() | {"tune": None}
    for field, value in values.items():
        *sections, last = field.split(".")
        place: Any = plain
        for section in sections:
            place = place[int(section)] if section.isdigit() else place[section]
        place[last] = value
    return PipelineSpec.model_validate(plain)


def field_problem(spec: PipelineSpec, field: str) -> str:
    """Why a field cannot be searched; empty if it can."""
    *sections, last = field.split(".")
    if sections[:2] == ["data", "sources"] and last == "weight" and len(sections) == 3:
        return _weight_problem(spec, sections[2])
    if not sections or sections[0] != "train":
        return (
            "decides what all trials share; the space contains fields of train, such as train.learning_rate, and "
            "data.sources.N.weight"
        )
    place: Any = spec
    for depth, section in enumerate(sections):
        place = getattr(place, section, None)
        if place is None or not hasattr(type(place), "model_fields"):
            known = ".".join(sections[: depth + 1])
            off = section in TrainSpec.model_fields
            return f"{known} is {'null here; set its fields' if off else 'not a section'}"
    if last not in type(place).model_fields:
        near = nearest(last, type(place).model_fields, 0.5)
        path = ".".join(sections)
        fix = f"did you mean {path}.{near}?" if near else f"known here: {', '.join(type(place).model_fields)}"
        return f"unknown field; {fix}"
    if field.removeprefix("train.") in _SHARED:
        return "is the same for all trials: it decides their corpus, their reference or their workers"
    if hasattr(type(getattr(place, last)), "model_fields"):
        return "is a section; name one of its fields"
    return ""


def _weight_problem(spec: PipelineSpec, number: str) -> str:
    """Why the weight of a source cannot be searched; empty if it can."""
    sources = spec.data.sources
    if not number.isdigit() or int(number) >= len(sources):
        return f"there is no source {number}; data.sources has 0 to {len(sources) - 1}"
    if any(source.weight is None for source in sources):
        return "give every source a weight in data.sources first, such as weight: 1"
    return ""


def combinations(spec: PipelineSpec) -> Iterator[Values]:
    """Combinations of ends and choices: all of them, or a random sample."""
    assert spec.tune is not None
    ends = {field: parse(entry).ends for field, entry in spec.tune.space.items()}
    if math.prod(len(values) for values in ends.values()) <= _COMBINATIONS:
        for values in itertools.product(*ends.values()):
            yield dict(zip(ends, values, strict=True))
        return
    draw = random.Random(spec.tune.seed)
    for _ in range(_COMBINATIONS):
        yield {field: draw.choice(values) for field, values in ends.items()}


@dataclass(frozen=True)
class SpaceProblem:
    """A mistake in the search space: its field (empty for several fields together), and what is wrong."""

    field: str
    words: str = ""
    error: Any = None
    """pydantic's error, for a value that the field does not allow"""


def problems_of(spec: PipelineSpec) -> list[SpaceProblem]:
    """Every mistake in `tune.space`, found before anything starts."""
    if spec.tune is None:
        return []
    if not spec.tune.space and spec.tune.searcher.name != "mixture":
        return [SpaceProblem("", "is empty; give it a field of train, such as train.learning_rate: [1e-4, 3e-4]")]
    found = []
    for field, entry in spec.tune.space.items():
        if problem := field_problem(spec, field):
            found.append(SpaceProblem(field, problem))
            continue
        try:
            dimension = parse(entry)
        except ValueError as mistake:
            found.append(SpaceProblem(field, str(mistake)))
            continue
        if isinstance(dimension, Range) and not dimension.is_whole and _holds_whole_numbers(spec, field):
            found.append(SpaceProblem(field, "takes integers; use int or logint, or a list of choices"))
            continue
        for value in dimension.ends:
            if (error := _error_of(spec, {field: value})) is not None and field.rpartition(".")[2] in error["loc"]:
                found.append(SpaceProblem(field, f"the value {value!r}: ", error))
                break
    if found:
        return found
    if spec.tune.searcher.name == "grid":
        ranges = [name for name, entry in spec.tune.space.items() if isinstance(parse(entry), Range)]
        return [SpaceProblem(name, "searcher grid needs a list of choices here") for name in ranges]
    for values in combinations(spec):
        if (error := _error_of(spec, values)) is not None:
            said = ", ".join(f"{name}={value!r}" for name, value in values.items())
            return [SpaceProblem("", f"with {said}: {error['msg'].removeprefix('Value error, ')}")]
    return []


def _holds_whole_numbers(spec: PipelineSpec, field: str) -> bool:
    error = _error_of(spec, {field: 1.5})
    return error is not None and error["type"] in ("int_from_float", "int_type")


def _error_of(spec: PipelineSpec, values: Values) -> Any:
    """pydantic's first error for these values; None if they are allowed."""
    try:
        with_values(spec, values)
    except ValidationError as error:
        return error.errors()[0]
    return None
