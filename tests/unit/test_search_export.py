"""rayconteur trials --csv, --optuna and --mlflow: the search that other programs read is the one in the store."""

import csv
import io
import json
import math
import sqlite3

import optuna
import pytest
from click.testing import CliRunner

from models.errors import RayconteurError
from models.training.report import Report
from workflows.cli import trials as cli
from workflows.search.export import csv_text, log_search
from workflows.search.records import Search, Trial
from workflows.search.studies import StudyError, write_study

RATE, RANK, METHOD = "train.learning_rate", "train.adapter.rank", "train.adapter.method"
SPACE = {RATE: {"loguniform": [1e-5, 1e-3]}, RANK: {"int": [8, 32], "step": 8}, METHOD: ["lora", "dora"]}


def trial(number, state, losses, **more):
    values = {RATE: 1e-4 * (number + 1), RANK: 8 * (number + 1), METHOD: "lora"}
    reports = [
        Report(10 * place, 40, {"held_out_loss": loss, "seconds": 5.0 * place, "num_tokens": 100.0 * place})
        for place, loss in enumerate(losses, 1)
    ]
    return Trial(number, f"key-{number}", values, state, reports, **more)


@pytest.fixture
def search():
    trials = [
        trial(0, "running", [2.5, 2.25]),
        trial(1, "finished", [2.0, 1.25, math.nan, 1.5]),
        trial(2, "stopped", [3.0, 3.5]),
        trial(3, "failed", [], error='out of memory:\n "9" GB'),
    ]
    return Search("shop", "0123456789abcdef", ["held_out_loss"], SPACE, "tpe", "asha", 8, trials, 65.0)


def test_the_table_has_every_trial_and_its_best_report(search):
    rows = [*csv.DictReader(io.StringIO(csv_text(search)))]
    assert [row["trial"] for row in rows] == ["1", "0", "2", "3"]
    best = rows[0]
    assert (best["state"], best["step"], best["num_steps"], best["best_step"]) == ("finished", "40", "40", "20")
    assert (float(best["held_out_loss"]), float(best["seconds"])) == (1.25, 10.0)
    assert (float(best[RATE]), best[RANK], best[METHOD]) == (2e-4, "16", "lora")
    assert (rows[3]["held_out_loss"], rows[3]["error"]) == ("", 'out of memory:\n "9" GB')


