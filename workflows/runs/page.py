"""Write the report of a run: one HTML page, which needs neither network nor store.

rayconteur report PIPELINE
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from workflows.corpus.inspection.tally import FaultExample, read_inspection
from workflows.corpus.inspection.text import FAULT_TITLES, inspection_table
from workflows.figures import OptimizeFigures
from workflows.progress import duration, figure
from workflows.release.table import HEADINGS, forms_table
from workflows.runs.records import find_run, status_of
from workflows.scorecard.records import Scorecard
from workflows.search.records import Search, read_search
from workflows.search.table import (
    forecast_rows,
    headings,
    headline,
    ranked,
    trial_rows,
    winner_line,
    winner_values,
)
from workflows.stage import STAGE_NAMES
from workflows.store import Artifact, RunRecord, Store
from workflows.training.curves import curves_figure
from workflows.training.history import History

_TEMPLATE = "page.html.j2"
_MAX_OPEN_TRIALS = 30


def write_report(store: Store, pipeline: str, run: str | None, output: str | None) -> tuple[Path, RunRecord]:
    """Write the page of a run, the pipeline's last one if `run` is None; returns its file and the run's record.

    Raises RayconteurError if there is no such run.
    """
    record = find_run("report", store, pipeline, run)
    file = Path(output or f"{record.run}.html").resolve()
    file.write_text(_page(store, record), encoding="utf-8")
    return file, record


def _page(store: Store, record: RunRecord) -> str:
    import jinja2

    artifacts = _artifacts(store, record)
    optimize, evaluate = artifacts.get("optimize"), artifacts.get("evaluate")
    tune, release = record.key_of("tune"), optimize and OptimizeFigures.from_json(optimize.figures)
    search = read_search(store, tune) if tune else None
    data = _data(store, artifacts["prepare"]) if "prepare" in artifacts else None
    is_drawn = search is not None or data is not None or "train" in artifacts
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(_TEMPLATE).render(
        record=record,
        status=status_of(record),
        took=duration(sum(entry.seconds for entry in record.stages.values())),
        stages=[_stage(artifact) for artifact in artifacts.values()],
        headings=HEADINGS,
        forms=forms_table(release) if release else [],
        optimize=release,
        scorecard=_read_scorecard(store, evaluate) if evaluate else None,
        plotly=_plotly() if is_drawn else "",
        search=_search(search) if search else None,
        data=data,
        curves=_curves(store, artifacts["train"]) if "train" in artifacts else "",
        spec=yaml.safe_dump(record.spec, sort_keys=False, allow_unicode=True),
        versions=next((artifact.versions for artifact in reversed(list(artifacts.values()))), {}),
    )


def _artifacts(store: Store, record: RunRecord) -> dict[str, Artifact]:
    """The artifacts of the run's stages, in their order, and the deployment of its release."""
    found = {name: store.find(name, entry.key) for name, entry in record.stages.items()}
    release = record.key_of("optimize")
    endpoints = [artifact for artifact in store.all_of("deploy") if artifact.inputs.get("optimize") == release]
    if release and endpoints:
        found["deploy"] = endpoints[-1]
    return {name: artifact for name in STAGE_NAMES if (artifact := found.get(name)) is not None}


@dataclass(frozen=True)
class _StageRow:
    """A stage on the page."""

    name: str
    key: str
    took: str
    figures: dict[str, str]
    """formatted numbers, no lists"""


def _stage(artifact: Artifact) -> _StageRow:
    shown = {
        name.replace("_", " "): figure(value)
        for name, value in artifact.figures.items()
        if not isinstance(value, list | dict)
    }
    return _StageRow(artifact.stage, artifact.key, duration(artifact.seconds), shown)


def _read_scorecard(store: Store, artifact: Artifact) -> Scorecard:
    found = store.read_json(store.path("evaluate", artifact.key, "scorecard.json"))
    return Scorecard.from_json(found or artifact.figures)


@dataclass(frozen=True)
class _DataPart:
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    plots: list[str]
    faults: dict[str, list[FaultExample]]
    """examples by the title of their fault"""


def _data(store: Store, artifact: Artifact) -> _DataPart | None:
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
        plots=[_drawn(figure) for figure in (length_bars(found), language_bars(found)) if figure is not None],
        faults={title: examples for title, examples in faults.items() if examples},
    )


@dataclass(frozen=True)
class _SearchPart:
    how: str
    headline: str
    winner: str
    values: dict[str, str]
    plots: list[str]
    headings: list[str]
    trials: list[list[str]]
    is_long: bool
    mixtures: tuple[list[str], list[list[str]]]
    """of a search over mixtures: headings and rows of the candidates"""


def _search(search: Search) -> _SearchPart:
    """A search on the page."""
    from workflows.search.plots import (
        forecast_points,
        importance_bars,
        metric_over_steps,
        parallel_coordinates,
        pareto,
    )

    draws = (forecast_points, parallel_coordinates, metric_over_steps, importance_bars, pareto)
    figures = [draw(search) for draw in draws]
    return _SearchPart(
        how=f"{search.searcher}, {search.scheduler}",
        headline=headline(search),
        winner=winner_line(search),
        values=winner_values(search),
        plots=[_drawn(figure) for figure in figures if figure is not None],
        headings=headings(search),
        trials=trial_rows(search, ranked(search)),
        is_long=len(search.trials) > _MAX_OPEN_TRIALS,
        mixtures=forecast_rows(search),
    )


def _curves(store: Store, artifact: Artifact) -> str:
    """All curves of the training."""
    with store.filesystem.open_input_stream(store.path("train", artifact.key, "history.jsonl")) as stream:
        history = History(stream.read().decode())
    return _drawn(curves_figure(history.lines))


def _drawn(figure: Any) -> str:
    """A plotly figure as HTML, for a page that includes plotly.js."""
    drawn: str = figure.to_html(full_html=False, include_plotlyjs=False)
    return drawn


def _plotly() -> str:
    """plotly.js whole, so that the page needs no network."""
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source
