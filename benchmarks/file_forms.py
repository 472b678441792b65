"""One corpus in all file formats: the same token ids; and the memory and time for reading large files.

    python benchmarks/file_forms.py [--gb 1.0] [--folder FOLDER]

1. 2,000 conversations in every format through `rayconteur prepare`, on random:tiny-llama: token ids compared with
   those from JSON lines.
2. Files of `--gb` GB, each read by a new process: its peak memory (VmHWM) above the memory before reading, and MB/s.
   Parquet has one row group, the Arrow file one batch, the array is on one line or indented.
3. A file with a line, or an element, of 100 MB between two ordinary conversations.

Needs 3 times `--gb` of space in the folder, and about as much memory while it writes. Prints progress, and one JSON
object as the last line.
"""

import argparse
import bz2
import csv
import gzip
import json
import lzma
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet

from workflows.corpus.files.formats import records
from workflows.corpus.files.sources import SourceFile

# Text with characters that a file format could mishandle.
WORDS = [
    "price", "of", "the", '"large"', "kettle,\tand", "two?", "12.50", "2024-01-02", "\\", "{size}", "\u00e9t\u00e9",
    "\u4ef7\u683c", "\U0001f600", "007\nso", "[then]",
]  # fmt: skip
ROLES = ("user", "assistant") * 3
LONG_MB = 100


def conversations(count: int | None = None, turn_words: int = 60) -> Iterator[dict[str, Any]]:
    """Conversations of six turns; endless without a count."""
    draw = random.Random(0)
    number = 0
    while number != count:
        number += 1
        yield {
            "messages": [
                {"role": role, "content": f"{number}: {' '.join(draw.choices(WORDS, k=turn_words))}"}
                for role in ROLES
            ]
        }


def say(text: str) -> None:
    print(text, flush=True)


