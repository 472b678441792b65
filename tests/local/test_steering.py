"""A hand on a running search: a second process stops and adds trials, and its page is read meanwhile."""

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
import yaml

from workflows.progress import Progress
from workflows.runs.run import run_stages
from workflows.search.records import read_search
from workflows.search.steering_requests import read_requests
from workflows.spec.read import read_spec
from workflows.store import Store

ENDLESS = 9000


@pytest.fixture
def file(tiny, tmp_path):
    """A search whose first trial does not end by itself while a test waits for it, and whose second one is short."""
    tiny["train"] |= {"num_workers": 1, "checkpoint_every_steps": 3, "epochs": 1000}
    tiny["tune"] = {"space": {"train.max_steps": [ENDLESS, 6]}, "searcher": "grid", "max_concurrent": 1}
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(tiny))
    return path


def steer(file, *options):
    """The exit code and the answers of `trials` in another process."""
    command = [sys.executable, "-m", "workflows", "trials", str(file), *options, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def read(address, seconds=120.0, until=""):
    """The page, once it has this in it."""
    end = time.monotonic() + seconds
    while True:
        with urllib.request.urlopen(address, timeout=30) as answer:
            text = answer.read().decode()
        if re.search(until, text):
            return text
        assert time.monotonic() < end, text
        time.sleep(0.3)


class Notes(Progress):
    """A display that hands on where the page is."""

    def __init__(self):
        super().__init__()
        self.addresses = queue.Queue()

    def note(self, text, **fields):
        super().note(text, **fields)
        if "address" in fields:
            self.addresses.put(fields["address"])


def test_a_running_search_is_steered_from_another_process_and_has_a_page(cluster, file):
    spec, progress, found = read_spec(file), Notes(), {}
    store = Store(spec.store)

    def hand():
        address = progress.addresses.get(timeout=120)
        read(address, until="is-running")
        found["added"] = steer(file, "--add", "train.max_steps=4")
        found["refused"] = steer(file, "--stop", "77", "--add", "train.epochs=2")
        read(address, until="held out loss over steps")  # the plots are drawn more rarely than the table
        found["cloned and stopped"] = steer(file, "--clone", "0", "--set", "train.max_steps=5", "--stop", "0")
        read(address, until="stopped by hand")

    helper = threading.Thread(target=hand)
    helper.start()
    with progress:
        done = run_stages(spec, store, progress, "tune", connect=lambda stages: None)
    helper.join()
    assert found["added"][0] == 0
    assert (found["added"][1][0]["number"], found["added"][1][0]["values"]) == (1, {"train.max_steps": 4})
    assert found["refused"][0] == 1
    assert [answer["is_refused"] for answer in found["refused"][1]] == [True, True]
    assert found["cloned and stopped"][0] == 0
    search = read_search(store, done["tune"].key)
    trials = sorted(search.trials, key=lambda trial: trial.number)
    assert [(trial.values["train.max_steps"], trial.state, trial.added) for trial in trials] == [
        (ENDLESS, "stopped", ""), (4, "finished", "added by hand"), (5, "finished", "clone of 0, by hand"),
        (6, "finished", ""),
    ]  # fmt: skip
    assert trials[0].is_stopped_by_hand
    assert search.winner is not None
    assert search.wanted == 4
    assert len(read_requests(store, search.key)) == 5
    code, [answer] = steer(file, "--stop", "0")
    assert code == 1
    assert "is complete" in answer["text"]


@pytest.mark.slow
def test_a_killed_search_keeps_what_was_added_and_does_not_train_what_was_stopped(command, file, tiny):
    tiny["tune"]["space"]["train.max_steps"] = [ENDLESS, ENDLESS - 1]
    file.write_text(yaml.safe_dump(tiny))
    process = command.start("tune", file)
    address = next(event["address"] for event in command.events(process) if "address" in event)
    read(address, until="is-running")
    assert steer(file, "--add", "train.max_steps=4", "--add", "train.max_steps=5", "--stop", "0")[0] == 0
    read(address, until="stopped by hand")
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    code, [answer] = steer(file, "--stop", "1")
    assert code == 1
    assert "no run is working on search" in answer["text"]
    again = command.start("tune", file)
    address = next(event["address"] for event in command.events(again) if "address" in event)
    threading.Thread(target=lambda: [None for _ in command.events(again)], daemon=True).start()
    read(address, until=str(ENDLESS - 1))
    assert steer(file, "--stop", "3")[0] == 0
    assert again.wait(timeout=300) == 0
    store = Store(read_spec(file).store)
    search = read_search(store, next(info.base_name for info in store.folders("tune")))
    trials = sorted(search.trials, key=lambda trial: trial.number)
    assert [(trial.values["train.max_steps"], trial.state) for trial in trials] == [
        (ENDLESS, "stopped"), (4, "finished"), (5, "finished"), (ENDLESS - 1, "stopped"),
    ]  # fmt: skip
    assert trials[0].reused == len(trials[0].reports), "nothing of a stopped trial is trained again"
