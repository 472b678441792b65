"""The page that compares runs: what differs, suites with intervals, replies to the same items, and curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from workflows.progress import duration
from workflows.runs.page.changes import Change, changes_of, figures_of, flat, table_of
from workflows.runs.page.compared_replies import Evaluated, compared_replies_json
from workflows.runs.page.forest import Forest, forest_of
from workflows.runs.page.html import COLOURS, Plots, packed_json, render
from workflows.runs.page.stored import artifacts_of, read_history, read_items, read_scorecard
from workflows.runs.page.verdict import Verdict, verdict_of
from workflows.runs.records import status_of
from workflows.scorecard.comparisons import Measure, compare_all
from workflows.scorecard.records import Compared, Scorecard, ScoredItem, SuiteFigures
from workflows.store import Artifact, RunRecord, Store
from workflows.training.curves import Curve, Panel, panel_figure, panels_of
from workflows.training.history import History

if TYPE_CHECKING:
    from markupsafe import Markup

_TUNED = "tuned"
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class _Run:
    """A run with all that the page reads of it."""

    record: RunRecord
    artifacts: Mapping[str, Artifact]
    card: Scorecard | None
    items: Sequence[ScoredItem]
    history: History | None

    @property
    def name(self) -> str:
        return self.record.run


def comparison_page(store: Store, records: Sequence[RunRecord]) -> str:
    """The page as HTML; the first run is the one that the others are compared with."""
    runs = [_read(store, record) for record in records]
    plots = Plots()
    return render(
        "comparison.html.j2",
        pipeline=records[-1].pipeline,
        runs=[_shown(run) for run in runs],
        stages=table_of([{stage: artifact.key for stage, artifact in run.artifacts.items()} for run in runs]),
        settings=changes_of([flat(run.record.spec) for run in runs]),
        figures=_figures(runs),
        against_base=forest_of(_against_base(runs), "base"),
        pairs={run.name: forest for run in runs[1:] if (forest := _item_by_item(runs[0], run))},
        replies=_replies(runs),
        curves=_curves(runs, plots),
        plots=plots,
    )


def _read(store: Store, record: RunRecord) -> _Run:
    artifacts = artifacts_of(store, record)
    evaluate, train = artifacts.get("evaluate"), artifacts.get("train")
    return _Run(
        record,
        artifacts,
        read_scorecard(store, evaluate) if evaluate else None,
        read_items(store, evaluate.key) if evaluate else [],
        read_history(store, train) if train else None,
    )


@dataclass(frozen=True)
class _RunRow:
    record: RunRecord
    status: str
    took: str
    verdict: Verdict | None


def _shown(run: _Run) -> _RunRow:
    took = duration(sum(entry.seconds for entry in run.record.stages.values()))
    verdict = verdict_of(run.card.passed, run.card.verdict) if run.card else None
    return _RunRow(run.record, status_of(run.record), took, verdict)


def _figures(runs: Sequence[_Run]) -> list[Change]:
    """All figures of the stages that differ, and no others."""
    differing = {
        stage
        for run in runs
        for stage in run.artifacts
        if len({other.artifacts[stage].key for other in runs if stage in other.artifacts}) > 1
    }
    return table_of(
        [figures_of({stage: found for stage, found in run.artifacts.items() if stage in differing}) for run in runs]
    )


def _against_base(runs: Sequence[_Run]) -> list[Compared]:
    """Every measure of every run against the base model, the runs as slices of the measure."""
    return [
        replace(each, slice=run.name)
        for run in runs
        for each in (run.card.comparisons if run.card else ())
        if each.slice is None and each.against == "base"
    ]


def _replies(runs: Sequence[_Run]) -> str:
    """What the first run and the others replied to the same items, packed; empty without such items."""
    first, *others = runs
    different = [run for run in others if _differ(first, run)]
    evaluated = [Evaluated(run.name, run.card, run.items) for run in (first, *different) if run.card]
    found = compared_replies_json(evaluated[0], evaluated[1:]) if different else None
    return packed_json(found) if found else ""


def _differ(first: _Run, second: _Run) -> bool:
    """Whether both runs have an evaluation, each its own."""
    keys = {run.artifacts["evaluate"].key for run in (first, second) if run.card}
    return len(keys) == 2


def _item_by_item(first: _Run, second: _Run) -> Forest | None:
    """Both checkpoints on the items that both replied to; None without such items, or with the same evaluation."""
    if not _differ(first, second) or first.card is None or second.card is None:
        return None
    lower = {each.measure for each in second.card.comparisons if each.lower_is_better}
    scorers = {suite.name: (suite.scorer, suite.unit) for suite in first.card.suites}
    same = [suite for suite in second.card.suites if scorers.get(suite.name) == (suite.scorer, suite.unit)]
    measures = [_measure(suite, first, second, suite.name in lower) for suite in same]
    compared = compare_all([each for each in measures if each.clusters], [first.name], _CONFIDENCE)
    return forest_of([each.record for each in compared], first.name)


def _measure(suite: SuiteFigures, first: _Run, second: _Run, lower_is_better: bool) -> Measure:
    """The scores of both checkpoints on the items that were the same for both."""
    scored = [
        {(item.id, *item.asked): item for item in run.items if item.suite == suite.name and _TUNED in item.scores}
        for run in (first, second)
    ]
    pairs = [(scored[0][key], item) for key, item in scored[1].items() if key in scored[0]]
    return Measure(
        name=suite.name,
        unit=suite.unit,  # type: ignore[arg-type]
        scores={
            first.name: [before.scores[_TUNED] for before, _ in pairs],
            _TUNED: [item.scores[_TUNED] for _, item in pairs],
        },
        clusters=[item.group for _, item in pairs],
        tags=[item.tags for _, item in pairs],
        lower_is_better=lower_is_better,
        golden=suite.golden,
    )


def _curves(runs: Sequence[_Run], plots: Plots) -> "list[Markup]":
    """The curves of all trainings over each other; runs with the same training have one curve."""
    trainings = {run.artifacts["train"].key: run for run in runs if run.history}
    panels: dict[str, list[Panel]] = {}
    for run in trainings.values():
        assert run.history
        for panel in panels_of(run.history.lines):
            named: dict[str, Curve] = {f"{run.name} {name}": curve for name, curve in panel.curves.items()}
            panels.setdefault(panel.title, []).append(replace(panel, curves=named))
    colours = {run.name: COLOURS[place % len(COLOURS)] for place, run in enumerate(runs)}
    return [plots.add(_drawn(_together(found), colours)) for found in panels.values()]


def _drawn(panel: Panel, colours: Mapping[str, str]) -> Any:
    """A panel in which all curves of a run have one colour."""
    figure = panel_figure(panel)
    for trace in figure.data:
        trace.line.color = colours[trace.name.split()[0]]
    return figure


def _together(panels: Sequence[Panel]) -> Panel:
    curves = {name: curve for panel in panels for name, curve in panel.curves.items()}
    skipped = sorted({step for panel in panels for step in panel.skipped})
    return replace(panels[0], curves=curves, skipped=skipped)
