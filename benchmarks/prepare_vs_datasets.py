"""`prepare` against `datasets.map` with a mask written by hand for one template, on the same conversations.

    python benchmarks/prepare_vs_datasets.py --data sgd.jsonl.gz [--runs 3] [--growth]

Both sides start as a new process, read the file, render it with SmolLM2's template, and write token ids and a mask of
the assistant's turns to files, with at most 1,024 tokens per conversation. The other side is what people write
themselves: two processes (`num_proc=2`), and a mask from a search for this template's own words. The sides alternate;
the last line is one JSON object with the median seconds of each and their ratio. `--growth` also measures our
milliseconds for a conversation of 10 to 160 turns, and the seconds and peak memory of both sides for 1 to 16 times a
quarter of the file.
"""

import argparse
import gzip
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BASE = "builtin:smollm2-135m-instruct"
LONGEST = 1024
PIPELINE = """name: speed
base_model: {base}
store: {store}
data: {{sources: [{{path: {data}}}], max_length: {longest}}}
"""


def map_by_hand(data: str, target: str) -> None:
    """The other side; runs in its own process."""
    import datasets

    from models.base.load import load_tokenizer, resolve

    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(resolve(BASE))
    opening, ending = "<|im_start|>assistant\n", "<|im_end|>"

    def encode(row: dict) -> dict:
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        found = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, truncation=True, max_length=LONGEST
        )
        spans, place = [], text.find(opening)
        while place >= 0:
            begin = place + len(opening)
            end = text.find(ending, begin) + len(ending)
            spans.append((begin, end))
            place = text.find(opening, end)
        mask = [
            any(begin <= start and end <= stop for begin, stop in spans) for start, end in found["offset_mapping"]
        ]
        return {"input_ids": found["input_ids"], "supervised": mask}

    rows = datasets.load_dataset("json", data_files=data, split="train", cache_dir=f"{target}/cache")
    rows = rows.map(encode, remove_columns=rows.column_names, num_proc=2)
    rows.to_parquet(f"{target}/rows.parquet")


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds, and the peak memory in GB of the command's largest process."""
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def prepare(data: str, folder: str) -> tuple[float, float]:
    """Our side, with a new store."""
    file = Path(folder) / "pipeline.yaml"
    file.write_text(PIPELINE.format(base=BASE, store=f"{folder}/store", data=data, longest=LONGEST))
    return timed([sys.executable, "-m", "workflows", "prepare", str(file)])


def by_hand(data: str, folder: str) -> tuple[float, float]:
    return timed([sys.executable, __file__, "--by-hand", folder, "--data", data])


def turns() -> dict[int, float]:
    """Milliseconds for a conversation with this many turns, the median of 20."""
    from models.base.load import load_tokenizer, resolve
    from models.chat import encode_conversation

    tokenizer = load_tokenizer(resolve(BASE))
    found = {}
    for count in (10, 20, 40, 80, 160):
        talk = [
            {"role": ("user", "assistant")[n % 2], "content": f"Turn {n}: the lamp costs {n * 7} crowns, as I said."}
            for n in range(count)
        ]
        encode_conversation(tokenizer, talk)
        seconds = []
        for _ in range(20):
            began = time.perf_counter()
            encode_conversation(tokenizer, talk)
            seconds.append(time.perf_counter() - began)
        found[count] = round(statistics.median(seconds) * 1000, 3)
        print(f"{count} turns: {found[count]} ms", flush=True)
    return found


def growth(data: str) -> dict[int, dict[str, float]]:
    """Seconds and memory of both sides for 1 to 16 times a quarter of the file's conversations."""
    with gzip.open(data, "rb") as stream:
        lines = stream.read().splitlines(keepends=True)
    part = lines[: len(lines) // 4]
    found = {}
    for times in (1, 4, 16):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "more.jsonl"
            with file.open("wb") as stream:
                for _ in range(times):
                    stream.writelines(part)
            seconds, memory = prepare(str(file), folder)
            theirs, _ = by_hand(str(file), folder)
        found[times] = {
            "conversations": times * len(part), "seconds": round(seconds, 1), "peak_gb": round(memory, 2),
            "datasets_seconds": round(theirs, 1), "ratio": round(theirs / seconds, 2),
        }  # fmt: skip
        print(f"{times} x: {found[times]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--by-hand", metavar="FOLDER")
    options = parser.parse_args()
    if options.by_hand:
        map_by_hand(options.data, options.by_hand)
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    seconds: dict[str, list[float]] = {"prepare": [], "datasets": []}
    for run in range(options.runs):
        for name, side in (("prepare", prepare), ("datasets", by_hand)):
            with tempfile.TemporaryDirectory() as folder:
                took, _ = side(str(Path(options.data).resolve()), folder)
            seconds[name].append(round(took, 1))
            print(f"run {run + 1}: {name} {took:.1f} s", flush=True)
    medians = {name: statistics.median(took) for name, took in seconds.items()}
    result = {"seconds": seconds, "median": medians, "ratio": round(medians["datasets"] / medians["prepare"], 2)}
    if options.growth:
        result["ms_by_turns"] = turns()
        result["by_conversations"] = growth(options.data)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
