"""What a search cannot search or compare: mistakes in `tune.space` and `tune.metric`, found before anything starts.

Imports no library except pydantic.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from models.errors import nearest
from workflows.spec.constraints import parse_constraint
from workflows.spec.pipeline import PipelineSpec
from workflows.spec.section import HOW
from workflows.spec.serve import SAMPLING
from workflows.spec.space import Dimension, Range, Values, combinations, parse, with_values
from workflows.spec.train import TrainSpec
from workflows.spec.tune import COSTS, SUITE, TuneSpec

# Fields that all trials share, because they decide the corpus, its reference values, or the workers.
_SHARED = {"objective.name", "objective.teacher", "objective.top_k", "objective.max_reply_tokens", "precision"}
_SHARED |= {"num_workers", "adapter.quantize"}
_SHARED |= {name for name, field in TrainSpec.model_fields.items() if field.json_schema_extra == HOW}
# Fields that decide which weights are trained, their shapes, or how a checkpoint stores their optimizer states.
_SHAPES = {"adapter.method", "adapter.rank", "adapter.target_modules", "frozen", "zero.stage", "zero.offload"}


@dataclass(frozen=True)
class SpaceProblem:
    """A mistake in the search space: its field (empty for several fields together), and what is wrong."""

    field: str
    words: str = ""
    error: Any = None
    """pydantic's error, for a value that the field does not allow"""
    section: Literal["space", "metric", "constraints"] = "space"
    """the field of `tune` that has the mistake"""


def problems_of(spec: PipelineSpec) -> list[SpaceProblem]:
    """Every mistake in `tune.space` and `tune.metric`, found before anything starts."""
    if spec.tune is None:
        return []
    return [
        *_metric_problems(spec, spec.tune),
        *_constraint_problems(spec, spec.tune),
        *_space_problems(spec, spec.tune),
    ]


def _constraint_problems(spec: PipelineSpec, tune: TuneSpec) -> Iterator[SpaceProblem]:
    """The constraints on figures that no trial would report."""
    known = [*spec.train.objective.metrics, *COSTS, "tokens_per_second", *filter(_is_suite, tune.metric)]
    for figure in (parse_constraint(text).figure for text in tune.constraints):
        if figure not in known:
            near = nearest(figure, known)
            hint = f"did you mean {near}?" if near else f"known here: {', '.join(known)}"
            yield SpaceProblem("", f"got {figure}, which no checkpoint measures; {hint}", section="constraints")


def _is_suite(metric: str) -> bool:
    return metric.startswith(SUITE)


def _metric_problems(spec: PipelineSpec, tune: TuneSpec) -> Iterator[SpaceProblem]:
    """The metrics that no trial would report."""
    objective = spec.train.objective
    for metric in tune.metric:
        if metric not in objective.metrics and metric not in COSTS and not metric.startswith(SUITE):
            yield SpaceProblem(
                "",
                f"got {metric}, which a training with train.objective {objective.name} does not report; it reports "
                f"{_listed([*objective.metrics, *_suites(spec)])}; a second metric may also be "
                f"{_listed(COSTS, 'or')}",
                section="metric",
            )


def _incomparable(spec: PipelineSpec, tune: TuneSpec, field: str) -> str:
    """Why trials that differ in a field cannot be compared by `tune.metric`; empty if they can."""
    name, metrics = field.removeprefix("train."), spec.train.objective.metrics
    entering = {metric: {*fields, "held_out_tokens"} for metric, fields in metrics.items()}
    if spec.train.batch_tokens == "auto":  # then it decides the size of a pass
        for fields in entering.values():
            fields.update({"gradient_accumulation"} if "batch_tokens" in fields else ())
    wrong = [metric for metric in tune.metric if name in entering.get(metric, ())]
    if not wrong:
        return ""
    others = [metric for metric, fields in entering.items() if name not in fields] + _suites(spec)
    instead = f", or compare by {_listed(others, 'or')}" if others else ""
    return (
        f"enters {wrong[0]} itself (tune.metric), so trials with different values would be compared by different "
        f"measures; leave it out{instead}"
    )


def _suites(spec: PipelineSpec) -> list[str]:
    """What stands for the metrics of suites in a list, if this objective has them."""
    return [] if spec.train.objective.name == "adversarial" else [f"{SUITE}NAME (of evaluate.suites)"]


def _listed(names: Iterable[str], conjunction: str = "and") -> str:
    *most, last = names
    return f"{', '.join(most)} {conjunction} {last}" if most else last


