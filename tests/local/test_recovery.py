"""Workers are killed, stopped or denied memory; training continues with the losses of an undisturbed run."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from disturbance import Disturbance, workers

from workflows.stage import StageFailed


@pytest.fixture
def pipeline(tiny, wider):
    """The pipeline with two workers, and a checkpoint every third step."""
    tiny["base_model"] = wider
    tiny["train"] |= {"batch_tokens": 256, "learning_rate": 1e-3, "checkpoint_every_steps": 3, "zero": {"stage": 2}}
    return tiny


def losses(store, done):
    with store.filesystem.open_input_stream(store.path("train", done["train"].key, "history.jsonl")) as stream:
        return [json.loads(line)["loss"] for line in stream.read().splitlines()]


@pytest.fixture(scope="module")
def kept():
    """Results of the first test, for the others."""
    return {}


@pytest.fixture
def losses_alone(run, pipeline, kept, tmp_path):
    """The losses of the undisturbed pipeline."""
    if "losses" not in kept:
        done, store = run("train", {**pipeline, "store": str(tmp_path / "undisturbed")})
        assert done["train"].figures["resumed_from_step"] == 0
        kept["losses"] = losses(store, done)
    return kept["losses"]


def checkpoints(store_folder):
    return sorted(Path(store_folder).glob("train/*/run/checkpoint_*"))


def counted(folder):
    """Ray Train's record of complete checkpoints."""
    return "".join(file.read_text() for file in Path(folder).glob("train/*/run/checkpoint_manager_snapshot.json"))


def between_checkpoints(folder):
    """Whether a checkpoint is complete and the steps after it have begun."""
    return "checkpoint_" in counted(folder)


def in_the_middle_of_a_save(folder):
    """Whether one checkpoint is complete and a later one is being written."""
    found = checkpoints(folder)
    return (
        between_checkpoints(folder) and found[-1].name not in counted(folder) and not (found[-1] / "model").is_dir()
    )


@pytest.mark.slow  # test_pair.py kills one too
@pytest.mark.parametrize("when", [between_checkpoints, in_the_middle_of_a_save])
def test_a_killed_worker_costs_nothing_but_time(run, pipeline, losses_alone, when):
    with Disturbance(lambda: when(pipeline["store"]), psutil.Process.kill) as killing:
        done, store = run("train", pipeline)
    assert killing.happened
    assert done["train"].figures["resumed_from_step"] in range(3, 30, 3)
    assert losses(store, done) == pytest.approx(losses_alone, abs=1e-4)


@pytest.mark.slow
def test_a_hanging_worker_counts_as_lost(run, pipeline, losses_alone):
    """The only worker is stopped (SIGSTOP), so only Ray can notice it."""
    # The same losses at the same steps.
    pipeline["train"] |= {"hang_minutes": 0.5, "num_workers": 1, "gradient_accumulation": 2}
    stop = lambda worker: worker.send_signal(signal.SIGSTOP)  # noqa: E731
    with Disturbance(lambda: between_checkpoints(pipeline["store"]), stop) as stopping:
        done, store = run("train", pipeline)
    assert stopping.happened
    assert done["train"].figures["resumed_from_step"] in range(3, 30, 3)
    assert losses(store, done) == pytest.approx(losses_alone, abs=1e-4)


@pytest.mark.slow
def test_memory_that_runs_out_halves_the_micro_batch(run, pipeline, losses_alone):
    """In its first backward pass, DeepSpeed allocates a bucket of 0.2 GB; a worker's limit allows less than that."""

    def refuse_much(worker):
        with contextlib.suppress(psutil.NoSuchProcess):
            while worker.is_running():
                worker.rlimit(resource.RLIMIT_DATA, (worker.memory_info().data + (150 << 20), resource.RLIM_INFINITY))
                time.sleep(0.001)

    with Disturbance(lambda: bool(workers()), refuse_much) as refusing:
        done, store = run("train", pipeline)
    assert refusing.happened
    assert done["train"].figures["batch_tokens"] == 128
    assert losses(store, done) == pytest.approx(losses_alone, abs=1e-4)


def test_a_process_in_which_nothing_happens_ends_itself():
    script = (
        "import sys, time; from workflows.training.recovery import Watchdog\n"
        "with Watchdog(2.0, lambda: print('hung')) as dog:\n"
        "    for _ in range(8): time.sleep(0.5); dog.alive()\n"
        "    print('alive', flush=True); time.sleep(600)"
    )
    done = subprocess.run(
        [sys.executable, "-u", "-c", script], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    assert done.stdout.split() == ["alive", "hung"]


@pytest.mark.slow
def test_a_slow_worker_is_named(run, pipeline, capfd):
    def slow_down(worker):
        until = time.monotonic() + 25
        while time.monotonic() < until and worker.is_running():
            worker.send_signal(signal.SIGSTOP)
            time.sleep(0.9)
            worker.send_signal(signal.SIGCONT)
            time.sleep(0.1)

    with Disturbance(lambda: between_checkpoints(pipeline["store"]), slow_down) as slowing:
        run("train", pipeline)
    assert slowing.happened
    said = [line for line in capfd.readouterr().out.splitlines() if "times as long as the others for" in line]
    assert len(said) in (1, 2)  # afterwards, the other worker may be slow for a moment


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MB."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_is_reported_and_the_same_command_resumes_with_free_space(run, tiny, small_disk):
    tiny |= {"store": str(small_disk / "store")}
    tiny["train"] |= {"epochs": 30, "checkpoint_every_steps": 10, "max_failures": 0, "num_workers": 1}
    others = small_disk / "others"

    def fill(worker):
        with contextlib.suppress(OSError), others.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    # The next writer fails: a worker with its checkpoint, or the controller with its record of it.
    with (
        Disturbance(lambda: between_checkpoints(tiny["store"]), fill) as filling,
        pytest.raises(StageFailed, match=r"No space left.*free some space, then run the same command"),
    ):
        run("train", tiny)
    assert filling.happened
    others.unlink()
    done, store = run("train", tiny)
    assert done["train"].figures["resumed_from_step"] >= 10
    assert store.runs()[-1].status == "finished"
