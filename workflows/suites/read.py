"""Read the suites of evaluate.

suites = read_suites(spec.evaluate)
"""

from functools import partial

from models.scorers.base import Scorer
from models.scorers.names import KEYS
from models.scorers.registry import scorer_named
from workflows.json_lines import JsonLine, json_lines, listed
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
    filesystem, files = suite_files(suite, field)
    lines = [line for file in files for line in json_lines(field, filesystem, file)]
    if not lines:
        raise StageFailed(f"{field}.path: {without_secrets(suite.path)} has no items; remove the suite, or add some")
    scorer: Scorer | UserScorer
    if user := user_scorer(suite, field):
        scorer, name, reading = user, user.name, Reading(None, lambda record: record)
    else:
        name = suite.scorer or _scorer_by_key(lines[0])
        scorer = scorer_named(name, suite.normalize)
        reading = Reading(KEYS[name], scorer.read)
    items: dict[str, Item] = {}
    for line in lines:
        item = line.read(partial(item_of, place=line.place, reading=reading))
        if item.id in items:
            raise StageFailed(
                f"{field}: {line.place}: the id {item.id!r} is that of {items[item.id].place} too; give each item "
                "its own"
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


def _scorer_by_key(first: JsonLine) -> str:
    """The scorer whose key the first item has; raises StageFailed unless there is exactly one."""
    keys = keys_in(first.record)
    names = [name for name, key in KEYS.items() if key in keys]
    if len(names) == 1:
        return names[0]
    if names:
        raise StageFailed(
            f"{first.field}.scorer: {first.place} has {listed(sorted(keys))}, for {' or '.join(names)}; set `scorer` "
            "to one of them"
        )
    known = ", ".join(f"`{key}`" for key in dict.fromkeys(KEYS.values()))
    raise StageFailed(
        f"{first.field}: {first.place}: nothing says what is expected of a reply; add one of {known}, or set `scorer`"
    )
