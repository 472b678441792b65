"""Population-based training against the best fixed learning rate, with a constant learning-rate schedule.

    python benchmarks/search_population.py --data sgd.jsonl.gz --seeds 0,1,2

Trains a small random Llama without warm-up and decay, so that good training must lower its learning rate on the way.
`population`: members start with random learning rates and copy each other. `fixed`: the same number of learning
rates, evenly spaced over the same range, each kept to the end. Prints the best held-out loss; the last line is one
JSON object.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from search_budget import search

LOW, HIGH = 1e-3, 3e-2


def pipeline(folder: str, data: str, kind: str, members: int, steps: int, every: int, seed: int) -> dict[str, Any]:
    """The pipeline of one side."""
    tune: dict[str, Any] = {"trials": members, "scheduler": {"name": "population", "every_steps": every}}
    tune |= {"seed": seed, "space": {"train.learning_rate": {"loguniform": [LOW, HIGH]}}}
    if kind == "fixed":
        ratio = (HIGH / LOW) ** (1 / (members - 1))
        tune = {"space": {"train.learning_rate": [LOW * ratio**n for n in range(members)]}, "searcher": "grid"}
    return {
        "name": kind, "store": folder, "base_model": "random:tiny-llama",
        "data": {"sources": [{"path": str(Path(data).resolve()), "limit": 400}], "max_length": 512},
        "train": {
            "adapter": None, "precision": "fp32", "batch_tokens": 1024, "max_steps": steps, "epochs": 1000,
            "checkpoint_every_steps": every, "warmup_share": 0, "final_learning_rate_share": 1, "seed": seed,
            "held_out_tokens": 8192, "spike_factor": None,
        },
        "tune": tune,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a file of conversations")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=40)
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    rows = []
    for seed in map(int, arguments.seeds.split(",")):
        row: dict[str, Any] = {"seed": seed}
        for kind in ("population", "fixed"):
            with tempfile.TemporaryDirectory() as folder:
                values = pipeline(
                    folder, arguments.data, kind, arguments.members, arguments.steps, arguments.every, seed
                )
                figures = search(values, folder)
            row[kind] = round(figures["held_out_loss"], 4)
            row[f"{kind}_learning_rate"] = round(figures["train.learning_rate"], 6)
        row["lower_by"] = round(row["fixed"] - row["population"], 4)
        assert all(math.isfinite(row[kind]) for kind in ("population", "fixed"))
        print(row)
        rows.append(row)
    print(json.dumps({"members": arguments.members, "steps": arguments.steps, "rows": rows}))


if __name__ == "__main__":
    main()
