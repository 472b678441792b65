"""A search as plots, as a section of the HTML report, as importances, and as TensorBoard events."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from stored import run_record, unpacked

from models.training.report import Report
from workflows.runs.page.report import write_report
from workflows.search.importance import importances
from workflows.search.plot_lines import metric_over_steps
from workflows.search.plots import importance_bars, parallel_coordinates, pareto
from workflows.search.records import Origin, Search, Trial, Winner, write_search
from workflows.search.tensorboard import write_events
from workflows.store import Store

LEARNING_RATE, RANK, MODULES = "train.learning_rate", "train.lora.rank", "train.lora.target_modules"
SPACE: dict[str, Any] = {
    LEARNING_RATE: {"loguniform": [1e-5, 1e-2]},
    RANK: {"logint": [4, 64]},
    MODULES: [["q_proj"], ["q_proj", "v_proj"], "all"],
}


def trial(number: int, state: str, losses: list[float], **more: Any) -> Trial:
    """A trial that reported these held-out losses, one every ten of forty steps."""
    third = number % 3
    values = {LEARNING_RATE: 10 ** (-5 + number % 7 / 2), RANK: 4 * (1 + third), MODULES: SPACE[MODULES][third]}
    reports = [
        Report(10 * place, 40, {"held_out_loss": loss, "tokens_per_second": 90.0, "seconds": 2.0 * place}, None)
        for place, loss in enumerate(losses, 1)
    ]
    return Trial(number, f"key{number:05d}", values, state, reports, **more)


@pytest.fixture
def search() -> Search:
    """Trial 1 has won; 4 copied 1 after its second report; two failed, one of them before its first report."""
    trials = [
        trial(0, "running", [2.5, 2.25]),
        trial(1, "finished", [2.0, 1.5, 1.25, 1.375]),
        trial(2, "stopped", [3.0]),
        trial(3, "failed", [], error="out of memory"),
        trial(4, "finished", [], origin=Origin("key00001", 1, 20)),
        trial(5, "failed", [2.75], error="<b>the loss is not a number</b>"),
    ]
    trials[4].reports = [Report(30, 40, {"held_out_loss": 1.45, "tokens_per_second": 90.0, "seconds": 1.0}, None)]
    winner = Winner(1, "key00001", 30, "checkpoint_30_ab", 1.25, 1.26)
    return Search("shop", "abc", ["held_out_loss"], SPACE, "random", "asha", 6, trials, 9.0, None, 2, winner)


def test_each_trial_with_a_figure_is_a_line_across_the_axes(search: Search) -> None:
    figure = parallel_coordinates(search)
    [lines] = figure.data
    axes = {axis.label: axis for axis in lines.dimensions}
    assert list(axes) == ["trial", "learning<br>rate", "rank", "target<br>modules", "held<br>out loss"]
    assert axes["trial"]["values"] == (1, 4, 0, 5, 2)
    assert list(axes["learning<br>rate"]["values"]) == pytest.approx([-4.5, -3, -5, -2.5, -4]), "logarithms"
    assert axes["learning<br>rate"].range == pytest.approx((-5, -2))
    assert axes["learning<br>rate"].ticktext == ("1e-05", "0.0001", "0.001", "0.01")
    assert axes["target<br>modules"].ticktext == ('["q_proj"]', '["q_proj", "v_proj"]', "all")
    assert axes["target<br>modules"]["values"] == (1, 1, 0, 2, 2)


@pytest.mark.parametrize(
    ("metric", "goodness", "words"),
    [
        ("held_out_loss", [-1.25, -1.45, -2.25, -2.75, -3.0], ["2.75", "2.375", "2", "1.625", "1.25"]),
        ("held_out_margin", [0.75, 0.55, -0.25, -0.75, -1.0], ["-0.75", "-0.375", "0", "0.375", "0.75"]),
    ],
)
def test_the_best_line_across_the_axes_is_dark_and_on_top(
    search: Search, metric: str, goodness: list[float], words: list[str]
) -> None:
    """plotly draws the line of the highest number on top."""
    search.metrics = [metric]
    for report in (report for one in search.trials for report in one.reports):
        report.figures["held_out_margin"] = 2 - report.figures["held_out_loss"]
    line = parallel_coordinates(search).data[0].line
    assert list(line.color) == pytest.approx(goodness)
    assert (line.cmin, line.cmax, line.reversescale) == (goodness[3], goodness[0], True)
    assert list(line.colorbar.ticktext) == words


def test_plots_have_space_for_values_outside_the_space(search: Search) -> None:
    search.trials[0].values |= {LEARNING_RATE: 1e-1, RANK: 99, MODULES: "none"}
    [lines] = parallel_coordinates(search).data
    axes = {axis.label: axis for axis in lines.dimensions}
    assert axes["learning<br>rate"].range == pytest.approx((-5, -1))
    assert axes["rank"].range[1] == pytest.approx(math.log10(99))
    assert axes["target<br>modules"].ticktext[-1] == "none"
    assert importances(search) is not None


def test_a_diverged_trial_does_not_dominate_the_colours(search: Search) -> None:
    search.trials[2].reports[0].figures["held_out_loss"] = 1e6
    [lines] = parallel_coordinates(search).data
    assert (lines.line.cmin, lines.line.cmax) == (-2.75, -1.25)


def test_lines_over_steps_end_as_the_trials_did(search: Search) -> None:
    figure = metric_over_steps(search)
    lines = {line.name: line for line in figure.data}
    assert (lines["trial 1"].x, lines["trial 1"].y) == ((10, 20, 30, 40), (2.0, 1.5, 1.25, 1.375))
    assert (lines["trial 4"].x, lines["trial 4"].y) == ((20, 30), (1.5, 1.45)), "it begins where it was copied"
    assert (lines["stopped"].x, lines["stopped"].y) == ((10,), (3.0,))
    failed = lines["failed, 1 of them without a report"]
    assert (failed.x, failed.y, failed.marker.symbol) == ((10,), (2.75,), "x")
    assert (lines["winner"].x, lines["winner"].y, lines["winner"].marker.symbol) == ((30,), (1.25,), "star")
    assert "trial 3" not in lines
    assert figure.layout.yaxis.type == "linear"
    search.trials[2].reports[0].figures["held_out_loss"] = 1000.0
    assert metric_over_steps(search).layout.yaxis.type == "log"


def test_the_front_of_two_metrics_is_a_line(search: Search) -> None:
    assert pareto(search) is None, "there is but one metric"
    search.metrics = ["held_out_loss", "tokens_per_second"]
    for one, speed in zip(search.trials, [300.0, 100.0, 50.0, 0.0, 400.0, 20.0], strict=True):
        for report in one.reports:
            report.figures["tokens_per_second"] = speed
    lines = {line.name: line for line in pareto(search).data}
    assert (lines["Pareto front"].x, lines["Pareto front"].y) == ((1.25, 2.75), (100.0, 20.0))
    assert sorted(lines["others"].x) == [1.45, 2.25, 3.0]
    assert lines["winner"].x == (1.25,)
    assert [axis.label for axis in parallel_coordinates(search).data[0].dimensions][-1] == "tokens<br>per second"


def test_a_search_without_results_has_no_plots(search: Search) -> None:
    search.trials, search.winner = [trial(0, "running", []), trial(1, "failed", [])], None
    search.metrics = ["held_out_loss", "tokens_per_second"]
    assert [draw(search) for draw in (parallel_coordinates, metric_over_steps, pareto, importance_bars)] == [None] * 4


def test_what_decides_the_loss_is_the_most_important(search: Search) -> None:
    search.trials = [trial(number, "finished", []) for number in range(42)]
    for one in search.trials:
        loss = abs(math.log10(one.values[LEARNING_RATE]) + 4) + 0.01 * one.values[RANK]
        one.reports = [Report(10, 10, {"held_out_loss": loss}, None)]
    found = importances(search)
    assert found is not None
    assert next(iter(found)) == LEARNING_RATE
    assert found[LEARNING_RATE] > 0.6
    assert sum(found.values()) == pytest.approx(1)
    bars = importance_bars(search)
    assert bars.data[0].y[-1] == "learning rate", "the highest bar"
    assert bars.layout.title.text == "importance for held out loss"
    search.trials = search.trials[:12]
    assert importance_bars(search).layout.title.text.endswith("(rough: 12 trials)")


def test_importance_needs_enough_trials(search: Search) -> None:
    search.trials = search.trials[:3]
    assert importances(search) is None, "too few"
    same = [trial(number, "finished", [2.0]) for number in range(8)]
    search.trials = same
    assert importances(search) is None, "no trial is better than another"
    for number, one in enumerate(same):
        one.values = dict(same[0].values)
        one.reports[0].figures["held_out_loss"] = float(number)
    assert importances(search) is None, "all values are the same"
    same[0].values[RANK] = 64
    assert set(importances(search) or {}) <= {RANK}


def test_tensorboard_gets_curves_and_values_of_each_trial(search: Search, tmp_path: Path) -> None:
    search.metrics.append("seconds")
    write_events(search, tmp_path)
    for folder in tmp_path.iterdir():
        (folder / "events.out.tfevents.1.before").touch()
    write_events(search, tmp_path)
    folders = sorted(folder.name for folder in tmp_path.iterdir())
    assert folders == [f"trial_{number:03d}_key{number:05d}" for number in range(6)]
    scalars, parameters, status = _read(tmp_path / folders[1])
    assert scalars["held_out_loss"] == [(10, 2.0), (20, 1.5), (30, 1.25), (40, 1.375)]
    assert scalars["best/held_out_loss"] == [(30, 1.25)]
    assert scalars["best/seconds"] == [(30, 6.0)], "of the report that the trial stands for"
    assert parameters[LEARNING_RATE] == pytest.approx(10**-4.5)
    assert parameters[MODULES] == '["q_proj", "v_proj"]'
    statuses = [_read(tmp_path / folder)[2] for folder in folders]
    assert (status, statuses) == (1, [None, 1, 1, 2, 1, 2]), "success, failure, and none of the one at work"


def _read(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, Any], int | None]:
    """The scalars, the trial's values and its status, from the only event file in a folder."""
    from tensorboardX.proto import event_pb2
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    [file] = folder.iterdir()
    data, status = file.read_bytes(), None
    scalars: dict[str, list[tuple[int, float]]] = {}
    parameters: dict[str, Any] = {}
    while data:
        length = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            if not value.tag.startswith("_hparams_"):
                scalars.setdefault(value.tag, []).append((event.step, round(value.simple_value, 6)))
                continue
            content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
            for name, held in content.session_start_info.hparams.items():
                parameters[name] = getattr(held, held.WhichOneof("kind"))
            status = content.session_end_info.status or status
        data = data[16 + length :]
    return scalars, parameters, status