def small_forms(folder: Path, rows: list[dict[str, Any]]) -> list[Path]:
    """The same conversations in every format."""
    import datasets

    datasets.disable_progress_bars()
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    indented = json.dumps(rows, indent=2)
    lines = text.encode()
    table = pa.Table.from_pylist(rows)
    forms: dict[str, bytes] = {
        "lines.jsonl": lines,
        "array.json": json.dumps(rows).encode(),
        "indented.json": indented.encode(),
        "objects.json": "\n".join(json.dumps(row, indent=1) for row in rows).encode(),
        "lines.jsonl.gz": gzip.compress(lines),
        "lines.jsonl.bz2": bz2.compress(lines),
        "lines.jsonl.xz": lzma.compress(lines),
        "lines.jsonl.zst": bytes(pa.compress(lines, codec="zstd", asbytes=True)),
        "indented.json.gz": gzip.compress(indented.encode()),
        "gzip_by_another_name.jsonl": gzip.compress(lines),
        "marked.jsonl": b"\xef\xbb\xbf" + lines,
        "utf16.jsonl": text.encode("utf-16"),
        "utf16.json": indented.encode("utf-16"),
    }
    for name, content in forms.items():
        (folder / name).write_bytes(content)
    for name, delimiter in (("table.csv", ","), ("table.tsv", "\t")):
        with (folder / name).open("w", newline="") as stream:
            writer = csv.writer(stream, delimiter=delimiter)
            writer.writerow(["messages"])
            writer.writerows([json.dumps(row["messages"], ensure_ascii=False)] for row in rows)
    pa.parquet.write_table(table, folder / "table.parquet", row_group_size=300)
    for name, make in (("file.arrow", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        with make(str(folder / name), table.schema) as writer:
            writer.write_table(table, max_chunksize=700)
    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved", num_shards=1)
    datasets.DatasetDict(train=datasets.Dataset.from_list(rows)).save_to_disk(folder / "saved_splits")
    return sorted(path for path in folder.iterdir() if path.name != "lines.jsonl")


def same_ids(folder: Path, count: int) -> dict[str, Any]:
    """Run `rayconteur prepare` on all formats at once; returns those that differ from JSON lines."""
    (folder / "forms").mkdir()
    forms = [folder / "forms" / "lines.jsonl", *small_forms(folder / "forms", list(conversations(count, 20)))]
    pipeline = folder / "forms.yaml"
    pipeline.write_text(json.dumps({
        "name": "forms", "base_model": "random:tiny-llama", "store": str(folder / "store"),
        "data": {"sources": [{"path": str(form)} for form in forms], "max_length": 4096},
    }))  # fmt: skip
    say(f"prepare: {count:,} conversations in {len(forms)} forms")
    done = subprocess.run(
        [sys.executable, "-m", "workflows", "prepare", str(pipeline), "--json"], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    corpus = next((folder / "store" / "prepare").glob("*/corpus"))
    table = pyarrow.dataset.dataset(str(corpus), format="parquet", partitioning="hive").to_table()
    read: list[dict[int, Any]] = [{} for _ in forms]
    for row in table.select(["source", "line", "split", "input_ids", "supervised", "reason"]).to_pylist():
        read[row["source"]][row["line"]] = row["split"], row["input_ids"], row["supervised"], row["reason"]
    told = [[rows[line] for line in sorted(rows)] for rows in read]
    differ = [form.name for form, rows in zip(forms, told, strict=True) if rows != told[0] or len(rows) != count]
    tokens = sum(len(ids or ()) for _, ids, _, _ in told[0])
    return {"forms": [form.name for form in forms], "conversations": count, "tokens": tokens, "differ": differ}


def write_lines(path: Path, size: int) -> None:
    with path.open("wb") as stream:
        for row in conversations():
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            if stream.tell() >= size:
                return


def write_array(indent: int | None) -> Callable[[Path, int], None]:
    def write(path: Path, size: int) -> None:
        with path.open("wb") as stream:
            stream.write(b"[")
            for number, row in enumerate(conversations()):
                stream.write(b", " if number else b"")
                stream.write(json.dumps(row, indent=indent, ensure_ascii=False).encode())
                if stream.tell() >= size:
                    break
            stream.write(b"]")

    return write


def write_csv(path: Path, size: int) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["messages"])
        for number, row in enumerate(conversations()):
            writer.writerow([json.dumps(row["messages"], ensure_ascii=False)])
            if number % 1000 == 0 and stream.tell() >= size:
                return


def tables(size: int) -> pa.Table:
    rows, batches, total = conversations(), [], 0
    while total < size:
        batches.append(pa.RecordBatch.from_pylist([next(rows) for _ in range(10_000)]))
        total += batches[-1].nbytes
    return pa.Table.from_batches(batches).combine_chunks()


def write_parquet(path: Path, size: int) -> None:
    table = tables(size)
    pa.parquet.write_table(table, path, compression="none", use_dictionary=False, row_group_size=table.num_rows)


def write_arrow(path: Path, size: int) -> None:
    table = tables(size)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


LARGE: dict[str, Callable[[Path, int], None]] = {
    "lines.jsonl": write_lines,
    "array_on_one_line.json": write_array(None),
    "array_indented.json": write_array(2),
    "one_row_group.parquet": write_parquet,
    "one_batch.arrow": write_arrow,
    "table.csv": write_csv,
}


def write_long(path: Path, size: int) -> None:
    """An element, or a line, of `size` bytes between two ordinary ones."""
    first, last = (json.dumps(row) for row in conversations(2))
    between = ",\n" if path.suffix == ".json" else "\n"
    with path.open("w") as stream:
        stream.write(("[" if path.suffix == ".json" else "") + first + between + '{"messages": [{"content": "')
        for _ in range(size // 1_000_000):
            stream.write("x" * 1_000_000)
        stream.write('"}]}' + between + last + ("]" if path.suffix == ".json" else "\n"))


def read_one(path: str) -> None:
    """Read a file in this process, and print the time and memory."""
    before = memory_mb()
    began = time.monotonic()
    count = set_aside = 0
    for record in records(SourceFile(path, path, None, "")):
        count += 1
        set_aside += bool(record.unread)
    seconds = time.monotonic() - began
    print(json.dumps({
        "conversations": count, "set_aside": set_aside,
        "mb_per_s": round(Path(path).stat().st_size / 1e6 / seconds, 1),
        "mb_before": before["VmHWM"], "mb_peak": memory_mb()["VmHWM"], "mb_anonymous_after": memory_mb()["RssAnon"],
    }))  # fmt: skip


def memory_mb() -> dict[str, int]:
    text = Path("/proc/self/status").read_text()
    return {name: int(size) // 1000 for name, size in re.findall(r"(\w+):\s+(\d+) kB", text)}


def measured(folder: Path, name: str, write: Callable[[Path, int], None], size: int) -> dict[str, Any]:
    path = folder / name
    write(path, size)
    done = subprocess.run([sys.executable, __file__, "--read", str(path)], capture_output=True, text=True)
    file_mb = round(path.stat().st_size / 1e6)
    path.unlink()
    if done.returncode:
        raise SystemExit(f"{name}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    found = {"file_mb": file_mb, **json.loads(done.stdout)}
    say(f"{name:<24} {found}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.0, help="size of each large file")
    parser.add_argument("--conversations", type=int, default=2000, help="of the corpus in all forms")
    parser.add_argument("--folder", help="where to write; a temporary folder if left out")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.read:
        read_one(chosen.read)
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        result: dict[str, Any] = {"same_ids": same_ids(folder, chosen.conversations), "large": {}, "long": {}}
        say(f"differ: {result['same_ids']['differ'] or 'none'}")
        for form, write in LARGE.items():
            result["large"][form] = measured(folder, form, write, int(chosen.gb * 1e9))
        for form in ("long.jsonl", "long.json"):
            result["long"][form] = measured(folder, form, write_long, LONG_MB * 1_000_000)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
