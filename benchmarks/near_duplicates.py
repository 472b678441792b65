"""Near-duplicates: what is found of planted copies, and what the search for them costs.

    python benchmarks/near_duplicates.py found --data sgd.jsonl.gz chitchat.jsonl.gz
    python benchmarks/near_duplicates.py replies --data sgd.jsonl.gz chitchat.jsonl.gz
    python benchmarks/near_duplicates.py speed --data sgd.jsonl.gz chitchat.jsonl.gz [--times 1 4 16]
    python benchmarks/near_duplicates.py prepare --data sgd.jsonl.gz chitchat.jsonl.gz
    python benchmarks/near_duplicates.py peer  --data sgd.jsonl.gz --python OTHER/bin/python

`found` plants 2,000 edited copies (1 or 3 typos, upper case, a name exchanged, a turn left out, two turns exchanged),
runs `prepare` with each action, and compares with all pairs of conversations, by a product of sparse matrices: recall
and precision of the pairs at 0.8, and the planted copies on both sides of the split. `replies` compares single
replies, and their clusters with those of all pairs of replies; the search over conversations takes turns with it.
`speed` writes the conversations as a corpus, several times with other words each time, and measures the whole search
over it on a local cluster (seconds, MB a second and core, the memory of all its processes), in turns with bare rensa,
that is with signatures of the same lines alone in one process. `prepare` measures the stage with the search and
without it, in turns. `peer` does the search with datatrove's four MinHash steps in its own environment
(`datatrove[processing]==0.10.1`). Each prints a Markdown table, and one JSON object as the last line.
"""

import argparse
import gzip
import itertools
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Messages = list[dict[str, str]]
THRESHOLD = 0.8
PLANTED = 2000
ROWS_PER_FILE = 8192
KINDS = ("typo", "3 typos", "case", "a name exchanged", "a turn left out", "two turns exchanged")
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{2,}")
NAMES = ("Brindle", "Wick", "Marlow", "Odette", "Pemberton")


def conversations(files: Sequence[str]) -> Iterator[Messages]:
    for file in files:
        with gzip.open(file) as stream:
            for line in stream:
                yield json.loads(line)["messages"]


def edited(messages: Messages, kind: str, draw: random.Random) -> Messages:
    found = [dict(message) for message in messages]
    if kind.endswith(("typo", "typos")):
        for _ in range(3 if kind[0] == "3" else 1):
            message = draw.choice([each for each in found if each["content"]])
            place, text = draw.randrange(len(message["content"])), message["content"]
            message["content"] = text[:place] + draw.choice("abcdefgh") + text[place + 1 :]
    elif kind == "a name exchanged":
        names = sorted({name for message in found for name in _NAME.findall(message["content"])})
        if names:
            old, new = draw.choice(names), draw.choice(NAMES)
            found = [{**message, "content": message["content"].replace(old, new)} for message in found]
    elif kind == "case":
        found = [{**message, "content": message["content"].upper()} for message in found]
    elif len(found) > 4:
        place = draw.randrange(0, len(found) - 3, 2)
        if kind == "a turn left out":
            del found[place : place + 2]
        else:
            found[place : place + 2], found[place + 2 : place + 4] = (
                found[place + 2 : place + 4],
                found[place : place + 2],
            )
    return found


