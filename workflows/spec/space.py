"""The search space of `tune.space`: its dimensions, their values, and the spec of a trial.

dimension = parse({"loguniform": [1e-5, 1e-3]})
trial_spec = with_values(spec, {"train.learning_rate": 3e-4})

Imports no library except pydantic.
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

from models.errors import nearest
from workflows.spec.pipeline import PipelineSpec
from workflows.spec.tune import MixtureSearchSpec, TuneSpec

Values = dict[str, object]
"""the settings of a trial: dotted field of the pipeline file -> value"""

Condition = Mapping[str, tuple[object, ...]]
"""other fields of the space, each with the choices for which a field is searched; empty: always"""

_KINDS = ("uniform", "loguniform", "int", "logint")
_COMBINATIONS = 256
_LONGEST_NAME = 57  # with `.proxy`, the longest name of a pipeline
# A search that only time ends is expected to try all of at most this many settings.
_MAX_WHOLE = 10_000


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included."""

    low: float
    high: float
    is_log: bool
    is_whole: bool
    step: int = 1
    """between its integers"""
    when: Condition = dataclass_field(default_factory=dict)

    @property
    def ends(self) -> list[Any]:
        """The two ends: if the field's bounds allow both, they allow everything between."""
        return [self.low, self.high]

    @property
    def count(self) -> int | None:
        """The number of its values; None if there is one between any two."""
        return len(self.integers) if self.is_whole else None

    @property
    def integers(self) -> range:
        """Its values, where they are integers."""
        return range(int(self.low), int(self.high) + 1, self.step)

    def nearest(self, value: float) -> float:
        """The value of the range that is nearest to `value`."""
        inside = min(max(value, self.low), self.high)
        return int(self.low) + round((inside - self.low) / self.step) * self.step if self.is_whole else inside


@dataclass(frozen=True)
class Choice:
    """A list of choices."""

    values: tuple[Any, ...]
    when: Condition = dataclass_field(default_factory=dict)

    @property
    def ends(self) -> list[Any]:
        """All choices."""
        return list(self.values)

    @property
    def count(self) -> int:
        """The number of choices."""
        return len(self.values)


Dimension = Range | Choice


def is_inside(dimension: Dimension, value: Any) -> bool:
    """Whether a search could draw this value."""
    if isinstance(dimension, Choice):
        return value in dimension.values
    return value in dimension.integers if dimension.is_whole else dimension.low <= value <= dimension.high


def parse(entry: Any) -> Dimension:
    """Parse an entry of `tune.space`; raises ValueError with the rule."""
    kind, bounds, step, when = _parts(entry)
    if not isinstance(when, dict) or any(isinstance(value, dict) for value in when.values()):
        raise ValueError(f"got when: {when!r}; must be other fields of the space with their choices, {_WHEN}")
    if kind == "choices":
        if not isinstance(bounds, list) or not bounds or any(isinstance(value, list | dict) for value in bounds):
            raise ValueError(f"got {bounds!r}; a list of choices holds one or more plain values, such as [8, 16, 32]")
        if len({repr(value) for value in bounds}) < len(bounds):
            raise ValueError(f"got {bounds!r}; it contains a choice twice, list each once")
        return dimension_of(entry)
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
    if step is not None:
        if kind != "int":
            raise ValueError(f"got step: {step!r} with {kind}; only int has steps, others a list of choices")
        if type(step) is not int or step < 1 or (high - low) % step:
            raise ValueError(f"got step: {step!r} for {bounds!r}; must be an integer that divides high - low")
    return dimension_of(entry)


_WHEN = "such as {when: {train.adapter.method: dora}, loguniform: [1e-5, 1e-3]}"


def _parts(entry: Any) -> tuple[str, Any, Any, Any]:
    """An entry's kind (of a list: `choices`; of no valid entry: its key, or nothing), bounds, step and condition."""
    if isinstance(entry, list):
        return "choices", entry, None, {}
    if not isinstance(entry, dict):
        return "", None, None, {}
    kinds = [str(key) for key in entry if key not in ("when", "step")]
    if len(kinds) != 1:
        return "", None, None, {}
    return kinds[0], entry[kinds[0]], entry.get("step"), entry.get("when", {})


def entry_of(dimension: Dimension) -> Any:
    """The entry of `tune.space` with this dimension."""
    when = {"when": {name: list(choices) for name, choices in dimension.when.items()}} if dimension.when else {}
    if isinstance(dimension, Choice):
        return {**when, "choices": [*dimension.values]} if when else [*dimension.values]
    kind = ("log" if dimension.is_log else "") + ("int" if dimension.is_whole else "")
    kind = {"": "uniform", "log": "loguniform"}.get(kind, kind)
    step = {"step": dimension.step} if dimension.step > 1 else {}
    return {**when, kind: [dimension.low, dimension.high], **step}


