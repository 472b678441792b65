"""The page of one run: verdict, comparisons, replies, curves, data, search, release, and what has changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

from workflows.corpus.inspection.tally import FaultExample, read_inspection
from workflows.corpus.inspection.text import FAULT_TITLES, inspection_table
from workflows.figures import OptimizeFigures
from workflows.judge.text import judge_text
from workflows.progress import duration, figure
from workflows.release.table import HEADINGS, forms_table
from workflows.runs.page.changes import Change, changes_of, figures_of, flat
from workflows.runs.page.forest import Forest, forest_of
from workflows.runs.page.html import Plots, packed_json, render
from workflows.runs.page.replies import replies_json
from workflows.runs.page.stored import artifacts_of, read_history, read_items, read_judged, read_scorecard, run_before
from workflows.runs.page.suites import SuiteTable, suite_table
from workflows.runs.page.verdict import Verdict, verdict_of
from workflows.runs.records import status_of
from workflows.scorecard.records import PartLoss
from workflows.search.price_text import price_lines
from workflows.search.records import Search, read_search
from workflows.search.table import (
    forecast_rows,
    headings,
    headline,
    ranked,
    region_text,
    trial_rows,
    winner_line,
    winner_values,
)
from workflows.store import Artifact, RunRecord, Store
from workflows.training.curves import panel_figure, panels_of

if TYPE_CHECKING:
    from markupsafe import Markup

_MAX_OPEN_TRIALS = 30
_MAX_TRIALS = 1000
"""whose rows a page has: browsers are slow with more"""


def run_page(store: Store, record: RunRecord) -> str:
    """The page as HTML."""
    artifacts = artifacts_of(store, record)
    optimize, evaluate, prepare = (artifacts.get(stage) for stage in ("optimize", "evaluate", "prepare"))
    release = optimize and OptimizeFigures.from_json(optimize.figures)
    tune = record.key_of("tune")
    search = read_search(store, tune) if tune else None
    plots = Plots()
    return render(
        "run.html.j2",
        record=record,
        status=status_of(record),
        took=duration(sum(entry.seconds for entry in record.stages.values())),
        stages=[_stage(artifact) for artifact in artifacts.values()],
        headings=HEADINGS,
        forms=forms_table(release) if release else [],
        optimize=release,
        card=_card(store, evaluate) if evaluate else None,
        curves=_curves(store, artifacts["train"], plots) if "train" in artifacts else [],
        data=_data(store, prepare, plots) if prepare else None,
        search=_search(store, search, plots) if search else None,
        changes=_changes(store, record, artifacts),
        spec=yaml.safe_dump(record.spec, sort_keys=False, allow_unicode=True),
        versions=next((artifact.versions for artifact in reversed(list(artifacts.values()))), {}),
        plots=plots,
    )


@dataclass(frozen=True)
class _StageRow:
    """A stage on the page."""

    name: str
    key: str
    took: str
    figures: dict[str, str]
    """formatted numbers, no lists; the verdict has its own place"""


def _stage(artifact: Artifact) -> _StageRow:
    shown = {
        name.replace("_", " "): figure(value)
        for name, value in artifact.figures.items()
        if not isinstance(value, list | dict) and name != "verdict"
    }
    return _StageRow(artifact.stage, artifact.key, duration(artifact.seconds), shown)


@dataclass(frozen=True)
class _CardPart:
    verdict: Verdict
    service: str | None
    judge: list[str]
    """lines of words about it; empty without a judge"""
    forests: dict[str, Forest]
    """by the other model in words"""
    suites: SuiteTable | None
    parts: tuple[PartLoss, ...]
    replies: str
    """packed JSON; empty if nothing was asked"""


def _card(store: Store, artifact: Artifact) -> _CardPart:
    """The scorecard on the page."""
    card = read_scorecard(store, artifact)
    replies = replies_json(card, read_items(store, artifact.key), read_judged(store, artifact.key))
    others = {"the release in service": "service", "the base model": "base"}
    forests = {title: forest for title, other in others.items() if (forest := forest_of(card.comparisons, other))}
    return _CardPart(
        verdict=verdict_of(card.passed, card.verdict),
        service=card.service,
        judge=[line.strip() for line in judge_text(card.judge).splitlines()] if card.judge else [],
        forests=forests,
        suites=suite_table(card),
        parts=card.parts,
        replies=packed_json(replies) if replies else "",
    )


@dataclass(frozen=True)
class _DataPart:
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    plots: "list[Markup]"
    faults: dict[str, list[FaultExample]]
    """examples by the title of their fault"""


def _data(store: Store, artifact: Artifact, plots: Plots) -> _DataPart | None:
    """The inspection of the conversations on the page; None of those that an earlier version has prepared."""
    from workflows.corpus.inspection.plots import language_bars, length_bars

    found = read_inspection(store, artifact.key)
    if found is None:
        return None
    headings, rows = inspection_table(found)
    faults = {
        title: [example for example in found.examples if example.fault == fault]
        for fault, title in FAULT_TITLES.items()
    }
    return _DataPart(
        headings=headings,
        rows=rows,
        plots=[plots.add(figure) for figure in (length_bars(found), language_bars(found)) if figure is not None],
        faults={title: examples for title, examples in faults.items() if examples},
    )


@dataclass(frozen=True)
class _SearchPart:
    how: str
    headline: str
    winner: str
    price: list[str]
    values: dict[str, str]
    plots: "list[Markup]"
    headings: list[str]
    trials: list[list[str]]
    """the best ones"""
    num_trials: int
    is_long: bool
    mixtures: tuple[list[str], list[list[str]]]
    """of a search over mixtures: headings and rows of the candidates"""
    region: str
    """with `tune.proxy`: where the proxy's best trials were"""
    on_proxy: tuple[list[str], list[list[str]]]
    """headings and rows of the proxy's trials"""


