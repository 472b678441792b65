"""Searches over LoRA settings of SmolLM2-135M that read as many tokens, under several searchers and schedulers.

    python benchmarks/search_live.py --data sgd.jsonl.gz [--folder DIR] [--trainings 10] [--pack 4]

What benchmarks/search_replay.py replays, on a real model: each search is widened until its trials have read as many
tokens as so many whole trainings. With the same seed, all draw the same random settings in the same order. With
`--folder`, a repeated command goes on. The last line is one JSON object.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from pipeline_runs import run, store_of

from workflows.search.records import Search, read_search

METRIC = "held_out_loss"
STEPS, STEP_TOKENS, EVERY = 48, 256, 6
TPE = {"name": "tpe", "multivariate": True, "startup_trials": 6}
POLICIES: dict[str, dict[str, Any]] = {
    "random": {},
    "asha": {"scheduler": {"name": "asha", "grace_steps": EVERY}},
    "hyperband": {"scheduler": "hyperband"},
    "tpe hyperband": {"scheduler": "hyperband", "searcher": TPE},
}


def pipeline(data: Path, policy: str, trials: int, pack: int) -> dict[str, Any]:
    return {
        "name": policy.replace(" ", "-"),
        "base_model": "builtin:smollm2-135m-instruct",
        "data": {"sources": [{"path": str(data.resolve()), "limit": 300}], "max_length": 256},
        "train": {
            "adapter": {"rank": 16}, "max_steps": STEPS, "batch_tokens": STEP_TOKENS,
            "checkpoint_every_steps": EVERY, "held_out_tokens": 1024, "cpus_per_worker": 2,
        },
        "tune": {
            "space": {
                "train.learning_rate": {"loguniform": [1e-5, 3e-2]},
                "train.adapter.rank": [4, 16, 64],
                "train.warmup_share": {"uniform": [0.0, 0.5]},
                "train.final_learning_rate_share": {"uniform": [0.0, 1.0]},
            },
            "trials": trials, "seed": 1, "pack": pack, **POLICIES[policy],
        },
    }  # fmt: skip


def tokens_of(search: Search) -> float:
    return sum(trial.last.figures["num_tokens"] for trial in search.trials if trial.last)


def searched(folder: Path, data: Path, policy: str, tokens: float, pack: int) -> Search:
    """A search that has read so many tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    trials, search = round(tokens / (STEPS * STEP_TOKENS)), None
    while search is None or tokens_of(search) < tokens:
        if search is not None:
            each = tokens_of(search) / len(search.trials)
            trials = len(search.trials) + math.ceil((tokens - tokens_of(search)) / each)
        artifact = run("tune", folder, pipeline(data, policy, trials, pack))
        search = read_search(store_of(folder), artifact.key)
        assert search is not None
    return search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--trainings", type=int, default=10)
    parser.add_argument("--pack", type=int, default=4)
    options = parser.parse_args()
    tokens = options.trainings * STEPS * STEP_TOKENS
    found: dict[str, Any] = {"tokens": tokens}
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        for policy in POLICIES:
            search = searched(folder / policy.replace(" ", "-"), options.data, policy, tokens, options.pack)
            bests = [best.figures[METRIC] for trial in search.trials if (best := trial.best(METRIC))]
            found[policy] = {
                "trials": len(search.trials),
                "tokens": round(tokens_of(search)),
                "best": round(min(bests), 4),
            }
            print(policy, found[policy], flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
