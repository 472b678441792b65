"""The metric of a search over steps, with plotly.

metric_over_steps(search).show()
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from workflows.search.plot_parts import (
    AT_STEP,
    COLOURS,
    GREY,
    MANY,
    RED,
    add_marks,
    add_star,
    colour_bounds,
    hover,
    hover_of_many,
    kind_of,
    laid_out,
    short,
    span_decades,
)
from workflows.search.records import FAILED, STOPPED, Search, Trial, higher_is_better
from workflows.search.table import best_value, plain, ranked

_SHADES = 16
"""of the lines of many trials: each shade is one trace"""
_MAX_POINTS = 60_000
"""of all lines together: longer ones lose points between their first, best and last"""

Point = tuple[int, float]


def metric_over_steps(search: Search) -> Any | None:
    """A line for each trial; a copy's line begins where it copied. Marks show how trials ended. None if there is
    nothing to plot.
    """
    import plotly.graph_objects

    metric = search.metrics[0]
    of_key = {trial.key: trial for trial in search.trials}
    lines = {trial.key: _points(of_key, trial, metric) for trial in search.trials}
    drawn = [trial for trial in reversed(ranked(search)) if lines[trial.key]]
    if not drawn:
        return None
    shades = _shades(metric, [best_value(search, trial, metric) for trial in drawn])
    figure = plotly.graph_objects.Figure()
    for trace in _bundles(lines, drawn, shades) if len(drawn) > MANY else _lines(search, lines, drawn, shades):
        figure.add_trace(trace)
    ends = {STOPPED: ("stopped", "x-thin-open", GREY), FAILED: ("failed", "x", RED)}
    for state, (name, symbol, colour) in ends.items():
        points = [lines[trial.key][-1] for trial in drawn if trial.state == state]
        unseen = sum(trial.state == state for trial in search.trials) - len(points)
        label = f"{name}, {unseen} of them without a report" if unseen else name
        if points or unseen:
            size = 4 if len(points) > MANY else 7
            cross = {"symbol": symbol, "color": colour, "size": size, "line": {"width": 1.5, "color": colour}}
            add_marks(figure, points, label, cross)
    if best := _best_point(search):
        add_star(figure, search, best)
    figure.update_xaxes(title_text="step", rangemode="tozero")
    every = [value for points in lines.values() for _, value in points]
    figure.update_yaxes(title_text=plain(metric), type="log" if span_decades(every) else "linear")
    return laid_out(figure, f"{plain(metric)} over steps", 480)


def _points(of_key: Mapping[str, Trial], trial: Trial, metric: str) -> list[Point]:
    """The points of a trial's reports; for a copy, first the point at which it copied."""
    points = []
    if trial.origin:
        copied = of_key.get(trial.origin.key)
        reports = copied.reports if copied else []
        points = [(report.step, report.figures) for report in reports if report.step == trial.origin.step][:1]
    points += [(report.step, report.figures) for report in trial.reports]
    return [(step, figures[metric]) for step, figures in points if math.isfinite(figures.get(metric, math.nan))]


def _best_point(search: Search) -> Point | None:
    """The winning report, or the best one so far."""
    if search.winner:
        return search.winner.step, search.winner.reported
    leader = search.leader()
    return (leader[1].step, leader[1].figures[search.metrics[0]]) if leader else None


def _shades(metric: str, values: Sequence[float | None]) -> list[float | None]:
    """Where each value is from the best, 0, to the poor ones, 1; None without a value."""
    known = [value for value in values if value is not None]
    if not known:
        return [None] * len(values)
    low, high = colour_bounds(metric, known)
    shares = [None if value is None else min(1.0, max(0.0, (value - low) / (high - low))) for value in values]
    return [None if share is None else 1.0 - share for share in shares] if higher_is_better(metric) else shares


def _colours(shades: Sequence[float | None]) -> list[str]:
    from plotly.colors import sample_colorscale

    known = [shade for shade in shades if shade is not None]
    sampled = iter(sample_colorscale(COLOURS, known) if known else [])
    return [GREY if shade is None else next(sampled) for shade in shades]


def _lines(
    search: Search, lines: Mapping[str, Sequence[Point]], drawn: Sequence[Trial], shades: Sequence[float | None]
) -> Iterator[dict[str, Any]]:
    """A trace for each trial."""
    for trial, colour in zip(drawn, _colours(shades), strict=True):
        yield {
            "type": "scatter", "x": [step for step, _ in lines[trial.key]],
            "y": [value for _, value in lines[trial.key]], "mode": "lines+markers",
            "line": {"color": colour, "width": 1.3}, "marker": {"size": 4}, "showlegend": False,
            "name": f"trial {trial.number}", "hovertemplate": hover(search, trial, AT_STEP),
        }  # fmt: skip


def _bundles(
    lines: Mapping[str, Sequence[Point]], drawn: Sequence[Trial], shades: Sequence[float | None]
) -> Iterator[dict[str, Any]]:
    """A trace for all trials of about the same value, with a gap after each."""
    most = max(3, _MAX_POINTS // len(drawn))
    rounded = [None if shade is None else round(shade * (_SHADES - 1)) / (_SHADES - 1) for shade in shades]
    for shade, group in groupby(zip(rounded, drawn, strict=True), key=lambda pair: pair[0]):
        x: list[int | None] = []
        y: list[float | None] = []
        numbers: list[int | None] = []
        for _, trial in group:
            points = _thinned(lines[trial.key], most)
            x += [*(step for step, _ in points), None]
            y += [*short(value for _, value in points), None]
            numbers += [*[trial.number] * len(points), None]
        [colour] = _colours([shade])
        yield {
            "type": kind_of(len(drawn)), "x": x, "y": y, "mode": "lines+markers", "showlegend": False,
            "line": {"color": colour, "width": 1}, "marker": {"size": 3},
            "customdata": numbers, "hovertemplate": hover_of_many(AT_STEP),
        }  # fmt: skip


def _thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points of a line, among them the first, the lowest, the highest and the last."""
    if len(points) <= most:
        return list(points)
    values = [value for _, value in points]
    spread = {round(place * (len(points) - 1) / (most - 1)) for place in range(most)}
    return [points[place] for place in sorted(spread | {values.index(min(values)), values.index(max(values))})]