def found(files: Sequence[str]) -> dict[str, Any]:
    from workflows.corpus.inspection.tally import read_inspection
    from workflows.progress import Progress
    from workflows.runs.run import run_stages
    from workflows.spec import PipelineSpec
    from workflows.store import Store

    draw = random.Random(0)
    clean = list(conversations(files))
    sources = draw.sample(range(len(clean)), PLANTED)
    kinds = [draw.choice(KINDS) for _ in sources]
    copies = [edited(clean[source], kind, draw) for source, kind in zip(sources, kinds, strict=True)]
    everything = clean + copies
    truth = all_pairs([text_of(messages) for messages in everything])
    result: dict[str, Any] = {"conversations": len(everything), "pairs": len(truth), **recall(everything, truth)}
    planted_pairs = [(source, len(clean) + number) for number, source in enumerate(sources)]
    alike = [pair in truth for pair in planted_pairs]
    result["planted_alike"] = sum(alike)
    print(f"planted: {PLANTED}, of which {sum(alike)} have a Jaccard index of {THRESHOLD} and more\n")
    print(
        f"| data.deduplicate | copies of {THRESHOLD} and more on both sides | others | left out | near-duplicates |"
    )
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, part in (("clean", clean), ("planted", copies)):
            with Path(folder, f"{name}.jsonl").open("w") as stream:
                stream.writelines(json.dumps({"messages": messages}) + "\n" for messages in part)
        for action in ("report", "split", "drop"):
            spec = PipelineSpec.model_validate({
                "name": "planted", "base_model": "random:tiny-llama", "store": f"{folder}/store-{action}",
                "data": {
                    "sources": [{"path": f"{folder}/clean.jsonl"}, {"path": f"{folder}/planted.jsonl"}],
                    "deduplicate": action, "max_length": 4096,
                },
            })  # fmt: skip
            store = Store(spec.store)
            with Progress() as progress:
                done = run_stages(spec, store, progress, "prepare", connect=lambda stages: None)["prepare"]
            sides = sides_of(store, done.key)
            split = [
                len({sides.get((0, source + 1)), sides.get((1, number + 1))} & {"train", "held_out"}) == 2
                for number, (source, _) in enumerate(planted_pairs)
            ]
            both = sum(itertools.compress(split, alike))
            below = sum(split) - both
            inspection = read_inspection(store, done.key)
            assert inspection is not None
            left, near = inspection.total.left_out, inspection.total.near_duplicates
            print(f"| {action} | {both} | {below} | {left:,} | {near:,} |")
            result[action] = {
                "on_both_sides": both, "below_on_both_sides": below, "left_out": left, "near_duplicates": near,
            }  # fmt: skip
    return result


def all_pairs(texts: Sequence[str]) -> set[tuple[int, int]]:
    """All pairs with a Jaccard index of their shingles of THRESHOLD and more."""
    from scipy.sparse import csr_array

    from models.text.shingles import Shingles

    shingles = Shingles.of(texts)
    _, columns = np.unique(shingles.hashes, return_inverse=True)
    matrix = csr_array((np.ones(len(columns), np.int32), columns, shingles.starts))
    sizes, pairs = np.diff(shingles.starts), set()
    for start in range(0, len(texts), 2000):
        shared = (matrix[start : start + 2000] @ matrix.T).tocoo()
        one, other = shared.row + start, shared.col
        alike = shared.data / (sizes[one] + sizes[other] - shared.data) >= THRESHOLD
        alike &= one < other
        pairs |= set(zip(one[alike].tolist(), other[alike].tolist(), strict=True))
    return pairs


def recall(everything: Sequence[Messages], truth: set[tuple[int, int]]) -> dict[str, float]:
    """Recall and precision of the candidates that are verified."""
    from models.text.near_duplicates import Bands, candidate_pairs
    from models.text.shingles import Shingles, similarity

    bands = Bands.at(THRESHOLD)
    texts = [text_of(messages) for messages in everything]
    shingles, keys = Shingles.of(texts), bands.keys(texts)
    pairs = candidate_pairs(keys.ravel(), np.repeat(np.arange(len(everything)), bands.count))
    good = {(one, other) for one, other in pairs.tolist() if similarity(shingles[one], shingles[other]) >= THRESHOLD}
    return {"recall": len(good & truth) / len(truth), "precision": len(good & truth) / len(good)}


def sides_of(store: Any, key: str) -> dict[tuple[int, int], str]:
    import pyarrow.dataset

    path = store.path("prepare", key, "corpus")
    parts = pyarrow.dataset.dataset(path, filesystem=store.filesystem, format="parquet", partitioning="hive")
    table = parts.to_table(columns=["source", "line", "split"]).to_pydict()
    return dict(zip(zip(table["source"], table["line"], strict=True), table["split"], strict=True))


