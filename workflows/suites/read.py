"""Read the suites of evaluate.

suites = read_suites(spec.evaluate)
"""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from models.scorers.base import Scorer
from models.scorers.names import KEYS
from models.scorers.registry import scorer_named
from workflows.spec import EvaluateSpec, PipelineSpec, SuiteSpec
from workflows.spec.tune import SUITE
from workflows.stage import StageFailed
from workflows.store import without_secrets
from workflows.suites.files import fields_of, suite_files, user_scorer
from workflows.suites.layouts import Reading, item_of, keys_in
from workflows.suites.suite import Item, Suite
from workflows.suites.user_scorer import UserScorer


def read_suites(evaluate: EvaluateSpec) -> list[Suite]:
    """The suites with their items, and with scorers that are ready; raises StageFailed with field, file and line."""
    suites = read_items(evaluate)
    for suite in suites:
        if isinstance(suite.scorer, UserScorer):
            suite.scorer.function()  # fails here if it cannot be imported, and not after the models have replied
    return suites


def read_items(evaluate: EvaluateSpec) -> list[Suite]:
    """`read_suites`, but imports no code of the user: that may lack here what the cluster has."""
    return [_read_suite(suite, field, evaluate.max_new_tokens) for field, suite in fields_of(evaluate)]


def measured_suites(spec: PipelineSpec) -> list[Suite]:
    """The suites that can be scored during a training: those with replies. Raises StageFailed."""
    return [suite for suite in read_suites(spec.evaluate) if not suite.is_scored_by_loss]


def metric_suites(spec: PipelineSpec) -> list[Suite]:
    """The suites whose scores are metrics of the search. Raises StageFailed."""
    metrics = [] if spec.tune is None else spec.tune.metric
    named = {metric.removeprefix(SUITE) for metric in metrics if metric.startswith(SUITE)}
    return [suite for suite in measured_suites(spec) if suite.name in named] if named else []


def _read_suite(suite: SuiteSpec, field: str, max_new_tokens: int) -> Suite:
    records = list(_records(suite, field))
    if not records:
        raise StageFailed(f"{field}.path: {without_secrets(suite.path)} has no items; remove the suite, or add some")
    scorer: Scorer | UserScorer
    if user := user_scorer(suite, field):
        scorer, name, reading = user, user.name, Reading(None, lambda record: record)
    else:
        name = suite.scorer or _scorer_by_key(records, field)
        scorer = scorer_named(name, suite.normalize)
        reading = Reading(KEYS[name], scorer.read)
    items: dict[str, Item] = {}
    for place, record in records:
        try:
            item = item_of(record, place, reading)
        except ValueError as error:
            raise StageFailed(f"{field}: {place}: {error}") from None
        if item.id in items:
            raise StageFailed(
                f"{field}: {place}: the id {item.id!r} is that of {items[item.id].place} too; give each item its own"
            )
        items[item.id] = item
    return Suite(
        name=suite.shown_name,
        items=tuple(items.values()),
        scorer=scorer,
        scorer_name=name,
        golden=suite.golden,
        max_new_tokens=suite.max_new_tokens or max_new_tokens,
        field=field,
    )


def _records(suite: SuiteSpec, field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and the JSON object of each line that is not empty."""
    filesystem, files = suite_files(suite, field)
    for file in files:
        try:
            with filesystem.open_input_stream(file) as stream:
                lines = stream.read().splitlines()
        except (OSError, pa.ArrowException) as error:
            raise StageFailed(f"{field}.path: cannot read {without_secrets(suite.path)}: {error}") from error
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{file}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise StageFailed(f"{field}: {place}: not JSON ({error}); write one JSON object a line") from None
            if not isinstance(record, dict):
                raise StageFailed(f"{field}: {place}: not a JSON object; write one a line")
            yield place, record


def _scorer_by_key(records: list[tuple[str, dict[str, Any]]], field: str) -> str:
    """The scorer whose key the first item has; raises StageFailed unless there is exactly one."""
    place, record = records[0]
    keys = keys_in(record)
    names = [name for name, key in KEYS.items() if key in keys]
    if len(names) == 1:
        return names[0]
    if names:
        raise StageFailed(
            f"{field}.scorer: {place} has {' and '.join(f'`{key}`' for key in sorted(keys))}, for "
            f"{' or '.join(names)}; set `scorer` to one of them"
        )
    known = ", ".join(f"`{key}`" for key in dict.fromkeys(KEYS.values()))
    raise StageFailed(
        f"{field}: {place}: nothing says what is expected of a reply; add one of {known}, or set `scorer`"
    )
