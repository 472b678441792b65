"""Plot a search with plotly, for a run's page. Functions return None if there is nothing to plot.

parallel_coordinates(search).show()
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from models.training.report import Report
from workflows.search.importance import importances
from workflows.search.plot_parts import (
    AT_BOTH,
    COLOURS,
    GREY,
    MANY,
    add_star,
    colour_bounds,
    hover,
    hover_of_many,
    kind_of,
    laid_out,
    round_numbers,
    short,
    span_decades,
)
from workflows.search.records import Search, Trial, badness, higher_is_better
from workflows.search.table import best_value, fields_of, plain, ranked, short_names, value_word
from workflows.spec.space import Choice, Dimension, Range, dimension_of

_FEW_TRIALS = 20
_GAPS = 4
"""between the numbers beside a scale of colours"""


def parallel_coordinates(search: Search) -> Any | None:
    """A line for each trial with a report, or of many for the best ones, across its values and its best figures,
    coloured by the first metric.
    """
    import plotly.graph_objects

    metric = search.metrics[0]
    trials = [trial for trial in ranked(search) if best_value(search, trial, metric) is not None]
    if not trials:
        return None
    whose = "each trial" if len(trials) <= MANY else f"the best {MANY} trials"
    trials = trials[:MANY]
    values = short(best_value(search, trial, metric) or 0.0 for trial in trials)
    # plotly draws the line of the highest number on top.
    goodness = [-badness(metric, value) for value in values]
    ends = sorted(-badness(metric, value) for value in colour_bounds(metric, values))
    ticks = [ends[0] + (ends[1] - ends[0]) * place / _GAPS for place in range(_GAPS + 1)]
    words = [value_word(badness(metric, -tick)) for tick in ticks]
    line = {"color": goodness, "colorscale": COLOURS, "reversescale": True, "cmin": ends[0], "cmax": ends[1],
            "showscale": True,
            "colorbar": {"title": {"text": plain(metric)}, "tickvals": ticks, "ticktext": words}}  # fmt: skip
    # Otherwise plotly writes the ends of each range over the labels; the ticks show them.
    unseen = {"color": "rgba(0, 0, 0, 0)"}
    lines = plotly.graph_objects.Parcoords(
        line=line, dimensions=[asdict(axis) for axis in _axes(search, trials)], rangefont=unseen
    )
    figure = plotly.graph_objects.Figure(lines)
    return laid_out(figure, f"values and best figures of {whose}", 440, margin={"l": 60, "t": 110, "b": 40})


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
            axes.append(_log_axis(label, values) if span_decades(values) else _Axis(label, short(values)))
    return axes


def _axis(label: str, dimension: Dimension, values: Sequence[Any]) -> _Axis:
    """A field's axis: the range in the space, extended to values outside."""
    if isinstance(dimension, Range):
        low, high = dimension.low, dimension.high
        if dimension.is_log:
            return _log_axis(label, values, (low, high))
        return _Axis(label, short(values), [min(low, *values), max(high, *values)])
    words = list(dict.fromkeys(value_word(value) for value in [*dimension.values, *values]))
    places = [words.index(value_word(value)) for value in values]
    return _Axis(label, places, [-0.2, len(words) - 0.8], list(range(len(words))), words)


def _log_axis(label: str, values: Sequence[float], bounds: Sequence[float] = ()) -> _Axis:
    low, high = min(*values, *bounds, math.inf), max(*values, *bounds, 0)
    ticks = [low, *round_numbers(low, high), high]
    logs = [math.log10(tick) for tick in ticks]
    return _Axis(
        label,
        short(math.log10(value) for value in values),
        [logs[0], logs[-1]],
        logs,
        [value_word(float(tick)) for tick in ticks],
    )


def _in_lines(name: str) -> str:
    """A label in two lines of similar length, because the axes are close together."""
    words = name.split()
    breaks = [(" ".join(words[:place]), " ".join(words[place:])) for place in range(1, len(words))]
    return "<br>".join(min(breaks, key=lambda lines: max(map(len, lines)), default=(name,)))


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
    unbeaten = {id(trial) for trial, _ in front}
    beaten = [pair for pair in found if id(pair[0]) not in unbeaten]
    figure = plotly.graph_objects.Figure()
    _add_trials(
        figure,
        search,
        beaten,
        "others",
        {"mode": "markers", "marker": {"color": GREY, "size": 4 if len(beaten) > MANY else 6}},
    )
    _add_trials(figure, search, front, "Pareto front", {
        "mode": "lines+markers", "marker": {"color": "#31688e", "size": 9}, "line": {"shape": "hv"},
    })  # fmt: skip
    best = search.leader()
    if best and second in best[1].figures:
        add_star(figure, search, (best[1].figures[first], best[1].figures[second]))
    for update, metric, place in ((figure.update_xaxes, first, 0), (figure.update_yaxes, second, 1)):
        values = [report.figures[search.metrics[place]] for _, report in found]
        better = "higher" if higher_is_better(metric) else "lower"
        axis = "log" if span_decades(values) else "linear"
        update(title_text=f"{plain(metric)} ({better} is better)", type=axis)
    return laid_out(figure, f"{plain(first)} against {plain(second)}", 480)


def _add_trials(
    figure: Any, search: Search, pairs: Sequence[tuple[Trial, Report]], name: str, style: Mapping[str, object]
) -> None:
    x, y = ([report.figures[metric] for _, report in pairs] for metric in search.metrics[:2])
    are_many = len(pairs) > MANY
    template = hover_of_many(AT_BOTH) if are_many else [hover(search, trial, AT_BOTH) for trial, _ in pairs]
    numbers = {"customdata": [trial.number for trial, _ in pairs]} if are_many else {}
    trace = {"type": kind_of(len(pairs)), "x": short(x), "y": short(y), "name": name, "hovertemplate": template}
    figure.add_trace({**trace, **numbers, **style})


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
    return laid_out(figure, f"importance for {plain(search.metrics[0])}{rough}", 150 + 36 * len(found))


def forecast_points(search: Search) -> Any | None:
    """For a search over mixtures: the loss of each small model against what a regression without it predicted."""
    import plotly.graph_objects

    forecast = search.forecast
    if forecast is None:
        return None
    x, y = forecast.predicted_of_proxies, forecast.measured_of_proxies
    ends = [min(*x, *y), max(*x, *y)]
    figure = plotly.graph_objects.Figure()
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": GREY, "dash": "dot"}, name="as predicted")
    figure.add_scatter(x=x, y=y, mode="markers", marker={"color": "#31688e"}, name="small models")
    figure.update_xaxes(title_text="predicted held out loss")
    figure.update_yaxes(title_text="measured held out loss")
    return laid_out(figure, f"small models: rank correlation {forecast.spearman:.2f}", 480)
