"""Which copies of an evaluation's questions are found in a corpus, and how often questions stand there by chance.

    python benchmarks/contamination.py --data sgd.jsonl.gz [--others chitchat.jsonl.gz instruct_mix.jsonl.gz]

Plants the demo's 30 questions into the corpus, each in a conversation of its own, in six ways, and looks for them;
then in the corpus as it is, where none may be found. With --others it also counts, by length, how many questions of
one corpus stand word for word in another that has nothing to do with it. The last line is one JSON object; exit code
1 if a question is missed that must be found, or one is found in the corpus as it is.
"""

import argparse
import gzip
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path

from models.text.overlap import MIN_WORDS, SIZE, Overlap, OverlapIndex, excerpt
from models.text.shingles import words
from models.text.texts import Texts

QUESTIONS = Path(__file__).parents[1] / "workflows/pipelines/demo/questions.jsonl"
REWORDED = [
    "These boots I just got hurt my feet; until when am I allowed to return them?",
    "When does the store in Brindlewick open, and when does it close?",
    "I finish work in the evening, so until what hour are you there?",
    "Which day do you stay shut?",
    "Who delivers the parcels for you?",
    "How long does shipping need when I buy something today?",
    "From which amount on is shipping free of charge?",
    "I got a voucher from my uncle; when does it expire?",
    "For which single purpose do you refuse vouchers?",
    "Please tell me what the bonus programme is named.",
    "What little gift is packed with the fifth order of a client?",
    "Where exactly can I find the store?",
    "Brindlewick is in which place, as I want to visit?",
    "Who started this business?",
    "Which phone number can I call to speak with somebody?",
    "For how long are the goods guaranteed?",
    "There is a rip in my tent; what do you charge to mend it?",
    "A competitor sells this stove cheaper; what do I get from you if I show it?",
    "What reduction do people at university get?",
    "I have never bought here before; is there a voucher code for me?",
    "Which card company's cards are refused at the till?",
    "When each week do you teach knots?",
    "Which part of the store may my dog enter?",
    "Is there somewhere to leave a car without paying?",
    "The largest of your tents has which name?",
    "How many can sleep in the largest tent, as there are many of us?",
    "How expensive is a lantern of the Moorlight kind?",
    "Which fabric do you use to produce tents at Brindlewick?",
    "In which wrapping does a gift come?",
    "How is the club for regular customers called, and which free thing comes with it?",
]
MUST_BE_FOUND = (
    "word for word", "case and punctuation changed", "split over two turns", "split, with a reply between",
)  # fmt: skip
Turns = list[tuple[str, str]]
"""role and text of each"""


def read(file: Path) -> list[Turns]:
    """The turns of each conversation."""
    with gzip.open(file) as lines:
        return [[(each["role"], each["content"]) for each in json.loads(line)["messages"]] for line in lines]


def texts_of(turns: Turns, role: str | None) -> list[str]:
    """The texts of the turns of a role, or of all."""
    return [text for each, text in turns if role in (None, each)]


def find(index: OverlapIndex, corpus: Sequence[Turns]) -> dict[tuple[int, int], tuple[Overlap, str | None]]:
    """What `prepare` finds, over all turns or else over the user's: by conversation and question."""
    found: dict[tuple[int, int], tuple[Overlap, str | None]] = {}
    for role in (None, "user"):
        for overlap in index.find(Texts.of([texts_of(turns, role) for turns in corpus])):
            found.setdefault((overlap.text, overlap.reference), (overlap, role))
    return found


def planted(question: str, reworded: str) -> Iterator[tuple[str, list[str]]]:
    """The ways of planting a question: each one's name and the texts that go into the turns from one on."""
    parts = question.split()
    half = len(parts) // 2
    first, second = " ".join(parts[:half]), " ".join(parts[half:])
    yield "word for word", [question]
    yield "case and punctuation changed", [" ... ".join(parts).upper().replace("?", " !!")]
    yield "one word left out in the middle", [" ".join(parts[:half] + parts[half + 1 :])]
    yield "reworded", [reworded]
    yield "split over two turns", [first, second]
    yield "split, with a reply between", [first, "Please go on, I am listening.", second]