def dimension_of(entry: Any) -> Dimension:
    """An entry that `parse` has checked before, such as one of a search on the store."""
    kind, bounds, step, when = _parts(entry)
    condition = {name: tuple(value) if isinstance(value, list) else (value,) for name, value in when.items()}
    if kind == "choices":
        return Choice(tuple(bounds), condition)
    low, high = bounds
    return Range(low, high, kind.startswith("log"), kind.endswith("int"), step or 1, condition)


def active(dimensions: Mapping[str, Dimension], values: Values) -> Values:
    """The values of the fields whose conditions hold."""
    kept = dict(values)
    while off := [name for name in kept if name in dimensions and not _holds(dimensions[name].when, kept)]:
        kept = {name: value for name, value in kept.items() if name not in off}
    return kept


def _holds(condition: Condition, values: Values) -> bool:
    return all(name in values and values[name] in choices for name, choices in condition.items())


def all_settings(dimensions: Mapping[str, Dimension]) -> Iterator[Values]:
    """All settings of a space of lists and integers, each once."""
    each = [
        dimension.values if isinstance(dimension, Choice) else dimension.integers for dimension in dimensions.values()
    ]
    seen: set[str] = set()
    for values in itertools.product(*each):
        found = active(dimensions, dict(zip(dimensions, values, strict=True)))
        if len(found) == len(dimensions):
            yield found
        elif repr(found) not in seen:
            seen.add(repr(found))
            yield found


def size_of(dimensions: Mapping[str, Dimension]) -> int | None:
    """The number of different settings in a space; None if a field takes any number of a range.

    Of a large space with conditions, more than that.
    """
    counts = [dimension.count for dimension in dimensions.values()]
    if None in counts:
        return None
    size = math.prod(count for count in counts if count is not None)
    is_counted = size <= _MAX_WHOLE and any(dimension.when for dimension in dimensions.values())
    return sum(1 for _ in all_settings(dimensions)) if is_counted else size


def dimensions_of(space: Mapping[str, Any]) -> dict[str, Dimension]:
    """The dimensions of `tune.space`."""
    return {name: parse(entry) for name, entry in space.items()}


def trials_wanted(tune: TuneSpec) -> int | None:
    """The number of trials; None if only time ends the search. For a mixture, the number of small models.

    No search but a population tries a setting twice, so it has at most as many trials as its space has settings.
    """
    if isinstance(tune.searcher, MixtureSearchSpec):
        return tune.searcher.proxies
    if tune.scheduler.name == "population":
        return tune.trials
    size = size_of(dimensions_of(tune.space))
    if tune.trials is None:
        return size if size is not None and (size <= _MAX_WHOLE or tune.searcher.name == "grid") else None
    return tune.trials if size is None else min(tune.trials, size)


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


def value_of(spec: PipelineSpec, field: str) -> Any:
    """What a pipeline has in a dotted field."""
    place: Any = spec
    for section in field.split("."):
        place = place[int(section)] if section.isdigit() else getattr(place, section)
    return place


def proxy_pipeline(spec: PipelineSpec) -> PipelineSpec:
    """The pipeline whose search is that of `tune.proxy`: like `spec`, with the small model."""
    assert spec.tune is not None
    proxy = spec.tune.proxy
    assert proxy is not None
    tune = spec.tune.model_copy(update={"proxy": None, "trials": proxy.trials, "time_minutes": None})
    name = f"{spec.name[:_LONGEST_NAME]}.proxy"
    return spec.model_copy(update={"name": name, "base_model": proxy.base_model, "tune": tune})


def combinations(spec: PipelineSpec) -> Iterator[Values]:
    """Combinations of ends and choices: all of them, or a random sample."""
    assert spec.tune is not None
    dimensions = dimensions_of(spec.tune.space)
    ends = {name: dimension.ends for name, dimension in dimensions.items()}
    if math.prod(len(values) for values in ends.values()) <= _COMBINATIONS:
        for values in itertools.product(*ends.values()):
            yield active(dimensions, dict(zip(ends, values, strict=True)))
        return
    draw = random.Random(spec.tune.seed)
    for _ in range(_COMBINATIONS):
        yield active(dimensions, {name: draw.choice(values) for name, values in ends.items()})
