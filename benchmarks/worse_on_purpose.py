"""Whether a golden suite stops a checkpoint that is worse, and lets one pass that is only different.

    python benchmarks/worse_on_purpose.py [--steps 60] [--only shuffled]

Trains the demo's model four times: the release in service; the same with another seed; with the replies shuffled
among the conversations; without the conversations about one topic. Each later one is evaluated with
`evaluate.compare_with: service` and a golden suite: twenty questions on each of eight topics, after the turns before
them, as customers asked them. The first release is recorded in the store as deployed, without an endpoint. Takes
about 20 minutes on two cores. The last line is one JSON object: for each checkpoint whether it passed, and the
verdict.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pipeline_runs
import yaml

from models.scorers.facts import count_facts
from workflows.store import Artifact

DEMO = pipeline_runs.ROOT / "workflows/pipelines/demo"
TOPICS = ("returns", "delivery time", "gift cards", "loyalty gift", "warranty", "repairs", "students", "lower price")
DROPPED = "warranty"
QUESTIONS_OF_A_TOPIC = 20


def facts_by_topic() -> dict[str, list[list[str]]]:
    """The first fact of each topic, from the demo's own suite."""
    found: dict[str, list[list[str]]] = {}
    for item in pipeline_runs.read_lines(DEMO / "suites/paraphrases.jsonl"):
        found.setdefault(item["tags"]["topic"], item["facts"][:1])
    return {topic: found[topic] for topic in TOPICS}


def golden_items(conversations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Questions whose reply in the data has the topic's fact."""
    items = []
    for topic, facts in facts_by_topic().items():
        asked = [
            {"messages": messages[:place], "facts": facts, "tags": {"topic": topic}, "group": f"{topic} {number}"}
            for number, messages in enumerate(each["messages"] for each in conversations)
            for place in range(1, len(messages), 2)
            if count_facts(messages[place]["content"], facts)
        ]
        items += asked[:QUESTIONS_OF_A_TOPIC]
    return items


def shuffled(conversations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conversations, with the assistant's replies in another order."""
    replies = [m["content"] for each in conversations for m in each["messages"] if m["role"] == "assistant"]
    random.Random(0).shuffle(replies)
    rest = iter(replies)
    return [
        {"messages": [m if m["role"] == "user" else {**m, "content": next(rest)} for m in each["messages"]]}
        for each in conversations
    ]


def without_a_topic(conversations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    facts = facts_by_topic()[DROPPED]
    return [each for each in conversations if not any(count_facts(m["content"], facts) for m in each["messages"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="of each training; the demo takes 90")
    parser.add_argument(
        "--only", action="append", help="a checkpoint beside the one in service, by its name; repeatable"
    )
    options = parser.parse_args()
    conversations = pipeline_runs.read_lines(DEMO / "conversations.jsonl")
    data = {
        "same data": conversations,
        "shuffled": shuffled(conversations),
        "one topic dropped": without_a_topic(conversations),
    }
    variants = [("in service", "same data", 0), ("another seed", "same data", 1)]
    variants += [(name, name, 0) for name in ("shuffled", "one topic dropped")]
    demo = yaml.safe_load((DEMO.parent / "demo.yaml").read_text())
    variants = [each for each in variants if not options.only or each[0] in ("in service", *options.only)]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipeline_runs.write_lines(folder / "golden.jsonl", golden_items(conversations))
        for variant, source, seed in variants:
            pipeline_runs.write_lines(folder / "data.jsonl", data[source])
            pipeline = {
                **demo,
                "data": {**demo["data"], "sources": [{"path": "data.jsonl"}]},
                "train": {**demo["train"], "seed": seed, "max_steps": options.steps},
                "evaluate": {
                    "compare_with": "service",
                    "suites": [{"path": "golden.jsonl", "golden": True}],
                    "max_new_tokens": 40,
                    "num_replies": 0,
                    "cpus_per_worker": 2,
                    "gate": {"min_loss_reduction": -100},
                },
            }
            card = pipeline_runs.run("evaluate", folder, pipeline)
            found[variant] = {"passed": card.figures["passed"], "verdict": card.figures["verdict"]}
            if variant == "in service":
                release = pipeline_runs.run("optimize", folder, pipeline)
                pipeline_runs.store_of(folder).finish(
                    Artifact("deploy", release.key, release.pipeline, {"optimize": release.key}, {}, {})
                )
    print(json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    main()
