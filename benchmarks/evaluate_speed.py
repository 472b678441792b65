"""The time of `evaluate` with many replies, beside an earlier build.

    python benchmarks/evaluate_speed.py --before ../before --data sgd.jsonl.gz [--replies 500] [--tokens 64]

Fine-tunes SmolLM2 for a few steps on the conversations, and lets both builds evaluate the same checkpoint: the
replies of base and tuned model to that many held-out prompts, and the held-out losses. `--before` is a checkout of
the earlier build (`git worktree add ../before COMMIT`). Each build works in a process and a store of its
own. Then this build evaluates a second checkpoint, whose base model's replies are in the store already. The last line
is one JSON object: seconds, and the ratio.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]


def pipeline(data: Path, replies: int, tokens: int, seed: int) -> dict[str, Any]:
    return {
        "name": "speed",
        "store": "store",
        "base_model": "builtin:smollm2-135m-instruct",
        "data": {"sources": [{"path": str(data), "limit": 20 * replies}], "held_out_share": 0.06, "max_length": 768},
        "train": {
            "adapter": {"rank": 16},
            "max_steps": 10,
            "checkpoint_every_steps": 10,
            "batch_tokens": 1024,
            "learning_rate": 1e-3,
            "cpus_per_worker": 2,
            "seed": seed,
        },
        "evaluate": {"num_replies": replies, "max_new_tokens": tokens, "cpus_per_worker": 2},
    }


def command(checkout: Path, folder: Path, *arguments: str) -> float:
    """Run the command of a checkout; returns the seconds that it took."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "RAY_worker_niceness": "0"}
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "workflows", *arguments], cwd=folder, env=environment, check=True)
    return time.monotonic() - began


def stage_seconds(folder: Path) -> float:
    """The seconds of the stage `evaluate` that was finished last."""
    manifests = sorted((folder / "store/evaluate").glob("*/manifest.json"), key=lambda file: file.stat().st_mtime)
    return float(json.loads(manifests[-1].read_text())["seconds"])


def scorecard(folder: Path) -> dict[str, Any]:
    cards = sorted((folder / "store/evaluate").glob("*/scorecard.json"), key=lambda file: file.stat().st_mtime)
    found: dict[str, Any] = json.loads(cards[-1].read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--replies", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        trained = Path(name) / "trained"
        trained.mkdir()
        file = trained / "speed.yaml"
        for seed in (0, 1):
            made = pipeline(options.data.resolve(), options.replies, options.tokens, seed)
            file.write_text(yaml.safe_dump(made))
            command(ROOT, trained, "train", file.name)
        found: dict[str, Any] = {"replies": options.replies, "tokens": options.tokens}
        file.write_text(yaml.safe_dump(pipeline(options.data.resolve(), options.replies, options.tokens, 0)))
        cards = {}
        for build, checkout in (("now", ROOT), ("before", options.before.resolve())):
            folder = Path(name) / build
            shutil.copytree(trained, folder)
            command(checkout, folder, "evaluate", file.name)
            found[f"{build}_s"] = round(stage_seconds(folder), 1)
            cards[build] = scorecard(folder)
        now = Path(name) / "now"
        (now / file.name).write_text(
            yaml.safe_dump(pipeline(options.data.resolve(), options.replies, options.tokens, 1))
        )
        command(ROOT, now, "evaluate", file.name)
        found["second_checkpoint_s"] = round(stage_seconds(now), 1)
    found["ratio"] = round(found["before_s"] / found["now_s"], 2)
    same = [
        one[model] == other[model]
        for one, other in zip(cards["now"]["replies"], cards["before"]["replies"], strict=True)
        for model in ("base", "tuned")
    ]
    found["same_replies"] = round(sum(same) / len(same), 4)
    found["held_out_loss"] = {build: card["tuned_loss"] for build, card in cards.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
