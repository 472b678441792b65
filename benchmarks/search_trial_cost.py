"""What a trial costs outside its training steps: our worker groups against a TorchTrainer per trial (Ray's guide).

    python benchmarks/search_trial_cost.py

    us      the stage tune: workers are started once and train one trial after another
    peer    a Tune function that calls TorchTrainer(...).fit() with the same worker code, and Tune's callback

One trial at a time, with two DeepSpeed workers each, on the demo's conversations. A trial's cost is the time from the
end of the previous one to its own end, minus the time that it reports for its steps. The first trial of a search,
which also starts Ray Train, is reported separately. The last line is one JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback

from models.training.report import Report
from workflows.cluster import connection as cluster
from workflows.cluster.capacity import worker_resources
from workflows.cluster.workers import worker_environment
from workflows.progress import Progress
from workflows.runs.run import run_stages
from workflows.search.recorder import SearchRecorder
from workflows.search.records import Search
from workflows.search.trial import RESULT, Shared, TrialRunner, values_of
from workflows.search.tuner import ENVIRONMENT, tuner_of
from workflows.spec import PipelineSpec
from workflows.spec.read import read_spec
from workflows.spec.space import with_values
from workflows.store import Store
from workflows.training.inputs import TrainingInputs
from workflows.training.reporter import Callbacks
from workflows.training.worker import TrainWorker, WorkerSettings

DEMO = Path(__file__).resolve().parents[1] / "workflows" / "pipelines" / "demo.yaml"
STEPS, EVERY = 6, 6
KINDS: dict[str, dict[str, Any]] = {
    "tiny": {"base_model": "random:tiny-llama", "train": {"adapter": None, "zero": {"stage": 2}}},
    "smollm2": {"base_model": "builtin:smollm2-135m-instruct", "train": {"adapter": {"rank": 8}}},
}


def pipeline(kind: str, folder: str, trials: int) -> PipelineSpec:
    """A random search over the learning rate."""
    plain = read_spec(DEMO).model_dump() | {"store": folder, "base_model": KINDS[kind]["base_model"]}
    plain["train"] |= {
        "batch_tokens": 256, "max_steps": STEPS, "checkpoint_every_steps": EVERY, "precision": "fp32",
        "num_workers": 2, "cpus_per_worker": 1, "held_out_tokens": 512, **KINDS[kind]["train"],
    }  # fmt: skip
    plain["tune"] = {"space": {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}}, "trials": trials}
    return PipelineSpec.model_validate(plain)


class Clock(ray.tune.Callback):
    """When each trial ended, and the seconds that it reports for its steps."""

    def __init__(self) -> None:
        self.ends = [time.perf_counter()]
        self.seconds: list[float] = []

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        line = result.get(RESULT)
        self.last = line.report.figures["seconds"] if line else result["seconds"]

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self.ends.append(time.perf_counter())
        self.seconds.append(self.last)

    def costs(self) -> list[float]:
        """Seconds of each trial outside its steps."""
        took = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        return [round(whole - steps, 3) for whole, steps in zip(took, self.seconds, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        return {}


def peer_worker(config: dict[str, Any]) -> None:
    """One worker of one trial."""
    store = Store(config["store"])

    def on_checkpoint(report: Report, write: Any) -> None:
        with tempfile.TemporaryDirectory() as name:
            write(Path(name))
            metrics = {"step": report.step, "num_steps": report.num_steps, **report.figures}
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(name))

    spec = PipelineSpec.model_validate(config["spec"])
    settings = WorkerSettings(spec, store, TrainingInputs(config["keys"]), store.path("peer", config["name"]))
    TrainWorker().train(settings, Callbacks(on_checkpoint))


def peer_trial(config: dict[str, Any], spec: PipelineSpec, keys: dict[str, str]) -> None:
    """A trial as in Ray's guide."""
    train = spec.train
    trial_spec = with_values(spec, values_of(config))
    name = ray.tune.get_context().get_trial_id()
    ray.train.torch.TorchTrainer(
        peer_worker,
        train_loop_config={"spec": trial_spec.model_dump(), "store": spec.store, "keys": keys, "name": name},
        torch_config=ray.train.torch.TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=train.min_workers, resources_per_worker=worker_resources(train)
        ),
        run_config=ray.train.RunConfig(
            name=f"train-{name}",
            storage_path=f"{spec.store}/peer",
            callbacks=[TuneReportCallback()],
            worker_runtime_env={"env_vars": worker_environment(train.cpus_per_worker, 0)},
        ),
    ).fit()


def one(side: str, spec: PipelineSpec, keys: dict[str, str], trials: int) -> list[float]:
    """The cost of each trial of a search."""
    assert spec.tune is not None
    store = Store(spec.store)
    search = Search("cost", f"{side}", ["held_out_loss"], spec.tune.space, "random", "none", trials)
    clock = Clock()
    plain = spec.model_copy(update={"tune": None})
    trainable: Any
    callbacks: list[Any] = [clock]
    if side == "us":
        folder = store.path("tune", "us")
        shared = Shared(plain, store.uri, TrainingInputs(keys), search.key, folder, search.metrics, False, 0)
        trainable = ray.tune.with_parameters(TrialRunner, shared=shared)
        callbacks.append(SearchRecorder(search, store, Progress(), is_population=False))
    else:
        trainable = ray.tune.with_parameters(peer_trial, spec=plain, keys=keys)
    run_config = ray.tune.RunConfig(
        name=f"run-{side}", storage_path=f"{spec.store}/runs", verbose=0, callbacks=callbacks
    )
    tuner_of(trainable, spec, search, steps_of=lambda values: STEPS, run_config=run_config).fit()
    return clock.costs()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="tiny,smollm2", help="which base models")
    parser.add_argument("--trials", type=int, default=5)
    arguments = parser.parse_args()
    import os

    os.environ.update({**cluster.ENVIRONMENT, **ENVIRONMENT})
    ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level="ERROR")
    figures: dict[str, Any] = {"trials": arguments.trials, "steps": STEPS}
    for kind in arguments.kinds.split(","):
        costs = {}
        for side in ("us", "peer"):
            with tempfile.TemporaryDirectory() as folder, Progress() as progress:
                spec = pipeline(kind, folder, arguments.trials)
                done = run_stages(spec, Store(folder), progress, "prepare", connect=lambda stages: None)
                costs[side] = one(side, spec, {"prepare": done["prepare"].key}, arguments.trials)
                print(f"{kind} {side}: {costs[side]} s", flush=True)
        medians = {side: round(statistics.median(found[1:]), 2) for side, found in costs.items()}
        figures[kind] = {
            "first": {side: found[0] for side, found in costs.items()}, **medians,
            "ratio": round(medians["peer"] / medians["us"], 1),
        }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