def text_of(messages: Messages) -> str:
    return "\n".join(message["content"] for message in messages)


def replies(files: Sequence[str], repeats: int) -> dict[str, Any]:
    """Clusters of single replies against all pairs, and seconds against those of conversations."""
    import pyarrow.fs
    import ray

    from models.text.near_duplicates import components
    from workflows.cluster.board import Board
    from workflows.corpus.revision.near_duplicates import find_near_duplicates, replies_of
    from workflows.corpus.rows import number_of, reply_numbers
    from workflows.spec.data import Compared, DeduplicateSpec

    clean = list(conversations(files))
    took: dict[Compared, list[float]] = {"conversations": [], "replies": []}
    with tempfile.TemporaryDirectory() as folder:
        written = write_corpus(clean, 1, Path(folder, "corpus"))
        ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level="ERROR")
        board: Any = Board.remote()  # type: ignore[attr-defined]
        for number in range(repeats + 1):  # the first round warms up
            for compare, seconds in took.items():
                began = time.perf_counter()
                settings = DeduplicateSpec(compare=compare)
                alike = find_near_duplicates(pyarrow.fs.LocalFileSystem(), written, settings, board)
                seconds += [time.perf_counter() - began] if number else []
        ray.shutdown()
    compared = [(line, place, text) for line, each in enumerate(clean) for place, text in replies_of(each)]  # type: ignore[arg-type]
    numbers = np.array([reply_numbers(number_of(0, line), place) for line, place, _ in compared])
    pairs = all_pairs([text for *_, text in compared])
    members, first = components(numbers[np.array(sorted(pairs))])
    ours, theirs = (clusters_of(*each) for each in ((alike.members, alike.kept), (members, first)))
    result = {
        "replies": len(compared), "pairs": len(pairs), "alike": len(members), "clusters": len(theirs),
        "found": len(ours & theirs), "of": len(ours),
        **{f"{compare}_s": statistics.median(seconds) for compare, seconds in took.items()},
    }  # fmt: skip
    print("| replies | alike | clusters | of them found | clusters found wrongly | replies, s | conversations, s |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {len(compared):,} | {len(members):,} | {len(theirs):,} | {len(ours & theirs):,} | "
        f"{len(ours - theirs):,} | {result['replies_s']:.1f} | {result['conversations_s']:.1f} |"
    )
    return result


def clusters_of(members: Any, named: Any) -> set[frozenset[int]]:
    """The clusters of members, each of which has the name of its cluster."""
    found: dict[int, set[int]] = {}
    for member, name in zip(members.tolist(), named.tolist(), strict=True):
        found.setdefault(name, set()).add(member)
    return set(map(frozenset, found.values()))


