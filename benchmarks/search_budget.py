"""Searches with the same base model and time: ASHA from the first checkpoint on against every trial to its end.

    python benchmarks/search_budget.py --data sgd.jsonl.gz --minutes 3 --seeds 0,1,2

Random search over learning rate and weight decay for a small random Llama, with two DeepSpeed workers per trial; both
sides draw the same settings in the same order. Prints trials per hour and the best held-out loss; the last line is
one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

SCHEDULERS: dict[str, Any] = {"asha": {"name": "asha", "grace_steps": 6}, "none": {"name": "none"}}


def pipeline(folder: str, data: str, scheduler: dict[str, Any], minutes: float, seed: int) -> dict[str, Any]:
    """The pipeline of one side."""
    return {
        "name": "budget", "store": folder, "base_model": "random:tiny-llama",
        "data": {"sources": [{"path": str(Path(data).resolve()), "limit": 400}], "max_length": 512},
        "train": {
            "adapter": None, "precision": "fp32", "batch_tokens": 1024, "max_steps": 162, "checkpoint_every_steps": 6,
            "num_workers": 2, "zero": {"stage": 2}, "held_out_tokens": 4096,
        },
        "tune": {
            "space": {
                "train.learning_rate": {"loguniform": [1e-5, 1e-1]}, "train.weight_decay": {"uniform": [0, 0.3]}
            },
            "time_minutes": minutes, "scheduler": scheduler, "seed": seed,
        },
    }  # fmt: skip


def search(values: dict[str, Any], folder: str) -> dict[str, Any]:
    """The figures of the stage tune."""
    file = Path(folder) / f"{values['name']}.yaml"
    file.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "workflows", "tune", str(file), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    figures: dict[str, Any] = next(e["figures"] for e in events if e["event"] == "done" and e["stage"] == "tune")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a file of conversations")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    rows = []
    for seed in map(int, arguments.seeds.split(",")):
        row: dict[str, Any] = {"seed": seed}
        for name, scheduler in SCHEDULERS.items():
            with tempfile.TemporaryDirectory() as folder:
                values = pipeline(folder, arguments.data, scheduler, arguments.minutes, seed)
                figures = search(values, folder)
            row[name] = {
                "trials_an_hour": round(figures["trials"] / arguments.minutes * 60),
                "best_held_out_loss": round(figures["held_out_loss"], 4),
            }
        print(row)
        rows.append(row)
    print(json.dumps({"minutes": arguments.minutes, "rows": rows}))


if __name__ == "__main__":
    main()
