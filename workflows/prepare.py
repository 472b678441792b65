"""prepare: raw conversations to token shards, with Ray Data.

    rayconteur prepare PIPELINE [--show 3]

Leaves in the store: `corpus/split=train` and `corpus/split=held_out` (Parquet: source, line, input_ids, supervised,
num_tokens, num_targets, messages), and `quarantine.jsonl` with every line that was set aside, and why.
"""

import functools
import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import ray
import ray.data

from models.base import load_tokenizer, resolve
from models.chat import encode_conversation
from workflows.cluster import watching
from workflows.conversations import parse_line
from workflows.pipeline import Context, SourceFile, StageFailed, open_uri, source_files

TRAIN, HELD_OUT, QUARANTINE = "train", "held_out", "quarantine"
_LINES_PER_BLOCK = 512
_EXCERPT_CHARACTERS = 200

_SCHEMA = pa.schema(
    [
        ("source", pa.int32()),
        ("line", pa.int64()),
        ("input_ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),
        ("num_tokens", pa.int32()),
        ("num_targets", pa.int32()),
        ("truncated", pa.bool_()),
        ("messages", pa.string()),
        ("reason", pa.string()),
        ("split", pa.string()),
    ]
)


def run(context: Context) -> dict[str, Any]:
    """Read, render, split and write all conversations, streaming; returns the corpus statistics."""
    spec, store = context.spec, context.store
    store.clear("prepare", context.key)
    resolve(spec.base_model)
    files = source_files(spec)
    corpus_path = store.path("prepare", context.key, "corpus")
    _set_block_size(sum(_size(file) for file in files))
    with watching(context.progress, "lines") as board:
        items = [
            {"source": index, "uri": file.source, "path": file.path, "limit": file.limit or -1}
            for index, file in enumerate(files)
        ]
        (
            ray.data.from_items(items, override_num_blocks=len(items))
            .map_batches(_read_lines, batch_size=1, fn_kwargs={"board": board})
            .map_batches(
                _encode_lines,
                batch_size=_LINES_PER_BLOCK,
                fn_kwargs={
                    "base_model": spec.base_model,
                    "max_length": spec.data.max_length,
                    "held_out_share": spec.data.held_out_share,
                    "board": board,
                },
                batch_format="pyarrow",
            )
            .write_parquet(corpus_path, filesystem=store.filesystem, partition_cols=["split"])
        )
    paths = [file.path for file in files]
    figures = _statistics(context, paths)
    _check(context, figures, paths)
    return figures


def _set_block_size(total_bytes: int) -> None:
    """A file is read by one task, which streams its lines on in blocks; rendering those is spread over all CPUs."""
    cpus = int(ray.cluster_resources().get("CPU", 1))
    block = min(64 << 20, max(256 << 10, total_bytes // (4 * cpus)))
    ray.data.DataContext.get_current().target_max_block_size = block


def _size(file: SourceFile) -> int:
    filesystem, _ = open_uri(file.source)
    return int(filesystem.get_file_info(file.path).size)


def _read_lines(batch: dict[str, Any], board: Any) -> Iterator[dict[str, Any]]:
    """The lines of a file, in blocks of (source, line, text)."""
    source, path, limit = int(batch["source"][0]), str(batch["path"][0]), int(batch["limit"][0])
    filesystem, _ = open_uri(str(batch["uri"][0]))
    number = 0
    block: list[tuple[int, bytes]] = []
    with filesystem.open_input_file(path) as raw:
        stream = pa.CompressedInputStream(raw, "gzip") if path.endswith(".gz") else raw
        lines = io.BufferedReader(stream, buffer_size=1 << 20)
        while number != limit:
            try:
                text = lines.readline()
            except OSError as error:
                raise StageFailed(f"{path}:{number + 1}: the file breaks off here: {error}; repair it") from None
            if not text:
                break
            number += 1
            if text.strip():
                block.append((number, text))
            if len(block) == _LINES_PER_BLOCK:
                board.add.remote(total=len(block))
                yield _lines_block(source, block)
                block = []
    if block:
        board.add.remote(total=len(block))
        yield _lines_block(source, block)


def _lines_block(source: int, block: list[tuple[int, bytes]]) -> dict[str, Any]:
    numbers, texts = zip(*block, strict=True)
    return {"source": [source] * len(block), "line": list(numbers), "text": list(texts)}


@functools.lru_cache(maxsize=1)
def _tokenizer(base_model: str) -> Any:
    return load_tokenizer(resolve(base_model))


def _encode_lines(batch: pa.Table, base_model: str, max_length: int, held_out_share: float, board: Any) -> pa.Table:
    tokenizer = _tokenizer(base_model)
    rows = [
        _encode_line(tokenizer, source, line, text, max_length, held_out_share)
        for source, line, text in zip(*(batch[name].to_pylist() for name in ("source", "line", "text")), strict=True)
    ]
    good = sum(row["split"] != QUARANTINE for row in rows)
    board.add.remote(conversations=good, set_aside=len(rows) - good, tokens=sum(row["num_tokens"] for row in rows))
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _encode_line(
    tokenizer: Any, source: int, line: int, text: bytes, max_length: int, held_out_share: float
) -> dict[str, Any]:
    row: dict[str, Any] = {"source": source, "line": line, "num_tokens": 0, "num_targets": 0, "truncated": False}
    try:
        messages = parse_line(text)
        encoded = encode_conversation(tokenizer, messages)
        supervised = encoded.supervised[:max_length]
        if not any(supervised[1:]):
            where = f"within the first {max_length} tokens" if any(encoded.supervised) else "in it"
            raise ValueError(f"nothing to learn: no assistant turn {where}")
    except ValueError as error:
        excerpt = text[:_EXCERPT_CHARACTERS].decode(errors="replace").strip()
        return {**row, "split": QUARANTINE, "reason": str(error), "messages": excerpt}
    content = json.dumps(messages, ensure_ascii=False)
    return {
        **row,
        "input_ids": encoded.input_ids[:max_length],
        "supervised": supervised,
        "num_tokens": len(supervised),
        "num_targets": sum(supervised[1:]),
        "truncated": len(encoded.input_ids) > max_length,
        "messages": content,
        "split": HELD_OUT if _falls(content) < held_out_share else TRAIN,
    }


def _falls(content: str) -> float:
    """A number in [0, 1) that belongs to this text: which side of the split it is on."""
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") / 2**64


def _statistics(context: Context, paths: list[str]) -> dict[str, Any]:
    """Counts over the written shards, a batch at a time; also writes quarantine.jsonl."""
    store = context.store
    figures = dict.fromkeys(
        ("conversations", "held_out_conversations", "quarantined", "tokens", "supervised_tokens", "held_out_tokens",
         "truncated", "longest"), 0
    )  # fmt: skip
    path = store.path("prepare", context.key, "corpus")
    parts = pa.dataset.dataset(path, filesystem=store.filesystem, format="parquet", partitioning="hive")
    columns = ["split", "num_tokens", "num_targets", "truncated"]
    for batch in parts.to_batches(columns=columns):
        for row in batch.to_pylist():
            _count(figures, row)
    bad = parts.to_batches(
        columns=["source", "line", "reason", "messages"], filter=pa.dataset.field("split") == QUARANTINE
    )
    with store.filesystem.open_output_stream(store.path("prepare", context.key, "quarantine.jsonl")) as stream:
        for batch in bad:
            for row in batch.to_pylist():
                record = {"file": paths[row["source"]], "line": row["line"], "reason": row["reason"]}
                stream.write((json.dumps({**record, "text": row["messages"]}, ensure_ascii=False) + "\n").encode())
    return figures


def _count(figures: dict[str, int], row: dict[str, Any]) -> None:
    if row["split"] == QUARANTINE:
        figures["quarantined"] += 1
        return
    held_out = row["split"] == HELD_OUT
    figures["held_out_conversations" if held_out else "conversations"] += 1
    figures["held_out_tokens" if held_out else "tokens"] += row["num_tokens"]
    figures["supervised_tokens"] += 0 if held_out else row["num_targets"]
    figures["truncated"] += row["truncated"]
    figures["longest"] = max(figures["longest"], row["num_tokens"])


def _check(context: Context, figures: dict[str, Any], paths: list[str]) -> None:
    """Raise StageFailed if the corpus cannot be trained on."""
    data = context.spec.data
    good = figures["conversations"] + figures["held_out_conversations"]
    bad = figures["quarantined"]
    listing = context.store.path("prepare", context.key, "quarantine.jsonl")
    if good + bad == 0:
        raise StageFailed(f"data.sources: no lines in {', '.join(paths)}")
    if bad > data.max_bad_share * (good + bad):
        raise StageFailed(
            f"data.max_bad_share: {bad} of {good + bad} lines ({bad / (good + bad):.1%}) cannot be used, more than "
            f"{data.max_bad_share:.1%}; first: {_first_bad(context)}; all of them: {listing}"
        )
    for split, count in (("training", figures["conversations"]), ("held-out", figures["held_out_conversations"])):
        if count == 0:
            raise StageFailed(
                f"data.held_out_share: of {good} conversations none fell to the {split} side at a held-out share of "
                f"{data.held_out_share:g}; add conversations or change the share"
            )


def _first_bad(context: Context) -> str:
    path = context.store.path("prepare", context.key, "quarantine.jsonl")
    with context.store.filesystem.open_input_stream(path) as stream:
        record = json.loads(stream.read().split(b"\n")[0])
    return f"{record['file']}:{record['line']}: {record['reason']}"
