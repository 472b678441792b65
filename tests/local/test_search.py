"""Searches on a real Ray cluster: their records, the winner, and recovery from lost workers, failures and kills."""

import contextlib
import json
import math
import os
import random
import re
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import ray.tune
import ray.util
import torch
import yaml
from disturbance import Disturbance, workers
from safetensors.torch import load_file

from workflows.search.checkpoints import is_whole
from workflows.search.records import Search, read_search, trial_folder
from workflows.search.seat import job_of
from workflows.search.trial import values_of
from workflows.search.tuner import ENVIRONMENT, tuner_of
from workflows.search.worker_group import WorkerGroup
from workflows.spec import PipelineSpec
from workflows.spec.space import with_values
from workflows.stage import StageFailed
from workflows.training.inputs import TrainingInputs


@pytest.fixture
def searched(tiny):
    """A search whose trials have 12 steps and report every third one."""
    tiny["train"] |= {"batch_tokens": 512, "max_steps": 12, "checkpoint_every_steps": 3, "zero": {"stage": 2}}
    tiny["tune"] = {"space": {"train.learning_rate": {"loguniform": [1e-5, 3e-2]}}, "trials": 5, "scheduler": "asha"}
    return tiny


def in_use():
    """Assigned CPUs, placement groups, and training workers."""
    assignment = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0.0)
    groups = [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
    return (assignment, len(groups), len(workers()))


def settles(wanted, seconds=30.0):
    """What is in use, once it is as expected or after this many seconds."""
    until = time.monotonic() + seconds
    while (found := in_use()) != wanted and time.monotonic() < until:
        time.sleep(0.5)
    return found


def checkpoints(store):
    return sorted(str(path.relative_to(store.root)) for path in Path(store.root, "trials").glob("*/checkpoint_*"))


def test_a_search_leaves_its_winner_and_nothing_else_and_a_wider_one_trains_what_is_new(run, cluster, searched):
    searched["train"] |= {"num_workers": 1}
    searched["tune"] |= {"max_concurrent": 2}  # each concurrent trial is a process that takes half a minute to start
    before = settles((0.0, 0, 0))
    done, store = run("train", searched)
    assert settles(before) == before
    search = read_search(store, done["tune"].key)
    winner = search.winner
    assert winner.remeasured == pytest.approx(winner.reported, abs=1e-6)
    assert winner.reported == min(report.figures["held_out_loss"] for t in search.trials for report in t.reports)
    states = Counter(trial.state for trial in search.trials)
    assert states["stopped"] >= 1
    assert states["finished"] >= 1
    assert sum(states.values()) == 5
    assert checkpoints(store) == [f"trials/{winner.key}/{winner.checkpoint}"]
    assert not list(Path(store.path("tune", done["tune"].key)).glob("run"))
    folders = (f"{trial_folder(store, winner.key)}/{winner.checkpoint}", store.path("train", done["train"].key))
    kept, assignment = (load_file(Path(folder, "model", "model.safetensors")) for folder in folders)
    assert all(torch.equal(kept[name], assignment[name]) for name in kept)
    assert done["train"].figures["held_out_loss"] == winner.reported
    assert done["train"].figures["best_step"] == winner.step

    searched["tune"]["trials"] = 6
    wider, _ = run("tune", searched)
    wider = read_search(store, wider["tune"].key)
    chosen = [{trial.number: trial.values for trial in found.trials} for found in (search, wider)]
    assert chosen[0] == {number: values for number, values in chosen[1].items() if number < 5}
    trained = [trial.number for trial in wider.trials if len(trial.reports) > trial.reused]
    assert 5 in trained
    assert not {trial.number for trial in search.trials if trial.state == "finished"} & set(trained)


@pytest.mark.slow
def test_members_of_a_population_copy_and_go_on(run, searched):
    searched["train"] |= {"num_workers": 1, "zero": {"stage": 0}, "max_steps": 9}
    searched["tune"] |= {"trials": 2, "scheduler": {"name": "population", "quantile": 0.5}}
    searched["tune"]["space"] = {"train.learning_rate": {"loguniform": [1e-4, 1e-2]}}
    done, store = run("tune", searched)
    search = read_search(store, done["tune"].key)
    copies = [trial for trial in search.trials if trial.origin]
    assert copies
    for copy in copies:
        assert copy.reports[0].step == copy.origin.step + 3
        assert copy.number != copy.origin.number
    assert {trial.number for trial in search.trials} == {0, 1}
    assert len(checkpoints(store)) == 1


class Idle(ray.tune.Trainable):
    """A member that does not train; its loss is the distance of its learning rate from 0.003."""

    def setup(self, config):
        self.reset_config(config)

    def reset_config(self, new_config):
        self._rate, self._step = values_of(new_config)["train.learning_rate"], 0
        return True

    def step(self):
        self._step += 3
        loss = abs(self._rate - 0.003)
        return {"step": self._step, "held_out_loss": loss, "rate": self._rate, "done": self._step >= 12}

    def save_checkpoint(self, checkpoint_dir):
        return {"step": self._step}

    def load_checkpoint(self, checkpoint):
        self._step = checkpoint["step"]


class Noise(ray.tune.Callback):
    """Other code draws random numbers between the draws of the search."""

    def on_trial_result(self, **_):
        random.seed()
        np.random.seed()


def test_an_interrupted_population_draws_the_same_again(cluster, searched, tmp_path, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    searched["tune"] |= {"trials": 3, "scheduler": {"name": "population", "quantile": 0.34}}
    spec = PipelineSpec.model_validate(searched)
    search = Search("p", "key", ["held_out_loss"], spec.tune.space, "random", "population", 3, at_once=1)
    drawn = []
    for number in range(2):
        run_config = ray.tune.RunConfig(
            name=str(number), storage_path=str(tmp_path), verbose=0, callbacks=[Noise()] if number else []
        )
        tuner = tuner_of(Idle, spec, search, steps_of=lambda values: 12, run_config=run_config)
        results = tuner.fit()
        assert results.num_errors == 0
        drawn.append(sorted(values_of(result.config)["train.learning_rate"] for result in results))
    assert drawn[0] == drawn[1]


FAILS, FAILS_LATER, DIES = 97, 98, 99


class Mortal(Idle):
    """A member that fails, whose process dies, or that ends after its own number of steps."""

    def reset_config(self, new_config):
        self._end = values_of(new_config)["train.max_steps"]
        return super().reset_config(new_config)

    def step(self):
        assert self._step < self._end, f"a copy with {self._end} steps began at step {self._step}"
        if self._end == DIES:
            os._exit(1)
        if self._end == (FAILS if self._step == 0 else FAILS_LATER):  # as TrialRunner reports a failure
            return {"step": self._step + 1, "held_out_loss": math.inf, "rate": self._rate, "done": True}
        return super().step() | {"done": self._step >= self._end}


def test_members_of_a_population_go_on_without_those_that_fail_or_end(cluster, searched, tmp_path, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    steps = [6, DIES, 12, FAILS_LATER, 9, FAILS, 12]
    searched["tune"] |= {"trials": len(steps), "scheduler": {"name": "population", "quantile": 0.5}}
    searched["tune"]["space"]["train.max_steps"] = {"int": [3, 15]}
    spec = PipelineSpec.model_validate(searched)
    search = Search(
        "p", "key", ["held_out_loss"], spec.tune.space, "random", "population", len(steps), at_once=4,
        seconds_allowed=300.0,
    )  # fmt: skip
    rates = np.geomspace(1e-4, 1e-2, len(steps)).tolist()
    members = [{"train.learning_rate": rate, "train.max_steps": end} for rate, end in zip(rates, steps, strict=True)]
    monkeypatch.setattr("workflows.search.tuner.Draws", lambda *_, **__: members)
    run_config = ray.tune.RunConfig(name="run", storage_path=str(tmp_path), verbose=0)
    tuner = tuner_of(Mortal, spec, search, run_config=run_config, steps_of=lambda values: values["train.max_steps"])
    results = tuner.fit()
    assert results.num_errors == 1
    for end, result in zip(steps, results, strict=True):
        if end <= 15:
            assert result.metrics["step"] >= values_of(result.config)["train.max_steps"]


@pytest.fixture
def group(run, searched):
    """A worker group of the search, its store, and a job for a trial."""
    searched["train"] |= {"max_steps": 9}
    done, store = run("prepare", searched)
    spec = PipelineSpec.model_validate(searched)
    inputs = TrainingInputs({"prepare": done["prepare"].key})
    folder = store.path("tune", "by-hand")
    group = WorkerGroup(spec, store, inputs, folder, max_failures=1)
    job = job_of(with_values(spec, {"train.learning_rate": 3e-3}), folder=trial_folder(store, "one"))
    yield group.seats[0], store, job
    group.close()


@pytest.mark.slow
def test_workers_resume_from_any_checkpoint_after_a_failure_or_loss(group):
    group, store, job = group

    def changed(**train):
        spec = job.spec | {"train": job.spec["train"] | train}
        return replace(job, spec=spec, folder=trial_folder(store, "other"), mark="other")

    group.begin(job)
    first = group.next_update().report
    assert first.step == 3
    one = f"{job.folder}/{first.checkpoint}"
    # With a learning rate near 0: its loss is low only if it began with the other trial's weights.
    group.begin(replace(changed(learning_rate=1e-12), checkpoint=one))
    copied = group.next_update().report
    assert copied.step == 6
    assert copied.figures["held_out_loss"] == pytest.approx(first.figures["held_out_loss"], abs=1e-6)
    weights = [
        load_file(Path(folder, name, "model", "model.safetensors"))
        for folder, name in ((job.folder, first.checkpoint), (trial_folder(store, "other"), copied.checkpoint))
    ]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-6) for name in weights[0])

    # A mistake that only the model reveals is reported, and the workers keep running.
    group.begin(changed(frozen=["no.such.weight"]))
    mistake = group.next_update()
    assert "train.frozen" in mistake.failed
    assert mistake.traceback == ""

    # The whole trial undisturbed, then again with a worker killed after its first report.
    group.begin(replace(job, mark="whole"))
    whole = [group.next_update() for _ in range(3)]
    group.begin(replace(job, mark="lost"))
    again = [group.next_update()]
    workers()[0].kill()
    again += [group.next_update() for _ in range(2)]
    assert [update.failures for update in again] == [0, 1, 1]
    losses = [[update.report.figures["held_out_loss"] for update in side] for side in (whole, again)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)

    # Lost once more than allowed; the group is still ready for the next job.
    group.begin(replace(job, mark="gone"))
    for _ in range(2):
        assert not group.next_update().failed
        workers()[0].kill()
    update = group.next_update()
    assert update.was_lost
    assert update.failed
    group.begin(replace(job, mark="last"))
    assert group.next_update().report.figures["held_out_loss"] == pytest.approx(losses[0][0], abs=1e-4)


def test_a_trial_that_never_fits_is_refused_with_the_numbers(run, searched):
    searched["train"]["cpus_per_worker"] = 3
    with pytest.raises(StageFailed, match=r"2 workers of 3 CPUs each, the nodes hold 1: 1 node of 4 CPUs"):
        run("tune", searched)


@pytest.mark.slow
def test_a_killed_search_resumes_and_a_failing_trial_does_not_end_it(command, searched, tmp_path):
    searched["cluster"] = {"num_cpus": 2}
    # One of the choices cannot be trained: it clips the gradient to a norm of NaN.
    searched["tune"] = {
        "space": {"train.max_skipped_steps": [0, 50], "train.learning_rate": [1e-3, 1.0]},
        "searcher": "grid",
    }
    searched["train"] |= {"spike_factor": 1.05, "adapter": None}
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump(searched))
    before = command.killed_search(file, after=1)
    ended = {trial["key"]: trial for trial in before if trial["state"] in ("finished", "stopped")}
    seen = command.finished("tune", file)
    figures = next(event["figures"] for event in seen if event["event"] == "done" and event["stage"] == "tune")
    assert figures["trials"] == 4
    assert figures["failed"] >= 1
    [search] = [json.loads(path.read_text()) for path in (tmp_path / "store").glob("tune/*/search.json")]
    trials = {trial["key"]: trial for trial in search["trials"]}
    for key, trial in ended.items():
        assert trials[key]["reused"] == len(trial["reports"]) == len(trials[key]["reports"])
    failed = [trial for trial in trials.values() if trial["state"] == "failed"]
    assert all("train.max_skipped_steps (0)" in trial["error"] for trial in failed)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 24 MB, and a function that fills it."""
    folder = tmp_path / "small"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")

    def fill():
        with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))

    yield folder, fill
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_ends_a_search_in_one_sentence_and_it_goes_on(run, searched, small_disk):
    folder, fill = small_disk
    searched["store"] = str(folder)
    searched["train"] |= {"num_workers": 1, "zero": {"stage": 0}}
    searched["tune"] |= {"trials": 3, "scheduler": "none", "max_concurrent": 1}
    _, store = run("prepare", searched)
    with Disturbance(lambda: bool(list(folder.glob("trials/*/trial_*.json"))), lambda worker: fill()) as disturbance:
        began = time.monotonic()
        with pytest.raises(StageFailed) as e:
            run("tune", searched)
    print(f"{e.value} (after {time.monotonic() - began:.0f} s)")
    assert disturbance.happened
    assert re.fullmatch(
        rf"tune: store: cannot write {folder}/\S+: No space left on device, 0\.00 of 0\.0 GB are free; free some "
        "space, then run the same command to resume",
        str(e.value),
    )
    assert not list(folder.rglob("*.unfinished"))
    assert all(is_whole(store, str(path)) for path in folder.glob("trials/*/checkpoint_*"))
    (folder / "filler").unlink()
    done, _ = run("tune", searched)
    search = read_search(store, done["tune"].key)
    assert [trial.state for trial in search.trials] == ["finished"] * 3
    assert sum(trial.reused for trial in search.trials) >= 1


@pytest.mark.slow
def test_the_score_of_a_suite_may_be_the_metric(run, searched, tmp_path):
    items = [{"question": f"{one}+{one}?", "regex": "It is"} for one in range(8)]
    (tmp_path / "form.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    searched["train"] |= {"num_workers": 1, "epochs": 30, "max_steps": 60, "checkpoint_every_steps": 30}
    searched["tune"] = {
        "space": {"train.learning_rate": [1e-7, 1e-2]}, "searcher": "grid", "metric": "suite_form",
        "max_concurrent": 2,
    }  # fmt: skip
    searched["evaluate"] |= {"suites": [{"path": str(tmp_path / "form.jsonl")}], "max_new_tokens": 12}
    done, store = run("evaluate", searched)
    search = read_search(store, done["tune"].key)
    ends = {trial.values["train.learning_rate"]: trial.reports[-1] for trial in search.trials}
    scores = {rate: report.figures["suite_form"] for rate, report in ends.items()}
    assert scores[1e-7] < scores[1e-2]
    winner = next(trial for trial in search.trials if trial.key == search.winner.key)
    assert winner.values["train.learning_rate"] == 1e-2
    assert max(report.figures["suite_form"] for report in winner.reports) == scores[1e-2]
    assert search.winner.remeasured == pytest.approx(search.winner.reported, abs=1e-6)
    [suite] = read_scorecard(store, done["evaluate"])["suites"]
    assert suite["scores"][1]["mean"] == scores[1e-2]


def read_scorecard(store, artifact):
    return store.read_json(store.path("evaluate", artifact.key, "scorecard.json"))