def crowd(count: int) -> list[Trial]:
    """Trials of many sorts."""
    states = ["stopped", "finished", "failed"]
    return [trial(number, states[number % 3], [3.0, 2.0 + 1 / (1 + number)]) for number in range(count)]


def test_thousands_of_lines_are_a_few_traces_without_losing_a_point(search: Search) -> None:
    search.trials, search.winner = crowd(2000), None
    search.trials[7].reports = []
    search.trials[8].origin = Origin("key00001", 1, 10)
    search.metrics.append("seconds")
    figure = metric_over_steps(search)
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert len(figure.data) <= 20
    assert {trace.type for trace in lines} == {"scattergl"}
    points: dict[int, list[float]] = {}
    for trace in lines:
        for number, step, value in zip(trace.customdata, trace.x, trace.y, strict=True):
            assert (number is None) == (step is None) == (value is None)
            if number is not None:
                points.setdefault(number, []).append(value)
    assert len(points) == 1999
    assert points[5] == pytest.approx([3.0, 2.0 + 1 / 6], rel=1e-5)
    assert points[8] == pytest.approx([3.0, 3.0, 2.0 + 1 / 9], rel=1e-5), "it begins where it was copied"
    [lines] = parallel_coordinates(search).data
    assert len(lines.line.color) == 300
    assert lines.dimensions[0]["values"][:3] == (1999, 1998, 1997), "the best ones"
    others = next(trace for trace in pareto(search).data if trace.name == "others")
    assert (others.type, len(others.x)) == ("scattergl", len(others.customdata))