def speed(files: Sequence[str], times: Sequence[int], repeats: int) -> dict[str, Any]:
    import ray

    clean = list(conversations(files))
    rows: list[dict[str, Any]] = []
    print("| data | MB | bare rensa, s | ours, s | MB/s a core | ours / rensa | peak memory, GB |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level="ERROR")
        for count in times:
            written = write_corpus(clean, count, Path(folder, str(count)))
            found = [(bare(written), ours(written)) for _ in range(repeats)]
            alone = statistics.median(each[0] for each in found)
            seconds = statistics.median(each[1][0] for each in found)
            memory = max(each[1][1] for each in found)
            text = count * sum(len(text_of(messages)) for messages in clean) / 1e6
            rows.append({"times": count, "mb": text, "rensa_s": alone, "ours_s": seconds, "memory_gb": memory})
            print(
                f"| {count}x, {count * len(clean):,} conversations | {text:,.0f} | {alone:.1f} | {seconds:.1f} | "
                f"{text / seconds / 2:.1f} | {seconds / alone:.2f} | {memory:.2f} |",
                flush=True,
            )
        ray.shutdown()
    return {"rows": rows}


def write_corpus(clean: Sequence[Messages], count: int, folder: Path) -> list[str]:
    """The conversations `count` times, each time with other words, as files of a corpus."""
    import pyarrow as pa
    import pyarrow.parquet

    folder.mkdir()
    files = []
    schema = pa.schema(
        [("source", pa.int32()), ("line", pa.int64()), ("messages", pa.string()), ("num_messages", pa.int32())]
    )
    lengths = [len(messages) for messages in clean]
    for number in range(count):
        mark = "" if number == 0 else f"{number} "
        texts = [
            json.dumps([{**each, "content": each["content"].replace(" ", mark or " ")} for each in messages])
            if number else json.dumps(messages)
            for messages in clean
        ]  # fmt: skip
        for start in range(0, len(texts), ROWS_PER_FILE):
            part = texts[start : start + ROWS_PER_FILE]
            columns = [
                [number] * len(part),
                range(start, start + len(part)),
                part,
                lengths[start : start + len(part)],
            ]
            table = pa.table(
                [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
            )
            files.append(str(folder / f"{number}-{start}.parquet"))
            pyarrow.parquet.write_table(table, files[-1])
    return files


def bare(files: Sequence[str]) -> float:
    """Signatures of the same lines by rensa's own call on strings, in one process, and nothing else."""
    code = """
import json, sys, time
import pyarrow.parquet
from rensa import RMinHash
began = time.perf_counter()
for file in sys.argv[1:]:
    for batch in pyarrow.parquet.ParquetFile(file).iter_batches(512, columns=["messages"]):
        for text in batch["messages"].to_pylist():
            words = " ".join(message["content"] for message in json.loads(text)).lower().split()
            found = RMinHash(num_perm=126, seed=1)
            found.update([" ".join(words[place:place + 3]) for place in range(len(words) - 2)] or words)
            found.digest()
print(time.perf_counter() - began)
"""
    return float(
        subprocess.run([sys.executable, "-c", code, *files], check=True, capture_output=True, text=True).stdout
    )


def ours(files: Sequence[str]) -> tuple[float, float]:
    """Seconds, and the largest sum of the memory that the cluster's processes have to themselves, in GB."""
    import psutil
    import pyarrow.fs

    from workflows.cluster.board import Board
    from workflows.corpus.revision.near_duplicates import find_near_duplicates
    from workflows.spec.data import DeduplicateSpec

    board: Any = Board.remote()  # type: ignore[attr-defined]
    peak, is_over = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_over.wait(0.2):
            own = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    info = process.memory_full_info()
                except psutil.Error:
                    continue
                own += info.uss
            peak = max(peak, own / 1e9)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    find_near_duplicates(pyarrow.fs.LocalFileSystem(), files, DeduplicateSpec(), board)
    took = time.perf_counter() - began
    is_over.set()
    watcher.join()
    return took, peak


def prepare(files: Sequence[str], repeats: int) -> dict[str, Any]:
    """The stage with the search for near-duplicates, and without it, in turns."""
    import ray

    from workflows.corpus.revision.near_duplicates import NearDuplicates
    from workflows.figures import NearDuplicateFigures
    from workflows.progress import Progress
    from workflows.runs.run import run_stages
    from workflows.spec import PipelineSpec
    from workflows.stages import prepare as stage
    from workflows.store import Store

    def nothing(*given: Any) -> Any:
        empty = np.empty(0, np.int64)
        none = NearDuplicateFigures(conversations=0, clusters=0, exact=0, on_both_sides=0)
        return none, NearDuplicates(empty, empty, np.empty(0)), []

    looks = stage._near_duplicates
    took: dict[str, list[float]] = {"without": [], "with": []}
    ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level="ERROR")
    for number in range(repeats + 1):  # the first round warms up
        for name, way in (("without", nothing), ("with", looks)):
            stage._near_duplicates = way
            with tempfile.TemporaryDirectory() as folder:
                spec = PipelineSpec.model_validate({
                    "name": "timed", "base_model": "builtin:smollm2-135m-instruct", "store": folder,
                    "data": {"sources": [{"path": file} for file in files], "fields": {"messages": "messages"}},
                })  # fmt: skip
                began = time.perf_counter()
                with Progress() as progress:
                    run_stages(spec, Store(folder), progress, "prepare", connect=lambda stages: None)
                took[name] += [time.perf_counter() - began] * bool(number)
    ray.shutdown()
    alone, whole = statistics.median(took["without"]), statistics.median(took["with"])
    print("| prepare without, s | with, s | ratio |\n|---|---|---|")
    print(f"| {alone:.1f} | {whole:.1f} | {whole / alone:.2f} |")
    return {"without_s": alone, "with_s": whole, "ratio": whole / alone, "rounds": took}


PEER = """
import json, sys, tempfile, time
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster
from datatrove.pipeline.dedup import MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.typeshelper import Languages

def main():
    folder, data = tempfile.mkdtemp(), sys.argv[1]
    config = MinhashConfig(hash_config=HashConfig(precision=64), num_buckets=21, hashes_per_bucket=6, n_grams=3)
    reader = JsonlReader(data, text_key="text")
    began = time.perf_counter()
    LocalPipelineExecutor([reader, MinhashDedupSignature(f"{folder}/s", config=config, language=Languages.english)],
                          tasks=2, workers=2, logging_dir=f"{folder}/l1").run()
    LocalPipelineExecutor([MinhashDedupBuckets(f"{folder}/s", f"{folder}/b", config=config)], tasks=21, workers=2,
                          logging_dir=f"{folder}/l2").run()
    LocalPipelineExecutor([MinhashDedupCluster(f"{folder}/b", f"{folder}/c", config=config)], tasks=1, workers=1,
                          logging_dir=f"{folder}/l3").run()
    LocalPipelineExecutor([reader, MinhashDedupFilter(f"{folder}/c"), JsonlWriter(f"{folder}/o")], tasks=2, workers=2,
                          logging_dir=f"{folder}/l4").run()
    print(json.dumps({"seconds": time.perf_counter() - began}))

if __name__ == "__main__":  # its workers import this file
    main()
"""


def peer(files: Sequence[str], python: str, repeats: int) -> dict[str, Any]:
    import ray

    clean = list(conversations(files))
    with tempfile.TemporaryDirectory() as folder:
        written = write_corpus(clean, 1, Path(folder, "ours"))
        Path(folder, "peer").mkdir()
        half = -(-len(clean) // 2)
        for number in range(2):
            with Path(folder, "peer", f"{number}.jsonl").open("w") as stream:
                for messages in clean[number * half : (number + 1) * half]:
                    stream.write(json.dumps({"text": text_of(messages), "id": "x"}) + "\n")
        ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level="ERROR")
        program = Path(folder, "program.py")
        program.write_text(PEER)
        mine, theirs = [], []
        for _ in range(repeats):
            mine.append(ours(written)[0])
            said = subprocess.run([python, program, f"{folder}/peer"], check=True, capture_output=True, text=True)
            theirs.append(json.loads(said.stdout.splitlines()[-1])["seconds"])
        ray.shutdown()
    us, them = statistics.median(mine), statistics.median(theirs)
    print(
        f"| datatrove, s | ours, s | ours / datatrove |\n|---|---|---|\n| {them:.1f} | {us:.1f} | {us / them:.2f} |"
    )
    return {"ours_s": us, "datatrove_s": them, "ratio": us / them}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["found", "replies", "speed", "prepare", "peer"])
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--times", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--python", help="of an environment with datatrove 0.10.1")
    asked = parser.parse_args()
    if asked.what == "found":
        import ray

        ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level="ERROR")
        result = found(asked.data)
    elif asked.what == "replies":
        result = replies(asked.data, asked.repeats)
    elif asked.what == "speed":
        result = speed(asked.data, asked.times, asked.repeats)
    elif asked.what == "prepare":
        result = prepare(asked.data, asked.repeats)
    else:
        result = peer(asked.data, asked.python, asked.repeats)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
