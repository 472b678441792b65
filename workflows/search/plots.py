"""Plot a search with plotly, for a run's page. Functions return None if there is nothing to plot.

parallel_coordinates(search).show()
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from models.training.report import Report
from workflows.search.importance import importances
from workflows.search.records import FAILED, STOPPED, Search, Trial, badness, higher_is_better
from workflows.search.table import best_value, fields_of, plain, ranked, short_names, value_word
from workflows.spec.space import Choice, Dimension, Range, dimension_of

_COLOURS = ["#08306b", "#2b7bba", "#c6ced8"]  # dark is good, light is bad
_GOLD, _RED, _GREY = "#e0a100", "#c62828", "#7a828e"
_DECADES = 2
_FEW_TRIALS = 20


def parallel_coordinates(search: Search) -> Any | None:
    """A line for each trial with a report, across its values and its best figures, coloured by the first metric."""
    import plotly.graph_objects

    metric = search.metrics[0]
    trials = [trial for trial in ranked(search) if best_value(search, trial, metric) is not None]
    if not trials:
        return None
    trials.reverse()  # the best line is drawn last, on top
    colour = [float(best_value(search, trial, metric) or 0.0) for trial in trials]
    low, high = _colour_bounds(metric, colour)
    line = {"color": colour, "colorscale": _COLOURS, "cmin": low, "cmax": high, "showscale": True,
            "reversescale": higher_is_better(metric), "colorbar": {"title": {"text": plain(metric)}}}  # fmt: skip
    # Otherwise plotly writes the ends of each range over the labels; the ticks show them.
    ends = {"color": "rgba(0, 0, 0, 0)"}
    lines = plotly.graph_objects.Parcoords(
        line=line, dimensions=[asdict(axis) for axis in _axes(search, trials)], rangefont=ends
    )
    figure = plotly.graph_objects.Figure(lines)
    return _laid_out(figure, "values and best figures of each trial", 440, margin={"l": 60, "t": 110, "b": 40})


@dataclass(frozen=True)
class _Axis:
    """Where each trial stands on an axis, and what is written beside it; None is plotly's own choice."""

    label: str
    values: Sequence[float]
    range: Sequence[float] | None = None
    tickvals: Sequence[float] | None = None
    ticktext: Sequence[str] | None = None


def _axes(search: Search, trials: Sequence[Trial]) -> list[_Axis]:
    """An axis for the trial's number, and one for each field and metric that all of these trials have."""
    axes = [_Axis("trial", [trial.number for trial in trials])]
    for field, name in short_names(fields_of(search)).items():
        if all(field in trial.values for trial in trials):
            dimension = dimension_of(search.space[field]) if field in search.space else Choice(())
            axes.append(_axis(_in_lines(plain(name)), dimension, [trial.values[field] for trial in trials]))
    for metric in search.metrics:
        values = [value for trial in trials if (value := best_value(search, trial, metric)) is not None]
        if len(values) == len(trials):
            label = _in_lines(plain(metric))
            axes.append(_log_axis(label, values) if _span_decades(values) else _Axis(label, values))
    return axes


def _axis(label: str, dimension: Dimension, values: Sequence[Any]) -> _Axis:
    """A field's axis: the range in the space, extended to values outside."""
    if isinstance(dimension, Range):
        low, high = dimension.low, dimension.high
        if dimension.is_log:
            return _log_axis(label, values, (low, high))
        return _Axis(label, list(values), [min(low, *values), max(high, *values)])
    words = list(dict.fromkeys(value_word(value) for value in [*dimension.values, *values]))
    places = [words.index(value_word(value)) for value in values]
    return _Axis(label, places, [-0.2, len(words) - 0.8], list(range(len(words))), words)


def _log_axis(label: str, values: Sequence[float], bounds: Sequence[float] = ()) -> _Axis:
    low, high = min(*values, *bounds, math.inf), max(*values, *bounds, 0)
    ticks = [low, *_round_numbers(low, high), high]
    logs = [math.log10(tick) for tick in ticks]
    return _Axis(
        label,
        [math.log10(value) for value in values],
        [logs[0], logs[-1]],
        logs,
        [value_word(float(tick)) for tick in ticks],
    )


def _round_numbers(low: float, high: float) -> list[float]:
    """Powers of ten between both ends, with doubles and halves if there are few; none close to an end."""
    factors = (1, 2, 5) if high / low < 10**_DECADES else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    room = (high / low) ** 0.1
    numbers = [factor * 10.0**exponent for exponent in exponents for factor in factors]
    return [number for number in numbers if low * room < number < high / room]


def _span_decades(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) / min(values) > 10**_DECADES


