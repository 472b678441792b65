"""A search for other programs: a table as CSV, and runs of MLflow. Imports neither Ray nor torch."""

import csv
import importlib.util
import io
import json
import math
import time
from typing import Any

from models.errors import RayconteurError
from workflows.search.records import FAILED, FINISHED, RUNNING, Search, Trial
from workflows.search.table import fields_of, ranked
from workflows.store import without_secrets

_MLFLOW_STATES = {RUNNING: "RUNNING", FINISHED: "FINISHED", FAILED: "FAILED"}
_MAX_TEXT = 400
_AT_ONCE = 1000
"""MLflow's maximum number of metrics a call"""


def csv_text(search: Search) -> str:
    """A row for each trial, the best first: its settings, and the figures of its best report by the first metric."""
    fields, metric = fields_of(search), search.metrics[0]
    bests = {trial.key: trial.best(metric) for trial in search.trials}
    known = {name: None for best in bests.values() if best for name in best.figures}
    figures = [*search.metrics, *(name for name in known if name not in search.metrics)]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", "key", "state", *fields, "step", "num_steps", "best_step", *figures, "error"])
    for trial in ranked(search):
        last, best = trial.last, bests[trial.key]
        measured = best.figures if best else {}
        table.writerow([
            trial.number, trial.key, trial.state, *(_cell(trial.values.get(field)) for field in fields),
            *((last.step, last.num_steps) if last else ("", "")), best.step if best else "",
            *(_cell(measured.get(name)) for name in figures), trial.error,
        ])  # fmt: skip
    return text.getvalue()


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def log_search(search: Search, uri: str) -> str:
    """Log a search to MLflow at a tracking URI: a run with one run below it for each trial.

    Returns the run's id; raises RayconteurError.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise RayconteurError("--mlflow: the package mlflow is not installed; run: pip install 'rayconteur[mlflow]'")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(search.pipeline)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(search.pipeline)
        above = client.create_run(experiment_id, run_name=f"search {search.key}").info.run_id
        settings = {"searcher": search.searcher, "scheduler": search.scheduler, "metric": ", ".join(search.metrics)}
        for name, value in settings.items():
            client.log_param(above, name, value)
        for trial in search.trials:
            _log_trial(client, experiment_id, above, trial)
        leader = search.leader()
        if leader is not None:
            client.log_metric(above, f"best_{search.metrics[0]}", leader[1].figures[search.metrics[0]])
            client.set_tag(above, "best_trial", leader[0].number)
        client.set_terminated(above)
    except (MlflowException, OSError) as error:
        text = without_secrets(f"--mlflow: {uri}: {' '.join(str(error).split())}")
        raise RayconteurError(text[:_MAX_TEXT]) from error
    return str(above)


def _log_trial(client: Any, experiment_id: str, above: str, trial: Trial) -> None:
    from mlflow.entities import Metric, Param, RunTag

    now = time.time()
    took = trial.last.figures.get("seconds", 0.0) if trial.last else 0.0
    began = int((now - took) * 1000)
    tags = {"mlflow.parentRunId": above, "rayconteur.key": trial.key, "rayconteur.state": trial.state}
    tags |= {"rayconteur.error": trial.error} if trial.error else {}
    run = client.create_run(experiment_id, start_time=began, run_name=f"trial {trial.number}", tags=tags).info.run_id
    params = [Param(field, _cell(value)) for field, value in trial.values.items()]
    client.log_batch(run, params=params, tags=[RunTag("rayconteur.trial", str(trial.number))])
    metrics = [
        Metric(name, value, began + int(report.figures.get("seconds", 0.0) * 1000), report.step)
        for report in trial.reports
        for name, value in report.figures.items()
        if math.isfinite(value)
    ]
    for start in range(0, len(metrics), _AT_ONCE):
        client.log_batch(run, metrics=metrics[start : start + _AT_ONCE])
    if trial.state != RUNNING:
        client.set_terminated(run, _MLFLOW_STATES.get(trial.state, "KILLED"), int(now * 1000))
