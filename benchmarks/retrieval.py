"""How often `serve.knowledge` finds what a question is about, and how long it takes.

    python benchmarks/retrieval.py [--kdconv kdconv.jsonl.gz]

Of the demo's questions: the share for which the passages of `workflows/pipelines/demo/rules/` have all facts. Of
kdconv, Chinese conversations with triples: the share of questions for which a passage is about an entity of the
conversation, with the passages of all conversations in one index. Seconds are of one core.
"""

import argparse
import gzip
import json
import random
import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.chat.knowledge import Passage, passages_of
from models.text.shingles import words
from serve.knowledge import retrieval
from serve.knowledge.documents import read_documents

DEMO = Path(__file__).parents[1] / "workflows" / "pipelines" / "demo"
MOST, MIN_SHARE, PASSAGE_WORDS = 4, 0.25, 120


def of_lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def demo(name: str, file: Path) -> None:
    """The facts of a file of questions in the passages that they find."""
    passages = read_documents(str(DEMO / "rules"), PASSAGE_WORDS)
    knowledge = retrieval.Knowledge(passages, MOST, MIN_SHARE)
    asked = of_lines(file)
    found = taken = 0
    for each in asked:
        chosen = knowledge.find([each["question"]])
        text = " ".join(passage.text for passage in chosen).lower()
        taken += len(chosen)
        found += all(any(spelling.lower() in text for spelling in fact) for fact in each["facts"])
    mean = taken / len(asked)
    print(f"{name}: {found} of {len(asked)} with {mean:.1f} of {len(passages)} passages each")


def kdconv(file: Path, num_talks: int = 200) -> None:
    """Entities of a conversation among the passages that its questions find, with words, pairs, and both."""
    with gzip.open(file, "rt") as lines:
        talks = [json.loads(line) for line in lines]
    known = [passages_of(talk["knowledge"], "knowledge") for talk in talks]
    passages = list(dict.fromkeys(passage for each in known for passage in each))
    pairs = retrieval.terms
    ways: dict[str, Callable[[str], list[str]]] = {
        "pairs of characters": pairs,
        "single characters": words,
        "both": lambda text: [*words(text), *(term for term in pairs(text) if len(term) == 2)],
    }
    for way, terms in ways.items():
        retrieval.terms = terms
        knowledge = retrieval.Knowledge(passages, MOST, 0.0)
        found = total = 0
        for talk, own in zip(talks[:num_talks], known, strict=False):
            questions = [message["content"] for message in talk["messages"] if message["role"] == "user"]
            names = {passage.name for passage in own}
            for last in range(2, len(questions) + 1):
                total += 1
                found += any(passage.name in names for passage in knowledge.find(questions[:last]))
        print(f"kdconv, {way}: {found / total:.3f} of {total:,} questions, {len(passages):,} passages")
    retrieval.terms = pairs


def speed(count: int = 20_000) -> None:
    """Random passages whose words are as frequent as in a language (Zipf's law)."""
    random.seed(0)
    vocabulary = ["".join(random.choices(string.ascii_lowercase, k=random.randint(3, 9))) for _ in range(30_000)]
    weights = [1 / (rank + 1) for rank in range(len(vocabulary))]
    passages = [Passage(f"{n}.md", " ".join(random.choices(vocabulary, weights, k=100))) for n in range(count)]
    begin = time.process_time()
    knowledge = retrieval.Knowledge(passages, MOST, MIN_SHARE)
    indexed = time.process_time() - begin
    questions = [" ".join(random.choices(vocabulary, weights, k=12)) for _ in range(100)]
    begin = time.process_time()
    for question in questions:
        knowledge.find([question])
    each = (time.process_time() - begin) / len(questions)
    print(f"{count:,} passages of 100 words: {indexed:.1f} s for the index, {1000 * each:.1f} ms a question")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kdconv", type=Path)
    given = parser.parse_args()
    demo("the demo's questions", DEMO / "questions.jsonl")
    demo("its suite paraphrases", DEMO / "suites" / "paraphrases.jsonl")
    if given.kdconv:
        kdconv(given.kdconv)
    speed()
