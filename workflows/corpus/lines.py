"""Read the lines of files, check and encode them: the tasks of `prepare`, which run on all nodes.

files.map_batches(read_lines, ...).map_batches(encode_lines, ...)      # of a ray.data.Dataset
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from models.chat import Message, ReplyCut
from models.chat.messages import SameRole
from models.errors import RayconteurError
from models.files import open_uri, read_file
from workflows.cluster.errors import describe_error, full_traceback
from workflows.corpus.checks import Checks
from workflows.corpus.conversations import mismatched_replies
from workflows.corpus.encoding import Encoding
from workflows.corpus.errors import UnusableLine
from workflows.corpus.example import Example
from workflows.corpus.files.formats import records
from workflows.corpus.files.sources import SourceFile
from workflows.corpus.files.text import Record
from workflows.corpus.rows import CorpusRow, table_of
from workflows.corpus.set_aside import EXCERPT_CHARACTERS
from workflows.corpus.split import HELD_OUT, LEFT_OUT, QUARANTINE, TRAIN
from workflows.spec import PipelineSpec
from workflows.spec.data import FiltersSpec
from workflows.stage import StageFailed
from workflows.store import without_secrets

LINES_PER_BLOCK = 512
TRACEBACK = "\0traceback\0"
"""separates a reason from its traceback"""
_BYTES_PER_BLOCK = 64 << 20

Reading = tuple[dict[str, str], SameRole, str | None]
"""data.fields, data.same_role, data.knowledge"""

Lines = dict[str, list[Any]]
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
        ("num_messages", pa.int32()),
        ("messages", pa.string()),
        ("tools", pa.string()),
        ("group", pa.string()),
        ("language", pa.string()),
        ("private", pa.string()),
        ("flags", pa.string()),
        ("reason", pa.string()),
        ("split", pa.string()),
    ]
)


@dataclass(frozen=True)
class Shared:
    """What the encoding tasks of one corpus have in common."""

    spec: str
    """the pipeline, as JSON"""

    tokenizer: "ray.ObjectRef[Any]"
    words: tuple[str, ...] | None
    """of `data.filters.word_list`"""

    keep: "ray.ObjectRef[Any] | None"
    """the `UserFilter`"""

    paths: Sequence[str]
    """of the files, by the number of each source"""


def read_words(filters: FiltersSpec) -> tuple[str, ...] | None:
    """The entries of `data.filters.word_list`; raises StageFailed."""
    if filters.word_list is None:
        return None
    try:
        words = tuple(read_file(*open_uri(filters.word_list, patient=False)).decode().split("\n"))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StageFailed(
            f"data.filters.word_list: cannot read {without_secrets(filters.word_list)}: {error}"
        ) from error
    if not any(map(str.strip, words)):
        raise StageFailed(f"data.filters.word_list: {without_secrets(filters.word_list)} has no words")
    return words


def read_lines(batch: Mapping[str, np.ndarray], judged: Reading | None, board: Any) -> Iterator[Lines]:
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
        if len(block) == LINES_PER_BLOCK or size >= _BYTES_PER_BLOCK:
            board.add.remote(total=len(block))
            yield _lines_block(source, block, judged, before=[])
            before, block, size = block, [], 0
    if block:
        board.add.remote(total=len(block))
        yield _lines_block(source, block, judged, before)


def _lines_block(source: int, block: list[Record], judged: Reading | None, before: list[Record]) -> Lines:
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


def encode_lines(batch: pa.Table, shared: Shared, board: Any) -> pa.Table:
    """Rows of the corpus, of lines by column; raises StageFailed."""
    encoding, checks = _made_ready(shared.spec, shared.tokenizer, shared.words, shared.keep)
    columns = (batch[name].to_pylist() for name in ("source", "line", "text", "unread", "mismatched"))
    lines = list(zip(*columns, strict=True))
    rows: list[CorpusRow] = [
        {"source": source, "line": line, "num_tokens": 0, "num_targets": 0, "num_messages": 0, "truncated": False}
        for source, line, *_ in lines
    ]
    examples: dict[int, Example] = {}
    for index, (_, _, text, unread, mismatched) in enumerate(lines):
        try:
            if unread:
                raise UnusableLine(unread)
            examples[index] = encoding.read(text, mismatched)
        except ValueError as error:
            rows[index] |= _aside(QUARANTINE, _reason(error), text)
    for index, checked in zip(examples, checks.run(list(examples.values())), strict=True):
        source, line, text, *_ = lines[index]
        row = rows[index]
        row |= checked.row
        try:
            if checked.error is not None:
                raise checked.error
            row |= (
                _aside(LEFT_OUT, checked.left_out, text) if checked.left_out else encoding.row(checked.example, text)
            )
        except ReplyCut as error:
            raise StageFailed(
                f"data.cut_replies: {shared.paths[source]}:{line}: {error}; raise data.max_length, or set "
                "data.cut_replies to cut or drop"
            ) from None
        except ValueError as error:
            row |= _aside(QUARANTINE, _reason(error), text)
    good = sum(row["split"] in (TRAIN, HELD_OUT) for row in rows)
    tokens = sum(row["num_tokens"] for row in rows)
    board.add.remote(done=len(rows), conversations=good, set_aside=len(rows) - good, tokens=tokens)
    return table_of(rows, _SCHEMA)


@functools.lru_cache(maxsize=2)
def _made_ready(
    spec: str, tokenizer: "ray.ObjectRef[Any]", words: tuple[str, ...] | None, keep: "ray.ObjectRef[Any] | None"
) -> tuple[Encoding, Checks]:
    """Cached, so that a process makes them once for all its blocks."""
    data = PipelineSpec.model_validate_json(spec).data
    checks = Checks.of(data.private, data.filters, words, None if keep is None else ray.get(keep))
    return encoding_of(spec, tokenizer), checks


@functools.lru_cache(maxsize=2)
def encoding_of(spec: str, tokenizer: "ray.ObjectRef[Any]") -> Encoding:
    """The settings of a pipeline, as JSON, that decide how lines become rows."""
    pipeline = PipelineSpec.model_validate_json(spec)
    return Encoding(ray.get(tokenizer), pipeline.data, pipeline.train.objective.examples)


def _aside(side: str, reason: str, text: bytes) -> CorpusRow:
    """The columns of a line that is not encoded."""
    return {"split": side, "reason": reason, "messages": text[:EXCERPT_CHARACTERS].decode(errors="replace").strip()}


def _reason(error: ValueError) -> str:
    """The reason to set a line aside; for an error that is not ours, with its traceback, which `_statistics` removes.

    Such a line does not end the run, because one among millions should not.
    """
    if isinstance(error, RayconteurError):
        return str(error)
    return f"{describe_error(error)}{TRACEBACK}{full_traceback(error)}"
