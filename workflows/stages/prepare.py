"""prepare: converts raw conversations to token shards, with Ray Data.

    rayconteur prepare PIPELINE [--show 3]

Writes to the store: `corpus/split=train` and `corpus/split=held_out` (Parquet: source, line, input_ids, supervised,
num_tokens, num_targets, messages), and `quarantine.jsonl` with every line that was set aside, and the reason; for
`base_model: new` also `base/`, the model before training (workflows/corpus/new_model.py).

`train.objective` decides what a line must contain. For a preference pair, `input_ids`, `supervised` and `messages`
are the prompt with the chosen reply, `other_input_ids` and `other_supervised` the prompt with the rejected one. For a
labelled reply (KTO), the first are the prompt with this reply, the others the prompt with a reply to another prompt
of the same file (`workflows.corpus.conversations.mismatched_replies`, over blocks of 512 lines). In both, only the
last reply is supervised, `num_tokens` counts the prompt once, since training computes it once, and only the prompt
decides the split.
"""

import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import ray
import ray.data

from models.chat import Message, ReplyCut, end_token_ids
from models.chat.messages import SameRole
from models.errors import RayconteurError
from workflows.cluster.board import watching
from workflows.cluster.errors import describe_error, full_traceback, write_traceback
from workflows.corpus.chat_tokenizer import chat_tokenizer, read_template, template_notes
from workflows.corpus.conversations import mismatched_replies
from workflows.corpus.encoding import Encoding
from workflows.corpus.errors import UnusableLine
from workflows.corpus.files.formats import records
from workflows.corpus.files.sources import PACKED, SourceFile, source_files
from workflows.corpus.files.text import Record
from workflows.corpus.new_model import CHAT_TEMPLATE, make_base, with_base
from workflows.corpus.rows import CorpusRow
from workflows.corpus.separation import separate
from workflows.corpus.set_aside import EXCERPT_CHARACTERS, SetAside, set_aside_text
from workflows.corpus.split import HELD_OUT, QUARANTINE, TRAIN, all_sides, fill_empty_side
from workflows.figures import NearDuplicateFigures, PrepareFigures
from workflows.spec import NEW_MODEL, PipelineSpec
from workflows.stage import Context, StageFailed

_LINES_PER_BLOCK = 512
_BYTES_PER_BLOCK = 64 << 20
_STARTED_EARLY = 16
# About the size of conversations relative to their compressed files.
_PACKED_FACTOR = 6
# Above this share of cut conversations, print a note.
_MANY_CUT = 0.05
# Separates a reason from its traceback.
_TRACEBACK = "\0traceback\0"
_MAX_TRACEBACKS = 5
# The figures that are sums over the rows.
_COUNTS = ("conversations", "held_out_conversations", "quarantined", "tokens", "supervised_tokens", "held_out_tokens",
           "truncated", "longest")  # fmt: skip
_Reading = tuple[dict[str, str], SameRole]  # data.fields, data.same_role

_Lines = dict[str, list[Any]]
"""conversations of a file, by column: source, line, text, unread, mismatched"""


