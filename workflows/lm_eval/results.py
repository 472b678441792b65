"""lm-eval's results as types: of each metric the task's own figure, and a score of each item."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workflows.record import Record
from workflows.spec import LmEvalSpec

# An item's value is its log-likelihood, alone or with its number of words or bytes.
_PERPLEXITIES = {"perplexity": 1.0, "word_perplexity": 1.0, "byte_perplexity": 1.0, "bits_per_byte": math.log(2)}


@dataclass(frozen=True, kw_only=True)
class TaskItem(Record):
    """An item, with what the model made of it."""

    id: str
    task: str
    """of lm-eval: one of those of a group"""
    prompt: str
    replies: list[str]
    """what was generated; or, of each choice or text, its log-probability"""
    expected: str


@dataclass(frozen=True, kw_only=True)
class TaskMetric(Record):
    """One metric over all items."""

    name: str
    """with the filter of the replies, if the task names one: `exact_match,strict-match`"""
    value: float
    """the task's own figure, as lm-eval prints it"""
    higher_is_better: bool
    """of `value` and of `scores`"""
    scores: dict[str, float]
    """by item; of perplexities nats a word or a byte, or bits a byte. Empty if an item has none of its own (F1)."""
    weights: dict[str, float]
    """by item: what it counts in `value`, such as its number of words"""


@dataclass(frozen=True, kw_only=True)
class TaskResult(Record):
    """A model's result in a task, or in all tasks of a group."""

    name: str
    field: str
    """of the pipeline file, dotted"""
    golden: bool
    items: list[TaskItem]
    metrics: list[TaskMetric]
    """in the task's order; the first one is the task's main metric"""


def read_results(found: Mapping[str, Any], entry: LmEvalSpec, field: str) -> list[TaskResult]:
    """Of a group of lm-eval one result over all its tasks; otherwise one of each task."""
    whole = [] if entry.is_folder else [entry.task]
    groups = [name for name in whole if name not in found["samples"]]
    parts = [(name, [*found["samples"]]) for name in groups] or [(name, [name]) for name in found["samples"]]
    return [_result(found, name, tasks, entry, field) for name, tasks in parts]


def _result(found: Mapping[str, Any], name: str, tasks: Sequence[str], entry: LmEvalSpec, field: str) -> TaskResult:
    samples = [(task, sample) for task in tasks for sample in found["samples"][task]]
    items = {_id(task, sample, tasks): _item(task, sample, tasks) for task, sample in samples}
    keys = dict.fromkeys((metric, sample["filter"]) for _, sample in samples for metric in sample["metrics"])
    metrics = [_metric(found, name, tasks, samples, *key) for key in keys]
    return TaskResult(
        name=name, field=field, golden=entry.golden, items=list(items.values()),
        metrics=[metric for metric in metrics if metric is not None],
    )  # fmt: skip


def _metric(
    found: Mapping[str, Any],
    name: str,
    tasks: Sequence[str],
    samples: Sequence[tuple[str, Any]],
    metric: str,
    filter_name: str,
) -> TaskMetric | None:
    """None if neither the task nor its items have a number."""
    scores, weights = {}, {}
    for task, sample in samples:
        score = _score(metric, sample[metric]) if sample["filter"] == filter_name and metric in sample else None
        if score is not None:
            scores[_id(task, sample, tasks)], weights[_id(task, sample, tasks)] = score
    value = found["results"].get(name, {}).get(f"{metric},{filter_name}")
    if not isinstance(value, int | float) and scores:
        value = sum(scores[each] * weights[each] for each in scores) / sum(weights.values())
    if not isinstance(value, int | float):
        return None
    better = found["higher_is_better"]
    return TaskMetric(
        name=metric if filter_name == "none" else f"{metric},{filter_name}",
        value=float(value),
        higher_is_better=bool(better.get(name, better.get(tasks[0], {})).get(metric, True)),
        scores=scores,
        weights=weights,
    )


def _score(metric: str, value: Any) -> tuple[float, float] | None:
    """An item's score and weight."""
    if metric in _PERPLEXITIES:
        loglikelihood, size = value if isinstance(value, tuple) else (value, 1)
        return (-loglikelihood / max(size, 1) / _PERPLEXITIES[metric], float(size)) if size else None
    if isinstance(value, list) and value and all(_is_number(each) for each in value):
        return sum(map(float, value)) / len(value), float(len(value))
    return (float(value), 1.0) if _is_number(value) else None


def _is_number(value: Any) -> bool:
    """Also of numpy; false for NaN."""
    try:
        return not isinstance(value, str | tuple | list) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _id(task: str, sample: Mapping[str, Any], tasks: Sequence[str]) -> str:
    return str(sample["doc_id"]) if len(tasks) == 1 else f"{task}/{sample['doc_id']}"


def _item(task: str, sample: Mapping[str, Any], tasks: Sequence[str]) -> TaskItem:
    replies = [reply for replies in sample["resps"] for reply in replies]
    choices = sample["arguments"] if len(sample["arguments"]) > 1 else []
    told = [_shown(reply) for reply in replies]
    if len(choices) == len(told):  # several choices: which one has which log-probability
        told = [f"{choice[-1]}: {each}" for choice, each in zip(choices, told, strict=True)]
    return TaskItem(
        id=_id(task, sample, tasks),
        task=task,
        prompt=str(sample["arguments"][0][0]),
        replies=told,
        expected=str(sample["target"]),
    )


def _shown(reply: Any) -> str:
    value = reply[0] if isinstance(reply, tuple) else reply
    return value if isinstance(value, str) else f"{value:.4f}"
