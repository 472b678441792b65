"""Record the curves of many trainings, for replays of searches (benchmarks/search_replay.py).

    python benchmarks/search_table.py --data sgd.jsonl.gz [--folder DIR] [--to benchmarks/search_table.json.gz]

A search over a small random Llama that trains every trial to its end: learning rate, weight decay, warm-up, final
learning rate and batch size, all trials on the same 250 conversations for as many tokens. The file has the values of
each trial, and its steps, tokens and held-out loss at each checkpoint.
"""

import argparse
import gzip
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from pipeline_runs import run, store_of

from models.training.report import Report
from workflows.search.records import read_search

SPACE = {
    "train.learning_rate": {"loguniform": [1e-4, 1e-1]},
    "train.weight_decay": {"uniform": [0.0, 0.3]},
    "train.warmup_share": {"uniform": [0.0, 0.5]},
    "train.final_learning_rate_share": {"uniform": [0.0, 1.0]},
    "train.batch_tokens": [512, 1024, 2048],
}


def pipeline(data: Path, trials: int) -> dict[str, Any]:
    return {
        "name": "table",
        "base_model": "random:tiny-llama",
        "data": {"sources": [{"path": str(data.resolve()), "limit": 250}], "max_length": 512},
        "train": {
            "adapter": None, "precision": "fp32", "epochs": 1.0, "checkpoint_every_steps": 6, "held_out_tokens": 4096,
        },
        "tune": {"space": SPACE, "trials": trials, "seed": 1},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=320)
    parser.add_argument("--folder", type=Path, help="keeps the search here, where a repeated command goes on")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent / "search_table.json.gz")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        artifact = run("tune", folder, pipeline(options.data, options.trials))
        search = read_search(store_of(folder), artifact.key)
    assert search is not None
    rows = [
        {
            "values": {field: rounded(value) for field, value in trial.values.items()},
            "steps": [report.step for report in trial.reports],
            "tokens": [int(report.figures["num_tokens"]) for report in trial.reports],
            "losses": [loss_of(report) for report in trial.reports],
            "failed": trial.error != "",
        }
        for trial in search.trials
    ]
    options.to.write_bytes(gzip.compress(json.dumps({"space": SPACE, "trials": rows}).encode(), mtime=0))
    print(json.dumps({"trials": len(rows), "reports": sum(len(row["tokens"]) for row in rows)}))


def loss_of(report: Report) -> float | None:
    loss = report.figures["held_out_loss"]
    return round(loss, 4) if math.isfinite(loss) else None


def rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