@pytest.mark.parametrize("form", ["sqlite:///{}/s.db", "{}/s.db", "{}/journal.log"])
def test_optuna_reads_the_study(search, tmp_path, form):
    place = form.format(tmp_path)
    name = write_study(search, place)
    storage = place if "://" in place else f"sqlite:///{place}"
    if place.endswith(".log"):
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(place))
    study = optuna.load_study(study_name=name, storage=storage)
    assert [each.state.name for each in study.trials] == ["RUNNING", "COMPLETE", "PRUNED", "FAIL"]
    assert (study.best_value, study.best_params) == (1.25, search.trials[1].values)
    assert study.metric_names == ["held_out_loss"]
    assert study.trials[2].intermediate_values == {10: 3.0, 20: 3.5}
    assert study.trials[2].distributions[RANK] == optuna.distributions.IntDistribution(8, 32, step=8)
    assert study.trials[3].user_attrs["error"].startswith("out of memory")
    assert study.trials[1].duration.total_seconds() == 20.0
    search.trials[0].state = "finished"
    assert write_study(search, place) == name  # again, when the search has gone on
    study = optuna.load_study(study_name=name, storage=storage)
    assert [each.state.name for each in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED", "FAIL"]


def test_several_metrics_and_settings_out_of_the_space(search, tmp_path):
    search.metrics.append("seconds")
    search.trials[1].values = {RATE: 0.5, RANK: 12, METHOD: "lora"}  # of an older space
    name = write_study(search, str(tmp_path / "s.db"))
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{tmp_path}/s.db")
    assert study.trials[1].values == [1.25, 10.0]
    assert study.trials[1].params == {METHOD: "lora"}
    assert study.trials[1].user_attrs[RANK] == 12


def test_another_study_of_the_same_name_is_kept(search, tmp_path):
    optuna.create_study(study_name="shop-0123456789abcdef", storage=f"sqlite:///{tmp_path}/s.db")
    with pytest.raises(StudyError, match="has another study 'shop-0123456789abcdef'"):
        write_study(search, f"sqlite:///{tmp_path}/s.db")


def test_a_storage_that_cannot_be_used_is_named_without_its_password(search, tmp_path):
    with pytest.raises(StudyError, match=r"the folder .* does not exist"):
        write_study(search, f"sqlite:///{tmp_path}/none/s.db")
    (tmp_path / "text.log").write_text("no journal\n")
    (tmp_path / "text.db").write_text("no database\n")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("create table studies (x int)")
    for place in ("text.log", "text.db", "other.db", ""):
        with pytest.raises(
            StudyError, match=r"Optuna cannot use this storage: .*; name a database, as in sqlite:///"
        ):
            write_study(search, str(tmp_path / place))
    with pytest.raises(StudyError, match=r"^nowhere://host: Optuna cannot use"):
        write_study(search, "nowhere://user:secret@host")


def test_a_missing_mlflow_is_named_with_its_command(search, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RayconteurError, match=r"--mlflow: .* run: pip install 'rayconteur\[mlflow\]'"):
        log_search(search, "runs")


def test_mlflow_reads_the_runs(search, tmp_path):
    pytest.importorskip("mlflow", reason="needs the extra mlflow: pip install 'rayconteur[mlflow]'")
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    above = log_search(search, uri)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("shop").experiment_id
    below = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{above}'")
    runs = {run.data.tags["rayconteur.trial"]: run for run in below}
    assert {number: run.info.status for number, run in runs.items()} == {
        "0": "RUNNING", "1": "FINISHED", "2": "KILLED", "3": "FAILED",
    }  # fmt: skip
    assert runs["1"].data.params == {RATE: "0.0002", RANK: "16", METHOD: "lora"}
    history = client.get_metric_history(runs["1"].info.run_id, "held_out_loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(10, 2.0), (20, 1.25), (40, 1.5)]
    assert runs["3"].data.tags["rayconteur.error"].startswith("out of memory")
    whole = client.get_run(above)
    assert whole.data.metrics == {"best_held_out_loss": 1.25}
    assert whole.data.tags["best_trial"] == "1"
    with pytest.raises(RayconteurError, match="--mlflow: nowhere://host: "):
        log_search(search, "nowhere://user:secret@host")


def test_the_command_writes_what_is_asked_for(search, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "open_pipeline", lambda *given: (None, None))
    monkeypatch.setattr(cli, "find_search", lambda *given: search)
    file, database = tmp_path / "t.csv", f"sqlite:///{tmp_path}/s.db"
    done = CliRunner().invoke(cli.trials, ["x.yaml", "--csv", str(file), "--optuna", database])
    assert done.output == f"{file}: 4 trials\n{database}: 4 trials, study shop-0123456789abcdef\n"
    assert file.read_text() == csv_text(search)
    done = CliRunner().invoke(cli.trials, ["x.yaml", "--csv", str(file), "--json"])
    assert json.loads(done.output) == {"event": "export", "form": "csv", "place": str(file)}
    monkeypatch.setattr("workflows.search.studies.write_study", lambda search, place: "name")
    done = CliRunner().invoke(cli.trials, ["x.yaml", "--optuna", "mysql://user:secret@host/db"])
    assert done.output == "mysql://host/db: 4 trials, study name\n"
    done = CliRunner().invoke(cli.trials, ["x.yaml", "--csv", str(tmp_path / "none" / "t.csv")])
    assert done.exit_code == 1
    assert "none/t.csv" in done.output
