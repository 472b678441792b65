"""A search of 1,000 trials that do nothing: what our code adds to Ray Tune's time and to the driver's memory.

    python benchmarks/search_scale.py --repeats 3

    us      the stage tune: its trials, its recorder (records of every trial in a store), its searcher and scheduler;
            the trials report at once instead of using a worker group
    plain   ray.tune with the same searcher, scheduler and concurrency over a Trainable that reports at once

Both run on one machine on which Ray declares the CPUs of 64 nodes of 8. Each concurrent trial is a process, so
`--at-once` decides how many processes start: with 1, one process serves all trials, and the benchmark measures the
driver's own work. With more, if a trial takes less time than the start of a process, Tune reuses a process that has
become free for the waiting trial and stops the one that was starting; then 1,000 trials start about as many
processes. Sides alternate, each run in a new process. The last line is one JSON object.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import ray
import ray.tune

from models.training.report import Report
from workflows.progress import Progress
from workflows.search.job_queue import JobUpdate
from workflows.search.recorder import SearchRecorder
from workflows.search.records import Search
from workflows.search.trial import Shared, TrialRunner, values_of
from workflows.search.tuner import ENVIRONMENT, tuner_of
from workflows.spec import PipelineSpec
from workflows.store import Store
from workflows.training.inputs import TrainingInputs

NODES, CPUS = 64, 8
STEPS, EVERY = 90, 10


def loss_at(rate: float, step: int) -> float:
    """A loss by which ASHA can rank trials."""
    return abs(rate - 0.5) + 1 / step


class Idle(ray.tune.Trainable):
    """The plain side's trial."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._rate, self._step = values_of(new_config)["train.learning_rate"], 0
        return True

    def step(self) -> dict[str, Any]:
        time.sleep(0)
        self._step += EVERY
        return {
            "step": self._step, "held_out_loss": loss_at(self._rate, self._step), "done": self._step >= STEPS
        }  # fmt: skip

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {"step": self._step}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """This search never calls it."""


class IdleTrial(TrialRunner):
    """Our side's trial, without the worker group."""

    def _next_update(self) -> JobUpdate:
        time.sleep(0)
        step = self._said + EVERY
        rate = self._trial.values["train.learning_rate"]
        return JobUpdate(Report(step, STEPS, {"held_out_loss": loss_at(rate, step), "seconds": 0.0}, None))


def pipeline(folder: str, trials: int, at_once: int) -> PipelineSpec:
    """The pipeline of a search whose training never starts."""
    return PipelineSpec.model_validate({
        "name": "scale", "store": folder, "base_model": "random:tiny-llama", "data": {"sources": [{"path": "none"}]},
        "train": {"adapter": None, "checkpoint_every_steps": EVERY, "num_workers": 2},
        "tune": {
            "space": {"train.learning_rate": {"uniform": [0.01, 1.0]}}, "trials": trials, "scheduler": "asha",
            "max_concurrent": at_once,
        },
    })  # fmt: skip


def one(side: str, trials: int, at_once: int) -> dict[str, float]:
    """Run one search of one side in this process."""
    # Otherwise Ray starts a process for each of 512 CPUs in advance.
    os.environ.update({**ENVIRONMENT, "RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0"})
    ray.init(address="local", num_cpus=NODES * CPUS, log_to_driver=False, logging_level="ERROR")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        spec, store = pipeline(folder, trials, at_once), Store(folder)
        assert spec.tune is not None
        search = Search(
            "scale", "key", ["held_out_loss"], spec.tune.space, "random", "asha", trials, at_once=at_once
        )  # fmt: skip
        shared = Shared(
            spec.model_copy(update={"tune": None}), store.uri, TrainingInputs({"prepare": "none"}),
            "key", store.path("tune", "key"), search.metrics, is_population=False, max_failures=0,
        )  # fmt: skip
        recorder = SearchRecorder(search, store, Progress(), is_population=False)
        run_config = ray.tune.RunConfig(
            name="run", storage_path=folder, verbose=0, callbacks=[recorder] if side == "us" else []
        )
        trainable = ray.tune.with_parameters(IdleTrial, shared=shared) if side == "us" else Idle
        tuner = tuner_of(trainable, spec, search, steps_of=lambda values: STEPS, run_config=run_config)
        began = time.perf_counter()
        results = tuner.fit()
        recorder.close()
        took = time.perf_counter() - began
        assert len(results) == trials
        assert results.num_errors == 0
        assert side != "us" or sum(trial.state in ("finished", "stopped") for trial in search.trials) == trials
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ray.shutdown()
    return {"seconds": took, "driver_mb": after / 1024, "search_mb": (after - before) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=8, help="trials at once, each a process")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=["us", "plain"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(one(arguments.side, arguments.trials, arguments.at_once)))
        return
    runs: dict[str, list[dict[str, float]]] = {"plain": [], "us": []}
    for number in range(arguments.repeats):
        for side, found in runs.items():
            command = [sys.executable, __file__, "--side", side, "--trials", str(arguments.trials)]
            command += ["--at-once", str(arguments.at_once)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            seconds, megabytes = found[-1]["seconds"], found[-1]["driver_mb"]
            print(f"round {number + 1}: {side:<6} {seconds:.1f} s, {megabytes:.0f} MB", flush=True)
    medians = {
        side: {name: round(statistics.median(run[name] for run in found), 2) for name in found[0]}
        for side, found in runs.items()
    }
    ratios = [us["seconds"] / plain["seconds"] for us, plain in zip(runs["us"], runs["plain"], strict=True)]
    print(json.dumps({
        "trials": arguments.trials, "at_once": arguments.at_once, **medians,
        "seconds_ratio": round(medians["us"]["seconds"] / medians["plain"]["seconds"], 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "driver_memory_ratio": round(medians["us"]["driver_mb"] / medians["plain"]["driver_mb"], 3),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
