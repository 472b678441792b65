"""The side `us` of train_vs_peers.py, and `rate`, which measures the machine."""

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
WARM_UP_STEPS = 1


class InOrder:
    """One conversation per step, in the given order, to compare losses. Replaces `models.packing.StepPlan`."""

    def __init__(self, num_tokens: list[int], weights: list[int]) -> None:
        self._num_tokens, self._weights = num_tokens, weights
        self.steps_per_epoch = len(num_tokens)

    def rows(self, step: int) -> list[list[int]]:
        return [[step]]

    def micro_batches(self, step: int, worker: int, num_workers: int, parts: int = 1) -> list[list[int]]:
        return self.rows(step)

    def weight(self, step: int) -> int:
        return self._weights[step]

    def num_tokens(self, step: int) -> int:
        return self._num_tokens[step]


def rate(precision: str) -> dict[str, float]:
    """GFLOP/s of the machine's matrix products."""
    from models.base.precision import dtype_of
    from models.kernels.flops import matrix_product_rate

    return {"gflops": matrix_product_rate(torch.device("cpu"), dtype_of(precision)) / 1e9}


def train(kind: str, precision: str, folder: str, data: str, save_to: str | None) -> dict[str, object]:
    """One epoch over the examples, as in a worker of `rayconteur train`."""
    from models.base import adapters
    from models.base.load import load_model
    from models.base.precision import dtype_of
    from models.kernels.attention import PACKED_ATTENTION
    from models.objectives.sft import Sft
    from models.packing import StepPlan
    from models.training.deepspeed_config import DeepSpeedSettings
    from models.training.deepspeed_engine import DeepSpeedEngine
    from models.training.fit import FitCallbacks, FitSettings, HeldOut, fit
    from models.training.report import Progress

    rendezvous = Path(tempfile.mkdtemp()) / "rendezvous"
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    rows = [
        {"input_ids": example["input_ids"], "supervised": [label != -100 for label in example["labels"]]}
        for example in json.loads(Path(data).read_text())
    ]
    num_tokens, weights = [len(row["input_ids"]) for row in rows], [sum(row["supervised"][1:]) for row in rows]
    plan: Any = InOrder(num_tokens, weights)
    if save_to is None:
        plan = StepPlan(num_tokens, weights, micro_batch_tokens=2048, num_workers=1, gradient_accumulation=1, seed=0)
    model = load_model(folder, dtype_of(precision), PACKED_ATTENTION)
    if kind == "lora":
        model = adapters.attach(model, 16, 32.0, 0.0, "all-linear", folder)
    objective = Sft()
    engine = DeepSpeedEngine(model, objective, DeepSpeedSettings(0, precision, gradient_clip=1.0), weight_decay=0.0)
    steps: list[tuple[float, Progress]] = []
    settings = FitSettings(plan.steps_per_epoch, 1e-4, 0.0, 1.0, plan.steps_per_epoch + 1)
    fit(
        engine, plan, lambda numbers: objective.batch([rows[number] for number in numbers]), settings,
        HeldOut([objective.batch(rows[:2])]),
        FitCallbacks(lambda progress: steps.append((time.perf_counter(), progress)), lambda *_: None),
    )  # fmt: skip
    if save_to is not None:
        with tempfile.TemporaryDirectory() as name:
            engine.snapshot()(Path(name))
            shutil.copytree(Path(name) / "model", save_to)
    tokens = [plan.num_tokens(step) for step in range(plan.steps_per_epoch)]
    seconds = steps[-1][0] - steps[WARM_UP_STEPS - 1][0]
    return {
        "tokens_per_second": sum(tokens[WARM_UP_STEPS:]) / seconds,
        "losses": [progress.loss for _, progress in steps],
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


if __name__ == "__main__":
    side, kind, precision, folder, data, threads, *save_to = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)  # the adapter's initial weights
    answer = rate(precision) if side == "rate" else train(kind, precision, folder, data, *save_to or [None])
    print("\n" + json.dumps(answer))