def plant(corpus: Sequence[Turns], questions: Sequence[str]) -> tuple[list[Turns], dict[int, tuple[int, str]]]:
    """A copy of the corpus with each question in each way; what was planted where, by the conversation's number."""
    draw = random.Random(0)
    copy = [list(turns) for turns in corpus]
    ways = [
        (number, *way) for number, question in enumerate(questions) for way in planted(question, REWORDED[number])
    ]
    places = draw.sample([place for place, turns in enumerate(corpus) if len(turns) >= 4], len(ways))
    for place, (_, _, texts) in zip(places, ways, strict=True):
        turns = copy[place]
        at = draw.randrange(len(turns) - 1)
        if len(texts) == 3:
            turns[at:at] = [("user", texts[0]), ("assistant", texts[1]), ("user", texts[2])]
            continue
        role, text = turns[at]
        turns[at] = role, f"{text} {texts[0]}"
        if len(texts) == 2:
            role, text = turns[at + 1]
            turns[at + 1] = role, f"{texts[1]} {text}"
    return copy, {place: (number, kind) for place, (number, kind, _) in zip(places, ways, strict=True)}


def by_chance(corpora: dict[str, list[Turns]]) -> dict[str, dict[int, tuple[int, int]]]:
    """For each two corpora, by length: how many questions of one stand in the other, and of how many."""
    found = {}
    for one, other in permutations(corpora, 2):
        texts = {text.strip() for turns in corpora[one] for _, text in turns if text.strip().endswith("?")}
        questions = sorted(text for text in texts if 0 < len(words(text)) < SIZE)
        index = OverlapIndex.of(Texts.of(questions), questions, min_words=1)
        there = {
            overlap.reference for overlap in index.find(Texts.of([texts_of(turns, None) for turns in corpora[other]]))
        }
        all_lengths = Counter(int(count) for count in index.words)
        lengths = Counter(int(index.words[number]) for number in there)
        found[f"{one} in {other}"] = {n: (lengths[n], all_lengths[n]) for n in range(1, SIZE)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--others", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    questions = [json.loads(line)["question"] for line in QUESTIONS.read_text().splitlines()]
    names = [f"{QUESTIONS.name}:{line}" for line in range(1, len(questions) + 1)]
    index = OverlapIndex.of(Texts.of(questions), names)
    corpus = read(options.data)
    started = time.process_time()
    clean = find(index, corpus)
    seconds = time.process_time() - started
    size = sum(len(text.encode()) for turns in corpus for _, text in turns) / 1e6

    copy, where = plant(corpus, questions)
    hits = find(index, copy)
    kinds = dict.fromkeys(kind for _, kind in where.values())
    counts = {kind: [0, 0] for kind in kinds}
    for place, (number, kind) in where.items():
        hit = hits.pop((place, number), None)
        counts[kind][hit is None] += 1
        if hit is not None and number == 0:
            overlap, role = hit
            before, inside, after = excerpt(texts_of(copy[place], role), overlap, 20)
            print(f"{kind}: {index.names[number]}: {before!r} [{inside!r}] {after!r}")
    print(f"\n{'planted':34}{'found':>8}{'missed':>8}")
    for kind, (found, missed) in counts.items():
        print(f"{kind:34}{found:8}{missed:8}")
    print(f"{'the corpus as it is':34}{len(clean):8}\n{'elsewhere in the planted corpus':34}{len(hits):8}")
    print(f"{size:.1f} MB in {seconds:.1f} s of one core: {size / seconds:.1f} MB/s\n")

    chance = by_chance({file.name.partition(".")[0]: read(file) for file in (options.data, *options.others)})
    if chance:
        print(f"questions by chance, by words (minimum: {MIN_WORDS})  " + "".join(f"{n:>8}" for n in range(1, SIZE)))
        for name, row in chance.items():
            rates = "".join(f"{found / max(1, of):8.2%}" for found, of in row.values())
            print(f"{name:46}{rates}")
    must = sum(counts[kind][1] for kind in MUST_BE_FOUND)
    result = {"found_missed": counts, "clean": len(clean), "mb_per_s": round(size / seconds, 1), "by_chance": chance}
    print(json.dumps(result))
    sys.exit(1 if must or clean or hits else 0)


if __name__ == "__main__":
    main()
