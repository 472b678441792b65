"""Whether a model tuned with `data.knowledge` says what stands in its prompt: kdconv, Chinese talks with triples.

    python benchmarks/kdconv.py --data ../shared/data/kdconv.jsonl.gz [--steps 80] [--items 120]

A talk is cut into windows: three messages, the last a question, and a reply that names the tail of a triple which
nobody has named before. SmolLM2-135M-Instruct is fine-tuned (LoRA) on windows of the split `dev`, with the triples
of the talk in the prompt. Then the base and the tuned model write the reply of windows of the split `test`: with
the right triples, with none, and with wrong ones, where every tail is that of the same relation in another talk. A
reply is right if it has the tail; with wrong triples, it is also looked up whether it has the wrong one. The last
line is one JSON object: the shares of base and tuned with intervals, over talks.
"""

import argparse
import gzip
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipeline_runs

LONGEST_TAIL, LONGEST_KNOWN, SHORTEST = 16, 40, 2
MOST_TRIPLES = 10
MESSAGES_BEFORE = 3
CPUS = 2

Triple = list[str]


@dataclass(frozen=True)
class Window:
    """The end of a part of a talk, with what its reply says."""

    talk: str
    messages: list[dict[str, str]]
    triples: list[Triple]
    said: Triple


def windows(talk: dict[str, Any], randomly: random.Random) -> Iterator[Window]:
    """The parts of a talk whose reply names a new tail."""
    known = [list(each) for each in dict.fromkeys(map(tuple, talk["knowledge"])) if len(each[2]) <= LONGEST_KNOWN]
    before = ""
    for place, message in enumerate(talk["messages"]):
        said = [
            triple
            for triple in known
            if SHORTEST <= len(triple[2]) <= LONGEST_TAIL
            and triple[2] in message["content"]
            and triple[2] not in before
        ]
        before += message["content"] + "\n"
        asked = talk["messages"][place - 1]["content"]
        if message["role"] == "assistant" and said and place >= MESSAGES_BEFORE and "？" in asked:
            others = [triple for triple in known if triple != said[0]]
            chosen = [said[0], *randomly.sample(others, min(MOST_TRIPLES - 1, len(others)))]
            triples = [triple for triple in known if triple in chosen]
            yield Window(talk["id"], talk["messages"][place - MESSAGES_BEFORE : place + 1], triples, said[0])


def tails_by_relation(talks: list[dict[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for talk in talks:
        for _, relation, tail in talk["knowledge"]:
            if SHORTEST <= len(tail) <= LONGEST_KNOWN:
                found.setdefault(relation, set()).add(tail)
    return {relation: sorted(tails) for relation, tails in found.items()}


def with_other_tails(window: Window, tails: dict[str, list[str]], randomly: random.Random) -> list[Triple] | None:
    """The triples with tails of other talks; None if there is no other one of the kind that the reply says."""
    changed = []
    for head, relation, tail in window.triples:
        others = [each for each in tails.get(relation, ()) if each not in tail and tail not in each]
        if not others and [head, relation, tail] == window.said:
            return None
        changed.append([head, relation, randomly.choice(others) if others else tail])
    return changed


def items(found: list[Window], tails: dict[str, list[str]], most: int) -> dict[str, list[dict[str, Any]]]:
    """The suites: the same windows with other knowledge."""
    randomly = random.Random(1)
    suites: dict[str, list[dict[str, Any]]] = {"right": [], "none": [], "wrong": [], "wrong-said": []}
    for window in found:
        changed = with_other_tails(window, tails, randomly)
        if changed is None or len(suites["right"]) == most:
            continue
        wrong = changed[window.triples.index(window.said)][2]
        common = {"messages": window.messages[:-1], "group": window.talk}
        right = {**common, "facts": [[window.said[2]]]}
        suites["right"].append({**right, "knowledge": window.triples})
        suites["none"].append({**right, "knowledge": []})
        suites["wrong"].append({**right, "knowledge": changed})
        suites["wrong-said"].append({**common, "facts": [[wrong]], "knowledge": changed})
    return suites


def pipeline(suites: list[str], steps: int, batch_tokens: int) -> dict[str, Any]:
    return {
        "name": "kdconv",
        "base_model": "builtin:smollm2-135m-instruct",
        "data": {
            "sources": [{"path": "windows.jsonl"}],
            "knowledge": "knowledge",
            "held_out_share": 0.03,
            "max_length": 1024,
        },
        "train": {
            "adapter": {"rank": 32, "alpha": 64},
            "max_steps": steps,
            "epochs": 4,
            "learning_rate": 1e-3,
            "batch_tokens": batch_tokens,
            "checkpoint_every_steps": steps,
            "cpus_per_worker": CPUS,
        },
        "evaluate": {
            "suites": [{"path": f"{name}.jsonl", "max_new_tokens": 64} for name in suites],
            "num_replies": 0,
            "gate": {"rule": "thresholds", "min_loss_reduction": 0.0},
            "cpus_per_worker": CPUS,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--items", type=int, default=120)
    options = parser.parse_args()
    with gzip.open(options.data, "rt") as lines:
        talks = [json.loads(line) for line in lines]
    randomly = random.Random(0)
    by_split: dict[str, list[Window]] = {"dev": [], "test": []}
    for talk in talks:
        by_split[talk["split"]] += windows(talk, randomly)
    for found in by_split.values():
        randomly.shuffle(found)
    suites = items(by_split["test"], tails_by_relation(talks), options.items)
    training = [{"messages": each.messages, "knowledge": each.triples} for each in by_split["dev"]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipeline_runs.write_lines(folder / "windows.jsonl", training)
        for suite, records in suites.items():
            pipeline_runs.write_lines(folder / f"{suite}.jsonl", records)
        tuned = pipeline(list(suites), options.steps, options.batch_tokens)
        evaluation = pipeline_runs.run("evaluate", folder, tuned)
        card = pipeline_runs.scorecard(folder, evaluation)
        for item in random.Random(0).sample(pipeline_runs.items(folder, evaluation), 12):
            print(json.dumps(item, ensure_ascii=False), file=sys.stderr)
    result: dict[str, Any] = {"windows": len(training), "items": len(suites["right"]), "steps": options.steps}
    result["held-out loss"] = [round(card["base_loss"], 4), round(card["tuned_loss"], 4)]
    for each in card["suites"]:
        result[each["name"]] = {
            score["model"]: [round(score[key], 4) for key in ("mean", "low", "high")] for score in each["scores"]
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
