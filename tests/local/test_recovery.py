"""kill -9 of workers: training goes on from the last whole checkpoint, with the losses of an undisturbed run."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest


@pytest.fixture
def pipeline(tiny, wider):
    """On two workers, with a checkpoint every third step."""
    tiny["base_model"] = wider
    tiny["train"] |= {
        "batch_tokens": 256, "epochs": 2, "learning_rate": 1e-3, "checkpoint_every_steps": 3, "zero": {"stage": 2},
    }  # fmt: skip
    return tiny


def losses(store, done):
    with store.filesystem.open_input_stream(store.path("train", done["train"].key, "history.jsonl")) as stream:
        return [json.loads(line)["loss"] for line in stream.read().splitlines()]


@pytest.fixture(scope="module")
def undisturbed():
    return {}


def kill_a_worker(when):
    """On a thread: kill -9 of a training worker as soon as `when()`; the thread's `killed` says whether it did."""

    def watch():
        while not thread.stopped and not when():
            time.sleep(0.001)
        workers = [child for child in psutil.Process().children(recursive=True) if "RayTrainWorker" in child.name()
                   or any("RayTrainWorker" in word for word in child.cmdline()[:1])]  # fmt: skip
        if workers and not thread.stopped:
            workers[-1].kill()
            thread.killed = True

    thread = threading.Thread(target=watch, daemon=True)
    thread.stopped = thread.killed = False
    thread.start()
    return thread


def checkpoints(store_folder):
    return sorted(Path(store_folder).glob("train/*/run/checkpoint_*"))


def counted(folder):
    """What Ray Train has written down of the checkpoints that are whole."""
    return "".join(file.read_text() for file in Path(folder).glob("train/*/run/checkpoint_manager_snapshot.json"))


def between_checkpoints(folder):
    """A checkpoint is whole, and the steps after it have begun."""
    return "checkpoint_" in counted(folder)


def in_the_middle_of_a_save(folder):
    """A checkpoint is whole; a later one has begun to be written and is not."""
    found = checkpoints(folder)
    return (
        between_checkpoints(folder) and found[-1].name not in counted(folder) and not (found[-1] / "model").is_dir()
    )


@pytest.mark.parametrize("when", [between_checkpoints, in_the_middle_of_a_save])
def test_a_killed_worker_costs_nothing_but_time(run, pipeline, undisturbed, tmp_path, when):
    if not undisturbed:
        done, store = run("train", {**pipeline, "store": str(tmp_path / "undisturbed")})
        undisturbed["losses"] = losses(store, done)
        assert done["train"].figures["resumed_from_step"] == 0
    killer = kill_a_worker(lambda: when(pipeline["store"]))
    done, store = run("train", pipeline)
    killer.stopped = True
    killer.join()
    assert killer.killed
    assert done["train"].figures["resumed_from_step"] in range(3, 30, 3)
    assert losses(store, done) == pytest.approx(undisturbed["losses"], abs=1e-4)


def test_a_process_in_which_nothing_happens_ends_itself():
    script = (
        "import sys, time; from workflows.recovery import Watchdog\n"
        "with Watchdog(2.0, lambda: print('hung')) as dog:\n"
        "    for _ in range(8): time.sleep(0.5); dog.alive()\n"
        "    print('alive', flush=True); time.sleep(600)"
    )
    done = subprocess.run(
        [sys.executable, "-u", "-c", script], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    assert done.stdout.split() == ["alive", "hung"]
