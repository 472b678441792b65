"""How long the commands take that show a search of 10,000 trials, and the size of its page.

    python benchmarks/search_show.py [--trials 10000] [--folder store]

Writes the record of a search as a search writes it: ten fields, two metrics, hyperband, up to twenty reports a trial.
Each command runs in a new process, three times; medians of seconds, and of seconds of CPU, which do not grow
with what else the machine does. `size_mb` is the page's. The last line is one JSON object.
"""

import argparse
import contextlib
import json
import math
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.training.report import Report
from workflows.search.records import FAILED, FINISHED, STOPPED, Search, Trial, write_search
from workflows.spec.read import read_spec
from workflows.store import RunRecord, StageEntry, Store

SPACE: dict[str, Any] = {
    "train.learning_rate": {"loguniform": [1e-5, 1e-2]},
    "train.adapter.rank": [4, 8, 16, 32, 64],
    "train.adapter.alpha": {"uniform": [4, 128]},
    "train.adapter.dropout": {"uniform": [0, 0.3]},
    "train.weight_decay": {"loguniform": [1e-4, 1e-1]},
    "train.warmup_share": {"uniform": [0, 0.3]},
    "train.final_learning_rate_share": {"uniform": [0, 1]},
    "train.gradient_clip": {"uniform": [0.1, 2]},
    "train.batch_tokens": [512, 1024, 2048],
    "train.seed": {"int": [0, 1_000_000]},
}
CHECKPOINTS, STEPS = 20, 200


def search_of(trials: int) -> Search:
    """A search as hyperband leaves it."""
    draw = random.Random(0)
    found = [trial_of(number, draw) for number in range(trials)]
    return Search(
        "crowd", "0123456789abcdef", ["held_out_loss", "peak_memory_gb"], SPACE, "random", "hyperband", trials, found,
        seconds=36_000.0, at_once=16,
    )  # fmt: skip


def trial_of(number: int, draw: random.Random) -> Trial:
    values: dict[str, Any] = {}
    for field, entry in SPACE.items():
        kind, bounds = next(iter(entry.items())) if isinstance(entry, dict) else ("", entry)
        if not kind:
            values[field] = draw.choice(bounds)
        elif kind == "loguniform":
            values[field] = bounds[0] * (bounds[1] / bounds[0]) ** draw.random()
        else:
            values[field] = draw.randint(*bounds) if kind == "int" else draw.uniform(*bounds)
    count = 0 if draw.random() < 0.01 else CHECKPOINTS if draw.random() < 0.1 else draw.choice([6, 6, 6, 18])
    level = 1.5 + 0.4 * abs(math.log10(values["train.learning_rate"]) + 3.5) + draw.uniform(0, 0.4)
    reports = [
        Report(step, STEPS, {
            "held_out_loss": level + 3 / step + draw.gauss(0, 0.01), "peak_memory_gb": draw.uniform(1, 20),
            "loss": level + 3 / step, "num_tokens": 2048.0 * step, "seconds": 1.3 * step + draw.random(),
            "tokens_per_second": draw.uniform(1000, 2000), "held_out_tokens": 8192.0,
        }, None)
        for step in range(10, 10 * count + 1, 10)
    ]  # fmt: skip
    state = FINISHED if count == CHECKPOINTS else STOPPED if count else FAILED
    error = "" if count else "train: the loss is not finite at step 3; lower train.learning_rate"
    return Trial(number, f"{draw.getrandbits(64):016x}", values, state, reports, error=error)


def cpu_seconds() -> float:
    """of the commands so far"""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def folder_of(name: str | None) -> Iterator[Path]:
    if name:
        Path(name).mkdir(parents=True, exist_ok=True)
        yield Path(name)
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--folder", help="keeps the store, the pipeline file and the page here")
    options = parser.parse_args()
    with folder_of(options.folder) as folder:
        store, file = Store(str(folder / "store")), folder / "crowd.yaml"
        data = f"store: {store.root}\ndata: {{sources: [{{path: talk.jsonl}}]}}\n"
        file.write_text(f"name: crowd\nbase_model: random:tiny-llama\n{data}")
        search = search_of(options.trials)
        began = time.perf_counter()
        write_search(store, search)
        output: dict[str, Any] = {"trials": options.trials, "write_s": round(time.perf_counter() - began, 2)}
        stages = {"tune": StageEntry(key=search.key, seconds=1.0)}
        spec = json.loads(read_spec(str(file)).model_dump_json())
        store.write_run(RunRecord(
            run="crowd-0", pipeline="crowd", to="tune", status="finished", started="2026-01-01", spec=spec,
            stages=stages,
        ))  # fmt: skip
        page = folder / "crowd-0.html"
        commands = {
            "trials": ["trials", str(file)], "trials_json": ["trials", str(file), "--json"],
            "runs": ["runs", str(file)], "report": ["report", str(file), "--output", str(page)],
        }  # fmt: skip
        for name, command in commands.items():
            took, cpu = [], []
            for _ in range(3):
                began, before = time.perf_counter(), cpu_seconds()
                subprocess.run([sys.executable, "-m", "workflows", *command], check=True, capture_output=True)
                took.append(time.perf_counter() - began)
                cpu.append(cpu_seconds() - before)
            output[f"{name}_s"], output[f"{name}_cpu_s"] = (round(statistics.median(each), 2) for each in (took, cpu))
            print(f"{name}: {output[f'{name}_s']} s, {output[f'{name}_cpu_s']} of CPU", flush=True)
        output["size_mb"] = round(page.stat().st_size / 1e6, 2)
        output["peak_mb"] = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    print(json.dumps(output))


if __name__ == "__main__":
    main()