_SCHEMA = pa.schema(
    [
        ("source", pa.int32()),
        ("line", pa.int64()),
        ("input_ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),
        ("other_input_ids", pa.list_(pa.int32())),
        ("other_supervised", pa.list_(pa.bool_())),
        ("piece_lengths", pa.list_(pa.int32())),
        ("piece_parents", pa.list_(pa.int32())),
        ("desirable", pa.bool_()),
        ("num_tokens", pa.int32()),
        ("num_targets", pa.int32()),
        ("truncated", pa.bool_()),
        ("messages", pa.string()),
        ("tools", pa.string()),
        ("group", pa.string()),
        ("reason", pa.string()),
        ("split", pa.string()),
    ]
)


def run(context: Context) -> PrepareFigures:
    """Write the corpus, look for near-duplicates in it, and return its statistics."""
    spec, store = context.spec, context.store
    store.clear("prepare", context.key)
    files = source_files(spec)
    if spec.base_model == NEW_MODEL:
        make_base(context, files)
        spec = with_base(spec, store, context.key)
    if spec.data.chat_template is not None:
        template = read_template(spec.data.chat_template)
        store.write_file(store.path("prepare", context.key, CHAT_TEMPLATE), template.encode())
        spec = with_base(spec, store, context.key)
    _write_corpus(context, spec, files)
    paths = [file.path for file in files]
    corpus = store.path("prepare", context.key, "corpus")
    figures, crashes = _statistics(context, paths)
    _note_crashes(context, crashes)
    _check(context, figures, paths)
    with watching(context.progress, "conversations compared") as board:
        alike = separate(store.filesystem, corpus, spec.data, paths, board)
    _note_near_duplicates(context, alike)
    _check_groups(context, corpus)
    if spec.data.deduplicate.action != "report":
        figures, _ = _statistics(context, paths)
    return replace(_with_both_sides(context, figures, paths), near_duplicates=alike)


def _write_corpus(context: Context, spec: PipelineSpec, files: list[SourceFile]) -> None:
    """Read, render and split all conversations as a stream."""
    _start_workers(_set_block_size(files))
    tokenizer = chat_tokenizer(spec)
    end_token_ids(tokenizer)  # a template without an end token fails here, not on every line
    for note in template_notes(spec, tokenizer):
        context.progress.note(f"prepare: {note}")
    store, examples = context.store, spec.train.objective.examples
    # A worker that unpickles the tokenizer need not import torch, which takes longer than a thousand conversations.
    pickled = ray.put(tokenizer)
    with watching(context.progress, "lines") as board:
        items = [
            {
                "source": index,
                "uri": file.source,
                "path": file.path,
                "limit": file.limit or -1,
                "field": file.field,
            }
            for index, file in enumerate(files)
        ]
        (
            ray.data.from_items(items, override_num_blocks=len(items))
            # With other resources than the encoding, Ray Data does not fuse both into one task per file.
            .map_batches(
                _read_lines,
                batch_size=1,
                fn_kwargs={
                    "judged": (spec.data.fields, spec.data.same_role) if examples == "judged" else None,
                    "board": board,
                },
                num_cpus=0,
            )
            .map_batches(
                _encode_lines,
                batch_size=_LINES_PER_BLOCK,
                fn_kwargs={
                    "spec": spec.model_dump_json(),
                    "tokenizer": pickled,
                    "paths": [file.path for file in files],
                    "board": board,
                },
                batch_format="pyarrow",
            )
            .write_parquet(
                store.path("prepare", context.key, "corpus"), filesystem=store.filesystem, partition_cols=["split"]
            )
        )


def _start_workers(blocks: int) -> None:
    """Start workers that import what encoding needs, one a block, while this process loads the tokenizer."""

    def start() -> None:
        import transformers.tokenization_utils_tokenizers  # noqa: F401

    cpus = int(ray.cluster_resources().get("CPU", 1))
    starter = ray.remote(num_cpus=1)(start)
    for _ in range(min(cpus, blocks, _STARTED_EARLY)):
        starter.remote()


def _set_block_size(files: list[SourceFile]) -> int:
    """One task reads a file and streams its lines in blocks; all CPUs render the blocks. Returns about how many."""
    size = sum(file.size * (_PACKED_FACTOR if file.path.endswith((*PACKED, ".parquet")) else 1) for file in files)
    cpus = int(ray.cluster_resources().get("CPU", 1))
    block = min(64 << 20, max(256 << 10, size // (4 * cpus)))
    ray.data.DataContext.get_current().target_max_block_size = block
    return max(len(files), size // block)


def _read_lines(batch: Mapping[str, np.ndarray], judged: _Reading | None, board: Any) -> Iterator[_Lines]:
    """The conversations of a file, in blocks of (source, line, text, unread, mismatched)."""
    source, limit = int(batch["source"][0]), int(batch["limit"][0])
    uri, path, field = (str(batch[name][0]) for name in ("uri", "path", "field"))
    file = SourceFile(uri, path, limit if limit > 0 else None, fingerprint="", field=field)
    block: list[Record] = []
    before: list[Record] = []
    size = 0
    for record in records(file):
        block.append(record)
        size += len(record.text)
        if len(block) == _LINES_PER_BLOCK or size >= _BYTES_PER_BLOCK:
            board.add.remote(total=len(block))
            yield _lines_block(source, block, judged, before=[])
            before, block, size = block, [], 0
    if block:
        board.add.remote(total=len(block))
        yield _lines_block(source, block, judged, before)


def _lines_block(source: int, block: list[Record], judged: _Reading | None, before: list[Record]) -> _Lines:
    """`judged`: how lines are read where they are judged replies. `before`: more lines that mismatched replies may
    come from, for the last block, which may be a short one.
    """
    numbers, texts, unread = zip(*block, strict=True)
    replies: list[Message | None] = [None] * len(block)
    if judged is not None:
        replies = mismatched_replies([record.text for record in before + block], *judged)[len(before) :]
    mismatched = ["" if reply is None else reply["content"] for reply in replies]
    return {
        "source": [source] * len(block),
        "line": list(numbers),
        "text": list(texts),
        "unread": list(unread),
        "mismatched": mismatched,
    }


@functools.lru_cache(maxsize=2)
def _encoding(spec: str, tokenizer: "ray.ObjectRef[Any]") -> Encoding:
    """Cached, so that a process makes it once for all its blocks."""
    pipeline = PipelineSpec.model_validate_json(spec)
    return Encoding(ray.get(tokenizer), pipeline.data, pipeline.train.objective.examples)


def _encode_lines(
    batch: pa.Table, spec: str, tokenizer: "ray.ObjectRef[Any]", paths: list[str], board: Any
) -> pa.Table:
    encoding = _encoding(spec, tokenizer)
    columns = (batch[name].to_pylist() for name in ("source", "line", "text", "unread", "mismatched"))
    rows = []
    for source, line, text, unread, mismatched in zip(*columns, strict=True):
        row: CorpusRow = {"source": source, "line": line, "num_tokens": 0, "num_targets": 0, "truncated": False}
        try:
            if unread:
                raise UnusableLine(unread)
            row.update(encoding.row(text, mismatched))
        except ReplyCut as error:
            raise StageFailed(
                f"data.cut_replies: {paths[source]}:{line}: {error}; raise data.max_length, or set data.cut_replies "
                "to cut or drop"
            ) from None
        except ValueError as error:
            excerpt = text[:EXCERPT_CHARACTERS].decode(errors="replace").strip()
            row.update({"split": QUARANTINE, "reason": _reason(error), "messages": excerpt})
        rows.append(row)
    good = sum(row["split"] != QUARANTINE for row in rows)
    tokens = sum(row["num_tokens"] for row in rows)
    board.add.remote(done=len(rows), conversations=good, set_aside=len(rows) - good, tokens=tokens)
    return pa.table([_column([row.get(field.name) for row in rows], field.type) for field in _SCHEMA], schema=_SCHEMA)


def _reason(error: ValueError) -> str:
    """The reason to set a line aside; for an error that is not ours, with its traceback, which `_statistics` removes.

    Such a line does not end the run, because one among millions should not.
    """
    if isinstance(error, RayconteurError):
        return str(error)
    return f"{describe_error(error)}{_TRACEBACK}{full_traceback(error)}"


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """`values` as a column; converts lists of numbers through one long array, which is ten times as fast."""
    if not pa.types.is_list(kind) or all(value is None for value in values):
        return pa.array(values, kind)
    lengths = [len(value) if value is not None else 0 for value in values]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat = np.fromiter(
        itertools.chain.from_iterable(value or () for value in values), kind.value_type.to_pandas_dtype()
    )
    is_null = pa.array([value is None for value in values])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, kind.value_type), mask=is_null)


def _statistics(context: Context, paths: list[str]) -> tuple[PrepareFigures, dict[str, str]]:
    """Count over the written shards, a batch at a time; also writes quarantine.jsonl."""
    store = context.store
    counts = Counter(dict.fromkeys(_COUNTS, 0))
    path = store.path("prepare", context.key, "corpus")
    if store.filesystem.get_file_info(path).type == pa.fs.FileType.NotFound:  # nothing was written
        raise StageFailed(f"data.sources: no lines in {', '.join(paths)}")
    parts = all_sides(store.filesystem, path)
    columns = ["split", "num_tokens", "num_targets", "truncated"]
    for batch in parts.to_batches(columns=columns):
        for row in batch.to_pylist():
            _count(counts, row)
    groups = SetAside()
    crashes: dict[str, str] = {}
    bad = parts.to_batches(
        columns=["source", "line", "reason", "messages"], filter=pa.dataset.field("split") == QUARANTINE
    )
    with store.filesystem.open_output_stream(store.path("prepare", context.key, "quarantine.jsonl")) as stream:
        for batch in bad:
            for row in batch.to_pylist():
                reason, _, traceback = row["reason"].partition(_TRACEBACK)
                record = {"file": paths[row["source"]], "line": row["line"], "reason": reason}
                stream.write((json.dumps({**record, "text": row["messages"]}, ensure_ascii=False) + "\n").encode())
                groups.add(reason, row["source"], paths[row["source"]], row["line"])
                if traceback and len(crashes) < _MAX_TRACEBACKS:
                    crashes.setdefault(reason, traceback)
    return PrepareFigures(set_aside=groups.groups(), near_duplicates=None, **counts), crashes


def _note_crashes(context: Context, crashes: dict[str, str]) -> None:
    for reason, traceback in crashes.items():
        file = write_traceback(traceback)
        context.progress.note(f"prepare: lines are set aside for {reason} (details in {file})", traceback=file)


def _count(counts: Counter[str], row: CorpusRow) -> None:
    if row["split"] == QUARANTINE:
        counts["quarantined"] += 1
        return
    held_out = row["split"] == HELD_OUT
    counts["held_out_conversations" if held_out else "conversations"] += 1
    counts["held_out_tokens" if held_out else "tokens"] += row["num_tokens"]
    counts["supervised_tokens"] += 0 if held_out else row["num_targets"]
    counts["truncated"] += row["truncated"]
    counts["longest"] = max(counts["longest"], row["num_tokens"])


def _check(context: Context, figures: PrepareFigures, paths: list[str]) -> None:
    """Raise StageFailed if the corpus cannot be trained on."""
    data = context.spec.data
    good = figures.conversations + figures.held_out_conversations
    bad = figures.quarantined
    listing = context.store.path("prepare", context.key, "quarantine.jsonl")
    if good + bad == 0:
        raise StageFailed(f"data.sources: no lines in {', '.join(paths)}")
    if good == 0:
        raise StageFailed(
            f"data.sources: none of {bad} lines can be used, by reason, with the first line of each:\n"
            f"{set_aside_text(figures.set_aside)}\nall of them: {listing}"
        )
    if bad > data.max_bad_share * (good + bad):
        raise StageFailed(
            f"data.max_bad_share: {bad} of {good + bad} lines ({bad / (good + bad):.1%}) cannot be used, more than "
            f"{data.max_bad_share:.1%}; by reason, with the first line of each:\n"
            f"{set_aside_text(figures.set_aside)}\nall of them: {listing}"
        )
    if figures.truncated > _MANY_CUT * good:
        context.progress.note(
            f"prepare: {figures.truncated:,} of {good:,} conversations ({figures.truncated / good:.0%}) are "
            f"longer than data.max_length, {data.max_length} tokens, and are cut; raise it or set data.truncate: left"
        )
    if bad:
        context.progress.result(
            "set_aside",
            {"groups": [group.to_json() for group in figures.set_aside], "listing": listing},
            f"set aside, by reason, with the first line of each:\n{set_aside_text(figures.set_aside)}",
        )


def _check_groups(context: Context, corpus: str) -> None:
    """Raise StageFailed if no conversation has the key of `data.group_by`; note how many lack it."""
    if (field := context.spec.data.group_by) is None:
        return
    parts = all_sides(context.store.filesystem, corpus)
    is_good = pa.dataset.field("split") != QUARANTINE
    total = parts.count_rows(filter=is_good)
    lacking = parts.count_rows(filter=is_good & ~pa.dataset.field("group").is_valid())
    if lacking == total:
        raise StageFailed(
            f"data.group_by: none of {total:,} conversations has {field!r}; name a key of the records, or a key "
            "within another as in metadata.user"
        )
    if lacking:
        context.progress.note(
            f"prepare: {lacking:,} of {total:,} conversations have no {field!r} (data.group_by) and are split by "
            "their text"
        )


def _note_near_duplicates(context: Context, found: NearDuplicateFigures) -> None:
    if found.on_both_sides:
        context.progress.note(
            f"prepare: {found.on_both_sides:,} held-out conversations have a near-duplicate among those to train on, "
            "so what is measured on them flatters the model; set data.deduplicate to drop or split"
        )


def _with_both_sides(context: Context, figures: PrepareFigures, paths: list[str]) -> PrepareFigures:
    """If few conversations leave one side empty by chance, move the nearest one there. Raises StageFailed if all have
    the same text.
    """
    counts = {TRAIN: figures.conversations, HELD_OUT: figures.held_out_conversations}
    empty = next((side for side, count in counts.items() if count == 0), None)
    if empty is None:
        return figures
    is_pair = context.spec.train.objective.examples != "conversations"
    corpus = context.store.path("prepare", context.key, "corpus")
    moved = fill_empty_side(context.store.filesystem, corpus, empty, is_pair)
    if not moved:
        raise StageFailed(
            f"data.sources: all {sum(counts.values())} conversations have the same text; training and evaluation "
            "need different ones: add conversations"
        )
    side = "trained on" if empty == TRAIN else "held out"
    share, total = context.spec.data.held_out_share, sum(counts.values())
    context.progress.note(
        f"prepare: with data.held_out_share {share:g}, by chance none of {total} conversations would be {side}; "
        f"{moved} {'is' if moved == 1 else 'are'} {side} anyway"
    )
    return _statistics(context, paths)[0]