def test_a_long_line_keeps_its_ends_and_its_best(search: Search) -> None:
    search.trials = crowd(1000)
    losses = [3.0] * 500
    losses[101], losses[303] = 1.5, 9.0
    search.trials[0].reports = [Report(step, 500, {"held_out_loss": loss}, None) for step, loss in enumerate(losses)]
    figure = metric_over_steps(search)
    found = [
        (step, value) for trace in figure.data if trace.customdata is not None
        for number, step, value in zip(trace.customdata, trace.x, trace.y, strict=True) if number == 0
    ]  # fmt: skip
    assert {(0, 3.0), (101, 1.5), (303, 9.0), (499, 3.0)} <= set(found)
    assert len(found) < 100


def test_the_page_of_thousands_of_trials_is_small(search: Search, tmp_path: Path) -> None:
    sizes = []
    store = Store(str(tmp_path / "store"))
    store.write_run(run_record(to="tune", stages={"tune": {"key": "abc", "seconds": 9.0}}))
    for count in (100, 3000):
        search.trials, search.winner = crowd(count), None
        write_search(store, search)
        text = write_report(store, "shop", None, str(tmp_path / "page.html"))[0].read_text()
        sizes.append(len(text))
    assert text.count("<tr>") < 1100
    assert "The best 1,000 of 3,000 trials; <code>rayconteur trials</code> shows all" in text
    assert sizes[1] - sizes[0] < 150 * 3000


@pytest.mark.parametrize("count", [6, 40])
def test_the_page_of_a_run_has_its_search(search: Search, tmp_path: Path, count: int) -> None:
    search.trials += [trial(number, "stopped", [2.0 + number / 100]) for number in range(6, count)]
    store = Store(str(tmp_path / "store"))
    write_search(store, search)
    store.write_run(run_record(to="tune", stages={"tune": {"key": "abc", "seconds": 9.0}}))
    file, _ = write_report(store, "shop", None, str(tmp_path / "page.html"))
    text = file.read_text()
    assert "winner: trial 1 at step 30, held out loss reported 1.2500, measured again 1.2600" in text
    assert unpacked(text, "plotly").count("* plotly.js v") == 1
    drawn = [figure["layout"]["title"]["text"] for figure in json.loads(unpacked(text, "plots"))]
    assert drawn[:2] == ["values and best figures of each trial", "held out loss over steps"]
    assert text.count('class="plot"') == len(drawn) >= 3
    assert text.count("<tr>") == 1 + 1 + count, "a row for each trial under each heading"
    assert "&lt;b&gt;the loss is not a number" in text
    assert "<b>the loss" not in text
    assert ("<details open>" in text) == (count <= 30)
