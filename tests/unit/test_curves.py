"""A training's history as an HTML page, as TensorBoard events, and as an MLflow run."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.training.report import Progress
from workflows.training.curves import check_mlflow, curves_of, log_to_mlflow, write_curves
from workflows.training.history import History


@pytest.fixture
def record() -> History:
    """Four steps: the second is skipped because its loss is NaN; the held-out loss is measured after the fourth."""
    found = History()
    for step in range(1, 5):
        broken = step == 2
        loss, norm = (float("nan"), None) if broken else (3.0 / step, 0.5)
        found.add(Progress(step, 4, loss, 1e-4, norm, broken, 100 * step, 50.0, {"margin": 0.1}), utilisation=0.6)
    found.add_held_out({"held_out_loss": 1.25, "step": 4})
    return found


def test_the_history_is_read_back_as_it_was_written(record: History) -> None:
    assert all(json.loads(line) for line in record.text().splitlines())
    assert "NaN" not in record.text()
    again = History(record.text())
    assert again.lines == record.lines
    steps = again.steps()
    assert [(step.step, step.skipped, step.num_tokens) for step in steps] == [
        (1, False, 100), (2, True, 200), (3, False, 300), (4, False, 400),
    ]  # fmt: skip
    assert steps[0].loss == 3.0
    assert steps[1].loss != steps[1].loss, "no number stays no number"


def test_a_curve_has_the_steps_at_which_it_was_measured(record: History) -> None:
    curves = curves_of(record.lines)
    assert curves["loss"] == ([1, 3, 4], [3.0, 1.0, 0.75])
    assert curves["held_out_loss"] == ([4], [1.25])
    assert list(curves)[:2] == ["loss", "held_out_loss"]
    assert "time" not in curves


def test_page_and_events_hold_every_curve(record: History, tmp_path: Path) -> None:
    write_curves("support", record.lines, tmp_path)
    page = (tmp_path / "curves.html").read_text()
    assert "Training of support" in page
    assert "share of the machine's matrix-product rate" in page.replace("\\u0027", "'")
    assert 'src="http' not in page, "the page needs no network"
    assert _scalars(tmp_path / "tensorboard")["train/loss"] == [(1, 3.0), (3, 1.0), (4, 0.75)]


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The records of an event file: 8 bytes of length, 4 of checksum, the event, 4 of checksum."""
    from tensorboardX.proto import event_pb2

    [file] = folder.iterdir()
    data, found = file.read_bytes(), dict[str, list[tuple[int, float]]]()
    while data:
        length = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, round(value.simple_value, 6)))
        data = data[16 + length :]
    return found


def test_mlflow_gets_a_run(record: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow: pip install 'rayconteur[mlflow]'")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    check_mlflow()
    log_to_mlflow("support", "abc", {"train": {"learning_rate": 1e-4}}, record.lines)
    client = MlflowClient()
    experiment = client.get_experiment_by_name("support")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"train.learning_rate": "0.0001"}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(1, 3.0), (3, 1.0), (4, 0.75)]


def test_a_missing_mlflow_is_reported_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_nothing(name: str) -> Any:
        return None

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    monkeypatch.setattr("importlib.util.find_spec", find_nothing)
    with pytest.raises(ValueError, match=r"MLFLOW_TRACKING_URI is set.*rayconteur\[mlflow\]"):
        check_mlflow()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    check_mlflow()