def _colour_bounds(metric: str, values: Sequence[float]) -> tuple[float, float]:
    """The color range, from the best to the upper quartile, so that a diverged trial does not make all others look
    alike.
    """
    by_goodness = sorted(values, key=lambda value: badness(metric, value))
    best, poor = by_goodness[0], by_goodness[max(len(by_goodness) * 3 // 4, min(2, len(by_goodness) - 1))]
    low, high = min(best, poor), max(best, poor)
    return (low, high) if low < high else (low, low + 1e-9 + abs(low) * 1e-3)


def _in_lines(name: str) -> str:
    """A label in two lines of similar length, because the axes are close together."""
    words = name.split()
    breaks = [(" ".join(words[:place]), " ".join(words[place:])) for place in range(1, len(words))]
    return "<br>".join(min(breaks, key=lambda lines: max(map(len, lines)), default=(name,)))


def metric_over_steps(search: Search) -> Any | None:
    """A line for each trial; a copy's line begins where it copied. Marks show how trials ended."""
    import plotly.graph_objects

    metric = search.metrics[0]
    lines = {trial.key: _points(search, trial, metric) for trial in search.trials}
    drawn = [trial for trial in reversed(ranked(search)) if lines[trial.key]]
    if not drawn:
        return None
    colours = _line_colours(metric, [best_value(search, trial, metric) for trial in drawn])
    figure = plotly.graph_objects.Figure()
    for trial, colour in zip(drawn, colours, strict=True):
        figure.add_scatter(
            x=[step for step, _ in lines[trial.key]], y=[value for _, value in lines[trial.key]],
            mode="lines+markers", line={"color": colour, "width": 1.3}, marker={"size": 4}, showlegend=False,
            name=f"trial {trial.number}", hovertemplate=_hover(search, trial),
        )  # fmt: skip
    ends = {STOPPED: ("stopped", "x-thin-open", _GREY), FAILED: ("failed", "x", _RED)}
    for state, (name, symbol, colour) in ends.items():
        points = [lines[trial.key][-1] for trial in drawn if trial.state == state]
        unseen = sum(trial.state == state for trial in search.trials) - len(points)
        label = f"{name}, {unseen} of them without a report" if unseen else name
        if points or unseen:
            _add_marks(
                figure,
                points,
                label,
                {"symbol": symbol, "color": colour, "size": 7, "line": {"width": 1.5, "color": colour}},
            )
    best = _best_point(search)
    if best:
        star = {"symbol": "star", "color": _GOLD, "size": 15, "line": {"width": 1, "color": "black"}}
        _add_marks(figure, [best], "winner" if search.winner else "best so far", star)
    figure.update_xaxes(title_text="step", rangemode="tozero")
    every = [value for points in lines.values() for _, value in points]
    figure.update_yaxes(title_text=plain(metric), type="log" if _span_decades(every) else "linear")
    return _laid_out(figure, f"{plain(metric)} over steps", 480)


def _points(search: Search, trial: Trial, metric: str) -> list[tuple[int, float]]:
    """The points of a trial's reports; for a copy, first the point at which it copied."""
    points = []
    if trial.origin:
        copied = next((other for other in search.trials if other.key == trial.origin.key), None)
        reports = copied.reports if copied else []
        points = [(report.step, report.figures) for report in reports if report.step == trial.origin.step][:1]
    points += [(report.step, report.figures) for report in trial.reports]
    return [(step, figures[metric]) for step, figures in points if math.isfinite(figures.get(metric, math.nan))]


def _best_point(search: Search) -> tuple[int, float] | None:
    """The winning report, or the best one so far."""
    if search.winner:
        return search.winner.step, search.winner.reported
    leader = search.leader()
    return (leader[1].step, leader[1].figures[search.metrics[0]]) if leader else None


def _line_colours(metric: str, values: Sequence[float | None]) -> list[str]:
    from plotly.colors import sample_colorscale

    known = [value for value in values if value is not None]
    if not known:
        return [_GREY] * len(values)
    low, high = _colour_bounds(metric, known)
    shares = [0.0 if value is None else min(1.0, max(0.0, (value - low) / (high - low))) for value in values]
    if higher_is_better(metric):
        shares = [1.0 - share for share in shares]
    sampled: list[str] = sample_colorscale(_COLOURS, shares)
    return [_GREY if value is None else colour for value, colour in zip(values, sampled, strict=True)]


def _hover(search: Search, trial: Trial) -> str:
    """The hover text of a trial's points; `<extra>` is plotly's box for the line's name."""
    names = short_names(trial.values)
    values = "<br>".join(f"{names[field]} {_escaped(value_word(value))}" for field, value in trial.values.items())
    return f"trial {trial.number}, {trial.state}<br>%{{x}}: %{{y:.4g}}<br>{values}<extra></extra>"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("%{", "% {")


def _add_marks(figure: Any, points: Sequence[tuple[float, float]], name: str, marker: Mapping[str, object]) -> None:
    x, y = [point[0] for point in points], [point[1] for point in points]
    if not points:  # the legend shows only the line
        x, y = [None], [None]  # type: ignore[list-item]
    figure.add_scatter(x=x, y=y, mode="markers", marker=marker, name=name, hoverinfo="skip")


def pareto(search: Search) -> Any | None:
    """With two metrics: every trial at its best report by the first, and the front of trials that no other beats in
    both.
    """
    import plotly.graph_objects

    if len(search.metrics) < 2:
        return None
    first, second = search.metrics[:2]
    found = [(trial, report) for trial in search.trials if (report := trial.best(first)) and second in report.figures]
    if not found:
        return None
    front = search.front()
    beaten = [pair for pair in found if not any(pair[0] is trial for trial, _ in front)]
    figure = plotly.graph_objects.Figure()
    _add_trials(figure, search, beaten, "others", {"mode": "markers", "marker_color": _GREY})
    _add_trials(figure, search, front, "Pareto front", {"mode": "lines+markers", "marker_color": "#31688e",
                "marker_size": 9, "line_shape": "hv"})  # fmt: skip
    best = search.leader()
    if best and second in best[1].figures:
        star = {"symbol": "star", "color": _GOLD, "size": 15, "line": {"width": 1, "color": "black"}}
        point = (best[1].figures[first], best[1].figures[second])
        _add_marks(figure, [point], "winner" if search.winner else "best so far", star)
    for update, metric, place in ((figure.update_xaxes, first, 0), (figure.update_yaxes, second, 1)):
        values = [report.figures[search.metrics[place]] for _, report in found]
        better = "higher" if higher_is_better(metric) else "lower"
        axis = "log" if _span_decades(values) else "linear"
        update(title_text=f"{plain(metric)} ({better} is better)", type=axis)
    return _laid_out(figure, f"{plain(first)} against {plain(second)}", 480)


def _add_trials(
    figure: Any, search: Search, pairs: Sequence[tuple[Trial, Report]], name: str, style: Mapping[str, object]
) -> None:
    x, y = ([report.figures[metric] for _, report in pairs] for metric in search.metrics[:2])
    hovers = [_hover(search, trial).replace("%{x}: %{y:.4g}", "%{x:.4g}, %{y:.4g}") for trial, _ in pairs]
    figure.add_scatter(x=x, y=y, name=name, hovertemplate=hovers, **style)


def importance_bars(search: Search) -> Any | None:
    """Bars for the importance of each field."""
    import plotly.graph_objects

    found = importances(search)
    if found is None:
        return None
    names = short_names(fields_of(search))
    fields = list(reversed(found))  # plotly draws the first bar at the bottom
    bars = plotly.graph_objects.Bar(
        x=[found[field] for field in fields], y=[plain(names[field]) for field in fields], orientation="h",
        text=[f"{found[field]:.0%}" for field in fields], textposition="auto", marker_color="#31688e",
        cliponaxis=False,
    )  # fmt: skip
    figure = plotly.graph_objects.Figure(bars)
    figure.update_xaxes(range=[0, 1], tickformat=".0%")
    figure.update_yaxes(automargin=True)
    known = sum(best_value(search, trial, search.metrics[0]) is not None for trial in search.trials)
    rough = f" (rough: {known} trials)" if known < _FEW_TRIALS else ""
    return _laid_out(figure, f"importance for {plain(search.metrics[0])}{rough}", 150 + 36 * len(found))


def forecast_points(search: Search) -> Any | None:
    """For a search over mixtures: the loss of each small model against what a regression without it predicted."""
    import plotly.graph_objects

    forecast = search.forecast
    if forecast is None:
        return None
    x, y = forecast.predicted_of_proxies, forecast.measured_of_proxies
    ends = [min(*x, *y), max(*x, *y)]
    figure = plotly.graph_objects.Figure()
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": _GREY, "dash": "dot"}, name="as predicted")
    figure.add_scatter(x=x, y=y, mode="markers", marker={"color": "#31688e"}, name="small models")
    figure.update_xaxes(title_text="predicted held out loss")
    figure.update_yaxes(title_text="measured held out loss")
    return _laid_out(figure, f"small models: rank correlation {forecast.spearman:.2f}", 480)


def _laid_out(figure: Any, title: str, height: int, **layout: Any) -> Any:
    figure.update_layout(title=title, height=height, template="plotly_white", **layout)
    return figure
