"""What several plots of a search share: colours, marks, hover texts, and how thousands of trials are drawn."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workflows.search.records import Search, Trial, badness
from workflows.search.table import short_names, value_word

COLOURS = ["#08306b", "#2b7bba", "#c6ced8"]  # dark is good, light is bad
GOLD, RED, GREY = "#e0a100", "#c62828", "#7a828e"

MANY = 300
"""more trials than this are drawn by WebGL in a few traces, because each trace takes a browser time; across the axes,
only so many lines can be told apart
"""

_DECADES = 2


def kind_of(count: int) -> str:
    """The kind of plotly's traces for so many points or lines: SVG, or WebGL where they are many."""
    return "scattergl" if count > MANY else "scatter"


AT_STEP, AT_BOTH = "%{x}: %{y:.4g}", "%{x:.4g}, %{y:.4g}"
"""in hover texts: the metric at a step; two metrics"""


def hover(search: Search, trial: Trial, at: str) -> str:
    """The hover text of a trial's points; `<extra>` is plotly's box for the line's name."""
    names = short_names(trial.values)
    values = "<br>".join(f"{names[field]} {_escaped(value_word(value))}" for field, value in trial.values.items())
    return f"trial {trial.number}, {trial.state}<br>{at}<br>{values}<extra></extra>"


def hover_of_many(at: str) -> str:
    """The hover text of points whose `customdata` is the trial's number: the settings of thousands of trials would be
    most of the page.
    """
    return f"trial %{{customdata}}<br>{at}<extra></extra>"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("%{", "% {")


def add_marks(figure: Any, points: Sequence[tuple[float, float]], name: str, marker: Mapping[str, object]) -> None:
    """Add points that have a name in the legend, also if there are none."""
    x, y = [point[0] for point in points], [point[1] for point in points]
    if not points:  # the legend shows only the line
        x, y = [None], [None]  # type: ignore[list-item]
    style = {"mode": "markers", "marker": marker, "name": name, "hoverinfo": "skip"}
    figure.add_trace({"type": kind_of(len(points)), "x": x, "y": y, **style})


def add_star(figure: Any, search: Search, point: tuple[float, float]) -> None:
    """Mark the winner, or the best so far."""
    star = {"symbol": "star", "color": GOLD, "size": 15, "line": {"width": 1, "color": "black"}}
    add_marks(figure, [point], "winner" if search.winner else "best so far", star)


def colour_bounds(metric: str, values: Sequence[float]) -> tuple[float, float]:
    """The color range, from the best to the upper quartile, so that a diverged trial does not make all others look
    alike.
    """
    by_goodness = sorted(values, key=lambda value: badness(metric, value))
    best, poor = by_goodness[0], by_goodness[max(len(by_goodness) * 3 // 4, min(2, len(by_goodness) - 1))]
    low, high = min(best, poor), max(best, poor)
    return (low, high) if low < high else (low, low + 1e-9 + abs(low) * 1e-3)


def span_decades(values: Sequence[float]) -> bool:
    """Whether an axis for these values is better logarithmic."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > 10**_DECADES


def round_numbers(low: float, high: float) -> list[float]:
    """Powers of ten between both ends, with doubles and halves if there are few; none close to an end."""
    factors = (1, 2, 5) if high / low < 10**_DECADES else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    room = (high / low) ** 0.1
    numbers = [factor * 10.0**exponent for exponent in exponents for factor in factors]
    return [number for number in numbers if low * room < number < high / room]


def short(values: Iterable[float]) -> list[float]:
    """Numbers with six digits: more would only make a page larger."""
    return [value if isinstance(value, int) else float(f"{value:.6g}") for value in values]


def laid_out(figure: Any, title: str, height: int, **layout: Any) -> Any:
    """The figure, with its title and height."""
    figure.update_layout(title=title, height=height, template="plotly_white", **layout)
    return figure