def _search(store: Store, search: Search, plots: Plots) -> _SearchPart:
    """A search on the page."""
    from workflows.search.plot_lines import metric_over_steps
    from workflows.search.plots import forecast_points, importance_bars, parallel_coordinates, pareto

    proxy = read_search(store, search.proxy.search) if search.proxy else None
    draws = (forecast_points, parallel_coordinates, metric_over_steps, importance_bars, pareto)
    figures = [draw(search) for draw in draws]
    return _SearchPart(
        how=f"{search.searcher}, {search.scheduler}",
        headline=headline(search),
        winner=winner_line(search),
        price=price_lines(search),
        values=winner_values(search),
        plots=[plots.add(figure) for figure in figures if figure is not None],
        headings=headings(search),
        trials=trial_rows(search, ranked(search)[:_MAX_TRIALS]),
        num_trials=len(search.trials),
        is_long=len(search.trials) > _MAX_OPEN_TRIALS,
        mixtures=forecast_rows(search),
        region=region_text(search.proxy, search.space) if search.proxy else "",
        on_proxy=(headings(proxy), trial_rows(proxy, ranked(proxy))) if proxy else ([], []),
    )


def _curves(store: Store, artifact: Artifact, plots: Plots) -> "list[Markup]":
    """All curves of the training."""
    return [plots.add(panel_figure(panel)) for panel in panels_of(read_history(store, artifact).lines)]


@dataclass(frozen=True)
class _ChangesPart:
    """What differs from the run before."""

    run: str
    settings: list[Change]
    figures: list[Change]
    stages: list[str]
    """those with another artifact"""


def _changes(store: Store, record: RunRecord, artifacts: Mapping[str, Artifact]) -> _ChangesPart | None:
    """What differs from the run before; None if there is none."""
    before = run_before(store, record)
    if before is None:
        return None
    earlier = {stage: found for stage, found in artifacts_of(store, before).items() if stage in artifacts}
    now = {stage: artifacts[stage] for stage in earlier}
    return _ChangesPart(
        run=before.run,
        settings=changes_of([flat(before.spec), flat(record.spec)]),
        figures=changes_of([figures_of(earlier), figures_of(now)]),
        stages=[stage for stage in now if earlier[stage].key != now[stage].key],
    )
