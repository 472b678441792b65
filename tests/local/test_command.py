"""The command as a user runs it: in its own process, on its own Ray cluster, stopped in the middle."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from workflows.cli.commands import command as rayconteur


@pytest.fixture
def pipeline(tmp_path, tiny):
    tiny["train"] |= {"batch_tokens": 256, "epochs": 3, "checkpoint_every_steps": 5, "num_workers": 1}
    tiny["cluster"] = {"num_cpus": 2}
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump(tiny))
    return file


def train_figures(seen):
    return next(event["figures"] for event in seen if event["event"] == "done" and event["stage"] == "train")


def losses(store):
    [history] = Path(store).glob("train/*/history.jsonl")
    return [json.loads(line)["loss"] for line in history.read_text().splitlines()]


def stopped(command, pipeline, how):
    """Train with that file and stop it after its sixth step; returns the exit code and the events after that."""
    process = command.start("train", pipeline)
    for event in command.events(process):
        if event["event"] == "progress" and event["stage"] == "train" and event["done"] > 6:
            process.send_signal(how)
            break
    said = list(command.events(process))
    return process.wait(), said


def goes_on(command, pipeline):
    """The figures of that training after the same command has completed it from a checkpoint."""
    seen = command.finished("train", pipeline)
    assert [event["stage"] for event in seen if event["event"] == "up_to_date"] == ["prepare"]
    figures = train_figures(seen)
    assert figures["resumed_from_step"] >= 5
    assert figures["resumed_from_step"] % 5 == 0
    return figures


def said_by(*arguments):
    """What a command that starts no Ray prints; in this process, which has imported torch already."""
    done = CliRunner().invoke(rayconteur, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.slow  # test_pair.py kills a training too
def test_a_terminated_run_resumes_and_a_finished_one_is_not_repeated(command, pipeline):
    status, said = stopped(command, pipeline, signal.SIGTERM)
    assert status == 130
    assert said[-1] == {"event": "error", "text": "stopped; run the same command to resume"}
    figures = goes_on(command, pipeline)

    check = (
        "import sys; from workflows.cli.commands import command\n"
        "command(sys.argv[1:], standalone_mode=False)\n"
        "assert not {'ray', 'torch'} & set(sys.modules)"
    )
    again = subprocess.run(
        [sys.executable, "-c", check, "train", str(pipeline)], capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip().endswith("nothing to do")

    training = json.loads(said_by("plan", pipeline, "--json"))["training"]
    assert (training["steps"], training["tokens_are_estimated"]) == (figures["steps"], False)

    changed = json.loads(said_by("plan", pipeline, "--set", "train.learning_rate=1e-3", "--json"))
    stages = {row["stage"]: row for row in changed["stages"]}
    assert stages["prepare"]["up_to_date"]
    assert stages["train"]["reason"] == "changed: train.learning_rate"

    listed = said_by("runs", pipeline)
    assert "stopped" in listed
    assert "finished" in listed


@pytest.mark.slow
def test_a_killed_run_loses_nothing(command, pipeline, tmp_path):
    assert stopped(command, pipeline, signal.SIGKILL)[0] == -signal.SIGKILL
    assert "interrupted" in said_by("runs", pipeline)
    resumed = goes_on(command, pipeline)
    figures = train_figures(command.finished("train", pipeline, "--set", f"store={tmp_path / 'other'}"))
    assert figures["resumed_from_step"] == 0
    assert figures["steps"] == resumed["steps"]
    assert resumed["held_out_loss"] == pytest.approx(figures["held_out_loss"], rel=1e-4)
    assert losses(tmp_path / "store") == pytest.approx(losses(tmp_path / "other"), abs=1e-4)


def test_missing_gpus_are_reported_before_the_first_stage(command, tiny, tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text(yaml.safe_dump({**tiny, "train": {**tiny["train"], "gpus_per_worker": 1, "precision": "bf16"}}))
    process = command.start("run", file)
    [event] = command.events(process)
    assert process.wait() == 1
    assert event["event"] == "error"
    assert (
        "train.gpus_per_worker: needs 2 workers of 1 CPU, 1 GPU each, and no node is large enough for one"
        in event["text"]
    )
