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
import random
import tempfile
from pathlib import Path
from typing import Any

import pipeline_runs
import yaml

from serve.knowledge.retrieval import Knowledge
from workflows.endpoint.knowledge import read_knowledge
from workflows.spec.read import read_spec

PIPELINES = pipeline_runs.ROOT / "workflows/pipelines"


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
    served = read_spec(PIPELINES / "grounded.yaml").serve.knowledge
    assert served is not None
    knowledge = Knowledge(read_knowledge(served), served.passages, served.min_share)
    randomly = random.Random(0)
    talks = pipeline_runs.read_lines(PIPELINES / "demo/conversations.jsonl")
    records = [with_passages(each, knowledge, randomly) for each in talks]
    pipeline = yaml.safe_load((PIPELINES / "grounded.yaml").read_text())
    pipeline["train"]["epochs"] = options.epochs
    pipeline["evaluate"]["questions"] = str(PIPELINES / "demo/questions.jsonl")
    del pipeline["evaluate"]["suites"]
    pipeline["serve"]["knowledge"]["path"] = str(PIPELINES / "demo/rules")
    pipeline["data"]["sources"] = [{"path": "shop.jsonl"}, {"path": str(PIPELINES / "grounded/conversations.jsonl")}]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipeline_runs.write_lines(folder / "shop.jsonl", records)
        figures = pipeline_runs.run("evaluate", folder, pipeline).figures
    print(json.dumps({key: round(figures[key], 4) for key in ("base_fact_share", "tuned_fact_share")}))


if __name__ == "__main__":
    main()