def _space_problems(spec: PipelineSpec, tune: TuneSpec) -> list[SpaceProblem]:
    if not tune.space and tune.searcher.name != "mixture":
        return [SpaceProblem("", "is empty; give it a field of train, such as train.learning_rate: [1e-4, 3e-4]")]
    found = _sampling_problems(spec, tune) if spec.searches_sampling else []
    if found:
        return found
    for field, entry in tune.space.items():
        if problem := _field_problem(spec, field) or _incomparable(spec, tune, field):
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
        if problem := _condition_problem(tune, field, dimension):
            found.append(SpaceProblem(field, problem))
            continue
        for value in dimension.ends:
            if (error := _error_of(spec, {field: value})) is not None and field.rpartition(".")[2] in error["loc"]:
                found.append(SpaceProblem(field, f"the value {value!r}: ", error))
                break
    if found:
        return found
    if tune.searcher.name == "grid":
        ranges = [name for name, entry in tune.space.items() if isinstance(parse(entry), Range)]
        return [SpaceProblem(name, "searcher grid needs a list of choices here") for name in ranges]
    for values in combinations(spec):
        if (error := _error_of(spec, values)) is not None:
            said = ", ".join(f"{name}={value!r}" for name, value in values.items())
            return [SpaceProblem("", f"with {said}: {error['msg'].removeprefix('Value error, ')}")]
    return []


def _sampling_problems(spec: PipelineSpec, tune: TuneSpec) -> list[SpaceProblem]:
    """What a search over `serve.sampling`, which trains nothing, cannot have."""
    others = [field for field in tune.space if not field.startswith(SAMPLING)]
    if others:
        why = f"needs a training for each trial, and fields of {SAMPLING[:-1]} need none; search it first, on its own"
        return [SpaceProblem(others[0], why)]
    if wrong := [metric for metric in tune.metric if not metric.startswith(SUITE)]:
        why = f"got {wrong[0]}, on which sampling has no effect; name a suite to score replies by, as in {SUITE}NAME"
        return [SpaceProblem("", why, section="metric")]
    given = {
        "scheduler": tune.scheduler.name != "none", "constraints": tune.constraints, "min_gain": tune.min_gain,
        "max_cost": tune.max_cost, "warm_start": tune.warm_start, "pack": tune.pack != 1,
        "proxy": tune.proxy,
    }  # fmt: skip
    if unused := [f"tune.{name}" for name, is_given in given.items() if is_given]:
        return [SpaceProblem("", f"is of {SAMPLING[:-1]} and trains nothing; leave out {_listed(unused)}")]
    return []


def _condition_problem(tune: TuneSpec, field: str, dimension: Dimension) -> str:
    """What is wrong with an entry's `when`; empty if nothing is."""
    if dimension.when and tune.scheduler.name == "population":
        return "has a condition (when), which a population cannot keep, because it changes fields one by one"
    for other, values in dimension.when.items():
        entry = tune.space.get(other)
        choices = entry.get("choices", []) if isinstance(entry, dict) else entry
        if other == field or not isinstance(choices, list) or not choices:
            return f"when.{other}: must be another field of the space, with a list of choices"
        if unknown := [value for value in values if value not in choices]:
            return f"when.{other}: got {unknown[0]!r}, which is not among its choices {choices!r}"
    return ""


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


def _field_problem(spec: PipelineSpec, field: str) -> str:
    """Why a field cannot be searched; empty if it can."""
    *sections, last = field.split(".")
    if sections[:2] == ["data", "sources"] and last == "weight" and len(sections) == 3:
        return _weight_problem(spec, sections[2])
    if not field.startswith(("train.", SAMPLING)):
        return (
            "decides what all trials share; the space contains fields of train, such as train.learning_rate, and "
            f"data.sources.N.weight, or those of {SAMPLING[:-1]} alone"
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
    if spec.tune and spec.tune.scheduler.name == "population" and field.removeprefix("train.") in _SHAPES:
        return (
            "must be the same for all members of a population, which copy each other's weights and optimizer states: "
            "it decides their form; leave it out, or use another tune.scheduler"
        )
    return ""


def _weight_problem(spec: PipelineSpec, number: str) -> str:
    """Why the weight of a source cannot be searched; empty if it can."""
    sources = spec.data.sources
    if not number.isdigit() or int(number) >= len(sources):
        return f"there is no source {number}; data.sources has 0 to {len(sources) - 1}"
    if any(source.weight is None for source in sources):
        return "give every source a weight in data.sources first, such as weight: 1"
    return ""
