"""Packed trials against trials on their own, in speed and memory.

    python benchmarks/packed_trials.py --data sgd.jsonl.gz [--before CHECKOUT] [--trials 16] [--steps 20] [--rounds 2]

First, in one process with two threads: the tokens a second of SmolLM2-135M with LoRA adapters, of DeepSpeed's engine
with steps of 256 tokens and of 2,048, and of packs of 8 trainings with 256 tokens a step; and each peak memory.
The second figure by the first is the room: what longer passes gain here. Then searches over learning rate and rank on
two cores: trials an hour of packed trials, of one worker group with two threads, and of two worker groups with one
thread, these two with the build of `--before` if it is given (`git worktree add ../before COMMIT`). The sides
alternate; medians. The last line is one JSON object.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from pipeline_runs import ROOT

from workflows.cluster.workers import worker_environment
from workflows.training.steps import PASS_TOKENS

BASE = "builtin:smollm2-135m-instruct"
STEP_TOKENS = 256
PACK = 8
TOKENS = 12_288


def pipeline(data: Path, trials: int, steps: int, cpus: int, pack: int | str | None) -> dict[str, Any]:
    tune: dict[str, Any] = {
        "space": {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}, "train.adapter.rank": [4, 8, 16, 32]},
        "trials": trials,
    }
    if pack is not None:
        tune["pack"] = pack
    return {
        "name": "packed",
        "store": "store",
        "base_model": BASE,
        "data": {"sources": [{"path": str(data.resolve()), "limit": 300}], "max_length": 256},
        "train": {
            "adapter": {"rank": 16}, "max_steps": steps, "checkpoint_every_steps": steps, "batch_tokens": STEP_TOKENS,
            "cpus_per_worker": cpus, "held_out_tokens": 512,
        },
        "tune": tune,
        "cluster": {"num_cpus": 2},
    }  # fmt: skip


def search(checkout: Path, values: dict[str, Any]) -> float:
    """Trials an hour, from the search's first second to its last; what comes before and after does not count."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "packed.yaml").write_text(yaml.safe_dump(values))
        environment = {**os.environ, "PYTHONPATH": str(checkout), "RAY_worker_niceness": "0"}
        command = [sys.executable, "-m", "workflows", "tune", "packed.yaml"]
        subprocess.run(command, cwd=name, env=environment, check=True)
        [file] = Path(name).glob("store/tune/*/search.json")
        found = json.loads(file.read_text())
        assert all(trial["state"] == "finished" for trial in found["trials"])
        return float(3600 * len(found["trials"]) / found["seconds"])


def measure_step(kind: str) -> dict[str, float]:
    """Tokens a second and peak memory of one kind of training, in this process."""
    import torch

    from models.base import adapters
    from models.base.load import load_model, resolve
    from models.base.precision import dtype_of, faster_precision
    from models.kernels.attention import PACKED_ATTENTION
    from models.objectives.sft import Sft
    from models.packing import pack
    from models.training.batch_size import forget_peak, peak_gb
    from models.training.deepspeed_config import DeepSpeedSettings
    from models.training.deepspeed_engine import DeepSpeedEngine
    from models.training.pack import Pack, PackedEngine, PackedSettings

    torch.set_num_threads(1 if kind == "packed" else 2)
    precision = faster_precision("cpu")
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29533",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
    }

    def model() -> Any:
        return load_model(resolve(BASE), dtype_of(precision), PACKED_ATTENTION)

    def adapted(base: Any, rank: int = 16) -> Any:
        return adapters.attach(base, rank, 32.0, 0.0, "all-linear", base=BASE)

    def batch(tokens: int) -> Any:
        ids = [[(17 * place + 3 * row) % 40_000 + 100 for place in range(128)] for row in range(tokens // 128)]
        return pack([(each, [place > 64 for place in range(128)]) for each in ids])

    num, tokens = (PACK, STEP_TOKENS) if kind == "packed" else (1, int(kind))
    if kind == "packed":
        shared = Pack(model(), max_tokens=PASS_TOKENS, num_threads=2)
        engines: list[Any] = []
        from models.base.reuse import BaseModels

        bases = BaseModels()
        for _ in range(num):
            own = bases.model(resolve(BASE), dtype_of(precision), PACKED_ATTENTION, stays=True)
            engines.append(PackedEngine(shared, adapted(own), Sft(), PackedSettings(0.0, 1.0, 0)))
    else:
        torch.distributed.init_process_group("gloo")
        engines = [DeepSpeedEngine(adapted(model()), Sft(), DeepSpeedSettings(0, precision, 1.0), 0.0)]
    data = batch(tokens)
    forget_peak()

    def steps(engine: Any, count: int) -> None:
        with shared.member() if kind == "packed" else contextlib.nullcontext():
            for _ in range(count):
                engine.accumulate(data, 100)
                engine.update(1e-4)

    def seconds(count: int) -> float:
        """The time of so many steps of all trainings."""
        began = time.monotonic()
        if kind == "packed":
            with ThreadPoolExecutor(num) as threads:
                list(threads.map(steps, engines, [count] * num))
        else:
            steps(engines[0], count)
        return time.monotonic() - began

    seconds(1)
    count = TOKENS // (num * tokens)
    return {"tokens_per_second": count * num * tokens / seconds(count), "peak_gb": peak_gb()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kind", help="used by the benchmark itself")
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(measure_step(options.kind)))
        return
    found: dict[str, Any] = {}
    kinds = [str(STEP_TOKENS), str(PACK * STEP_TOKENS), "packed"]
    each: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind in kinds:
            command = [sys.executable, __file__, "--kind", kind]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), **worker_environment(2, 0)}
            output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
            each[kind].append(json.loads(output.splitlines()[-1]))
            print(kind, each[kind][-1])
    for kind in kinds:
        found[f"tokens_per_second_{kind}"] = statistics.median(one["tokens_per_second"] for one in each[kind])
        found[f"peak_gb_{kind}"] = statistics.median(one["peak_gb"] for one in each[kind])
    alone = found[f"tokens_per_second_{STEP_TOKENS}"]
    found["gain"] = round(found["tokens_per_second_packed"] / alone, 2)
    found["room"] = round(found[f"tokens_per_second_{PACK * STEP_TOKENS}"] / alone, 2)
    found["memory_ratio"] = round(found["peak_gb_packed"] / found[f"peak_gb_{STEP_TOKENS}"], 2)
    if options.data:
        before = (options.before or ROOT).resolve()
        own: int | str | None = None if options.before else 1
        sides = {
            "packed": (ROOT, 2, "auto"), "two_threads": (before, 2, own), "two_groups": (before, 1, own),
        }  # fmt: skip
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side, (checkout, cpus, pack) in sides.items():
                values = pipeline(options.data, options.trials, options.steps, cpus, pack)
                rates[side].append(search(checkout, values))
                print(side, rates[side][-1])
        found["trials_an_hour"] = {side: round(statistics.median(each), 1) for side, each in rates.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
