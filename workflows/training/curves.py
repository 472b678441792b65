"""Show a training's history: an HTML page with curves, TensorBoard event files, and an MLflow run."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import RayconteurError
from workflows.training.history import HistoryLine

_TRACKING_URI = "MLFLOW_TRACKING_URI"
_TITLES = {
    "loss": "training loss, nats",
    "held_out_loss": "held-out loss, nats",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm before clipping",
    "tokens_per_second": "tokens per second",
    "utilisation": "share of the machine's matrix-product rate",
    "memory_gb": "peak memory of worker 0, GB",
}
_FROM_ZERO = {"tokens_per_second", "utilisation", "memory_gb"}
_NO_CURVES = {"step", "num_steps", "time", "num_tokens", "skipped", "seconds"}
_PANEL_PIXELS = 260
_PARTS = "held_out_loss_"

Curve = tuple[list[int], list[float]]
"""steps and values"""


def write_curves(name: str, lines: Sequence[HistoryLine], folder: Path) -> None:
    """Write `curves.html`, which needs no network, and `tensorboard/` to `folder`; `lines` are the history's."""
    _write_page(name, lines, folder / "curves.html")
    _write_events(lines, folder / "tensorboard")


def curves_of(lines: Sequence[HistoryLine]) -> dict[str, Curve]:
    """The steps and values of every figure in the history; the usual ones first."""
    figures = [(line.step, line.to_json()) for line in lines]
    names = list(dict.fromkeys([*_TITLES, *(name for _, found in figures for name in found)]))
    curves = {}
    for name in names:
        points = [(step, value) for step, found in figures if (value := found.get(name)) is not None]
        if name not in _NO_CURVES and points:
            curves[name] = ([step for step, _ in points], [value for _, value in points])
    return curves


def _write_page(name: str, lines: Sequence[HistoryLine], file: Path) -> None:
    figure = curves_figure(lines)
    figure.update_layout(title=f"Training of {name}")
    figure.write_html(file, include_plotlyjs=True)


@dataclass(frozen=True)
class Panel:
    """Curves that share their axes."""

    title: str
    curves: Mapping[str, Curve]
    """by name"""
    from_zero: bool
    skipped: Sequence[int]
    """steps without an update, of the training loss"""


def panels_of(lines: Sequence[HistoryLine]) -> list[Panel]:
    """All curves of a history: both losses share a panel, and the held-out losses of sources and languages."""
    curves = curves_of(lines)
    loss = "loss" if "loss" in curves else next(iter(curves))
    parts = [curve for curve in curves if curve.startswith(_PARTS)]
    panels = []
    for name in curves:
        if name == "held_out_loss" or name in parts[1:]:
            continue
        together = parts if name in parts else [name, "held_out_loss"] if name == loss else [name]
        found = {each.removeprefix(_PARTS).replace("language_", "language "): curves[each]
                 for each in together if each in curves}  # fmt: skip
        title = "training loss, and held-out loss (dots), nats" if "held_out_loss" in found else _title(name)
        skipped = [line.step for line in lines if line.skipped] if name == loss else []
        panels.append(Panel(title, found, name in _FROM_ZERO, skipped))
    return panels


def curves_figure(lines: Sequence[HistoryLine]) -> Any:
    """All curves of a history as one plotly figure, the panels in two columns."""
    from plotly.subplots import make_subplots

    panels = panels_of(lines)
    rows = -(-len(panels) // 2)
    titles = [panel.title for panel in panels]
    figure = make_subplots(rows=rows, cols=2, subplot_titles=titles, vertical_spacing=min(0.12, 0.3 / rows))
    for index, panel in enumerate(panels):
        _add_panel(figure, panel, {"row": index // 2 + 1, "col": index % 2 + 1})
    figure.update_xaxes(title_text="step")
    figure.update_layout(height=_PANEL_PIXELS * rows + 120, template="plotly_white")
    return figure


def panel_figure(panel: Panel) -> Any:
    """One panel as a plotly figure."""
    import plotly.graph_objects

    figure = plotly.graph_objects.Figure()
    _add_panel(figure, panel, {})
    figure.update_xaxes(title_text="step")
    figure.update_layout(
        title=panel.title, height=_PANEL_PIXELS + 40, template="plotly_white",
        margin={"l": 60, "r": 20, "t": 50, "b": 50}, legend={"orientation": "h", "y": -0.25},
    )  # fmt: skip
    return figure


def _add_panel(figure: Any, panel: Panel, place: Mapping[str, int]) -> None:
    held_out = [name for name in panel.curves if name.split()[-1] == "held_out_loss"]
    for name, (steps, values) in panel.curves.items():
        mode = "lines+markers" if name in held_out else "lines"
        has_name = len(panel.curves) - len(held_out) > 1
        figure.add_scatter(x=steps, y=values, name=name, mode=mode, showlegend=has_name, **place)
    if panel.from_zero:
        figure.update_yaxes(rangemode="tozero", **place)
    for step in panel.skipped:
        figure.add_vline(x=step, line_dash="dot", line_color="firebrick", annotation_text="skipped", **place)


def _title(panel: str) -> str:
    if panel.startswith(_PARTS):
        return "held-out loss by source and language, nats"
    return _TITLES.get(panel, panel.replace("_", " "))


def _write_events(lines: Sequence[HistoryLine], folder: Path) -> None:
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name, (steps, values) in curves_of(lines).items():
            times = {line.step: line.time for line in lines}
            for step, value in zip(steps, values, strict=True):
                writer.add_scalar(f"train/{name}", value, step, walltime=times[step])


def check_mlflow() -> None:
    """Raise RayconteurError before training if MLflow's variable is set but MLflow is not installed."""
    if os.environ.get(_TRACKING_URI) and importlib.util.find_spec("mlflow") is None:
        raise RayconteurError(
            f"{_TRACKING_URI} is set, but the package mlflow is not installed; "
            "run: pip install 'rayconteur[mlflow]', or unset the variable"
        )


def log_to_mlflow(name: str, key: str, settings: Mapping[str, object], lines: Sequence[HistoryLine]) -> None:
    """If MLflow's variable is set, log a run in the experiment `name`, with all settings and every step's figures."""
    if not os.environ.get(_TRACKING_URI):
        return
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient()
    experiment = client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
    run = client.create_run(experiment_id, start_time=_milliseconds(lines[0]), run_name=key)
    times = {line.step: _milliseconds(line) for line in lines}
    metrics = [
        Metric(curve, value, times[step], step)
        for curve, (steps, values) in curves_of(lines).items()
        for step, value in zip(steps, values, strict=True)
    ]
    for start in range(0, len(metrics), 1000):  # MLflow's maximum per call
        client.log_batch(run.info.run_id, metrics=metrics[start : start + 1000])
    client.log_batch(run.info.run_id, params=[Param(field, str(value)) for field, value in _flat(settings).items()])
    client.set_terminated(run.info.run_id, end_time=_milliseconds(lines[-1]))


def _milliseconds(line: HistoryLine) -> int:
    return int(line.time * 1000)


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
