"""The search space of `tune.space`: its dimensions, their values, and the spec of a trial.

dimension = parse({"loguniform": [1e-5, 1e-3]})
trial_spec = with_values(spec, {"train.learning_rate": 3e-4})

Imports no library except pydantic.
"""

import itertools
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from models.errors import nearest
from workflows.spec.pipeline import PipelineSpec
from workflows.spec.tune import MixtureSearchSpec, TuneSpec

Values = dict[str, object]
"""the settings of a trial: dotted field of the pipeline file -> value"""

_KINDS = ("uniform", "loguniform", "int", "logint")
_COMBINATIONS = 256
# A search that only time ends is expected to try all of at most this many settings.
_MAX_WHOLE = 10_000


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

    @property
    def count(self) -> int | None:
        """The number of its values; None if there is one between any two."""
        return int(self.high) - int(self.low) + 1 if self.is_whole else None

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

    @property
    def count(self) -> int:
        """The number of choices."""
        return len(self.values)


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


def size_of(dimensions: Iterable[Dimension]) -> int | None:
    """The number of different settings in a space; None if a field takes any number of a range."""
    counts = [dimension.count for dimension in dimensions]
    return None if None in counts else math.prod(count for count in counts if count is not None)


def trials_wanted(tune: TuneSpec) -> int | None:
    """The number of trials; None if only time ends the search. For a mixture, the number of small models.

    No search but a population tries a setting twice, so it has at most as many trials as its space has settings.
    """
    if isinstance(tune.searcher, MixtureSearchSpec):
        return tune.searcher.proxies
    if tune.scheduler.name == "population":
        return tune.trials
    size = size_of(map(parse, tune.space.values()))
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
