"""Summaries of doctor-patient talk by a model fine-tuned here, beside one fine-tuned by TRL, and their base.

    python benchmarks/train_vs_peers.py setup
    python benchmarks/summaries.py --data ../shared/data/mts_dialog.jsonl.gz [--steps 30] [--items 100]

Both train a LoRA adapter of SmolLM2-135M-Instruct on the same conversations of the split `train`, one epoch in the
same number of steps, with the same learning rates: `rayconteur evaluate` packs them into steps of --batch-tokens,
TRL's SFTTrainer pads as many conversations a step as make the same number of steps. Then all three models write the
notes of the first --items talks of the other splits, and one suite scores them by ROUGE-L. The last line is one
JSON object: the means with intervals, and both comparisons on the same items.
"""

import argparse
import gzip
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pipeline_runs
import train_vs_peers

from models.base.load import load_tokenizer, resolve
from models.chat import encode_conversation
from models.statistics.comparison import compare
from models.statistics.interval import interval
from workflows.spec.read import read_spec
from workflows.suites.answering import AnsweringModel, Asked, engine_of
from workflows.suites.read import read_suites

LONGEST_TALK, LONGEST_NOTE = 700, 160
LEARNING_RATE, RANK = 1e-3, 16
NEW_TOKENS = 120
CPUS = 2


def read_talks(file: Path) -> Iterator[tuple[str, list[dict[str, str]], list[int], list[int]]]:
    """Split, messages, token ids and labels of each talk that is short enough."""
    tokenizer = load_tokenizer(resolve(train_vs_peers.BASE_MODEL))
    with gzip.open(file, "rt") as lines:
        for record in map(json.loads, lines):
            encoded = encode_conversation(tokenizer, record["messages"])
            ids, supervised = encoded.input_ids, encoded.supervised
            if len(ids) <= LONGEST_TALK and sum(supervised) <= LONGEST_NOTE:
                labels = [token if of_reply else -100 for token, of_reply in zip(ids, supervised, strict=True)]
                yield record["split"], record["messages"], ids, labels


def pipeline(steps: int, batch_tokens: int) -> dict[str, Any]:
    return {
        "name": "notes",
        "base_model": train_vs_peers.BASE_MODEL,
        "data": {"sources": [{"path": "talks.jsonl"}], "held_out_share": 0.03, "max_length": 1024},
        "train": {
            "adapter": {"rank": RANK, "alpha": 2 * RANK},
            "max_steps": steps,
            "learning_rate": LEARNING_RATE,
            "batch_tokens": batch_tokens,
            "checkpoint_every_steps": steps,
            "cpus_per_worker": CPUS,
        },
        "evaluate": {
            "suites": [{"path": "notes.jsonl", "scorer": "rouge_l", "max_new_tokens": NEW_TOKENS}],
            "num_replies": 0,
            "gate": {"rule": "better"},
            "cpus_per_worker": CPUS,
        },
    }


def trained_by_trl(folder: Path, examples: list[dict[str, list[int]]], steps: int) -> Path:
    """A whole model's folder, its adapter merged."""
    data, merged = folder / "examples.json", folder / "trl"
    data.write_text(json.dumps(examples))
    settings = {
        "base": str(resolve(train_vs_peers.BASE_MODEL)),
        "steps": steps,
        "learning_rate": LEARNING_RATE,
        "rank": RANK,
        "threads": CPUS,
    }
    peer = [train_vs_peers.PEERS / "bin/python", pipeline_runs.ROOT / "benchmarks/summaries_trl.py"]
    subprocess.run([*peer, json.dumps(settings), data, merged], check=True)
    return merged


def scores_of(model: Path, pipeline_file: Path) -> list[float]:
    """ROUGE-L of each item by a model's folder, answered and scored by the code of the stage `evaluate`."""
    [suite] = read_suites(read_spec(pipeline_file).evaluate)
    start = engine_of(lambda _: model, CPUS, "cpu", in_bulk=True)
    with AnsweringModel(start, lambda: load_tokenizer(model)) as answering:
        asked = [Asked(item.turns, suite.max_new_tokens) for item in suite.items]
        answers = answering.converse(asked, lambda: None)
    return [
        suite.item_score(item, [answer.message for answer in replies])
        for item, replies in zip(suite.items, answers, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-tokens", type=int, default=1536)
    parser.add_argument("--items", type=int, default=100)
    options = parser.parse_args()
    training, items, examples = [], [], []
    tokens = 0
    for split, messages, ids, labels in read_talks(options.data):
        if split == "train" and tokens < options.steps * options.batch_tokens:
            tokens += len(ids)
            training.append({"messages": messages})
            examples.append({"input_ids": ids, "labels": labels})
        elif split != "train" and len(items) < options.items:
            items.append({"messages": messages[:1], "reference": messages[1]["content"]})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipeline_runs.write_lines(folder / "talks.jsonl", training)
        pipeline_runs.write_lines(folder / "notes.jsonl", items)
        ours = pipeline(options.steps, options.batch_tokens)
        scored = pipeline_runs.items(folder, pipeline_runs.run("evaluate", folder, ours))
        found = {model: [item["scores"][model] for item in scored] for model in ("base", "tuned")}
        theirs = trained_by_trl(folder, examples, options.steps)
        found["trl"] = scores_of(theirs, pipeline_runs.pipeline_file(folder, ours))
    result: dict[str, Any] = {"talks": len(training), "tokens": tokens, "items": len(items), "steps": options.steps}
    for model, scores in found.items():
        mean = interval(scores)
        result[model] = [round(value, 4) for value in (mean.mean, mean.low, mean.high)]
    for model in ("base", "trl"):
        against = compare(found[model], found["tuned"])
        result[f"tuned - {model}"] = [round(v, 4) for v in (against.difference, against.low, against.high)]
        result[f"p, tuned and {model}"] = round(against.p_value, 4)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
