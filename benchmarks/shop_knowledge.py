"""The demo's questions, for a model that was trained on the shop's conversations with the endpoint's passages.

    python benchmarks/shop_knowledge.py [--epochs 1.2]

Cuts every conversation of the demo after one of its replies, drawn at random, and puts the passages into it that
`serve.knowledge` with `demo/rules` would find for its questions; only that reply is trained on. Adds the data of
grounded.yaml, fine-tunes SmolLM2-135M-Instruct, and asks the demo's 30 held-out questions through the endpoint's code
with `serve.knowledge`, of base and tuned model. Prints the scorecard; the last line is one JSON object: the shares of
the 33 facts.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from serve.knowledge.documents import read_documents
from serve.knowledge.retrieval import Knowledge
from workflows.store import Store

ROOT = Path(__file__).resolve().parents[1]
PIPELINES = ROOT / "workflows/pipelines"
MOST, MIN_SHARE, PASSAGE_WORDS = 4, 0.25, 120


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def with_passages(conversation: dict[str, Any], knowledge: Knowledge, randomly: random.Random) -> dict[str, Any]:
    """The conversation up to one reply, with the passages that the endpoint would find for it."""
    messages = conversation["messages"]
    end = randomly.choice(range(1, len(messages), 2))
    kept = [{**m, "train": False} if m["role"] == "assistant" else m for m in messages[:end]]
    asked = [message["content"] for message in kept if message["role"] == "user"]
    passages = [{"name": passage.name, "text": passage.text} for passage in knowledge.find(asked)]
    return {"messages": [*kept, messages[end]], "knowledge": passages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=1.2)
    options = parser.parse_args()
    knowledge = Knowledge(read_documents(str(PIPELINES / "demo/rules"), PASSAGE_WORDS), MOST, MIN_SHARE)
    randomly = random.Random(0)
    talks = read_lines(PIPELINES / "demo/conversations.jsonl")
    records = [with_passages(each, knowledge, randomly) for each in talks]
    pipeline = yaml.safe_load((PIPELINES / "grounded.yaml").read_text())
    pipeline["train"]["epochs"] = options.epochs
    pipeline["evaluate"]["questions"] = str(PIPELINES / "demo/questions.jsonl")
    del pipeline["evaluate"]["suites"]
    pipeline["serve"]["knowledge"]["path"] = str(PIPELINES / "demo/rules")
    pipeline["data"]["sources"] = [{"path": "shop.jsonl"}, {"path": str(PIPELINES / "grounded/conversations.jsonl")}]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "shop.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (folder / "shop.yaml").write_text(yaml.safe_dump({**pipeline, "store": "store"}))
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "workflows", "evaluate", "shop.yaml"]
        subprocess.run(command, cwd=folder, env=environment, check=True)
        figures = Store(str(folder / "store")).all_of("evaluate")[-1].figures
    print(json.dumps({key: round(figures[key], 4) for key in ("base_fact_share", "tuned_fact_share")}))


if __name__ == "__main__":
    main()
