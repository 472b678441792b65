"""reference: computes the objective's reference values once, with Ray Data.

    rayconteur reference PIPELINE

Runs only for `train.objective` dpo and kto (the log-probabilities of both replies of every row under the base model),
distill (the teacher's most likely tokens at every supervised position), distill_replies (the rows with the teacher's
reply in place of their last one) and spin (each row's last reply, and one drawn from the base model, with the values
that dpo needs for both).

Writes to the store: `values/split=train` and `values/split=held_out` (Parquet: source, line, and the values), which
training reads with the corpus.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import ray.data

from models.trees import COLUMNS
from workflows.cluster.board import watching
from workflows.cluster.workers import check_fits, worker_environment
from workflows.corpus.reader import corpus_files
from workflows.corpus.rows import CorpusRow
from workflows.figures import PrepareFigures, ReferenceFigures
from workflows.record import JsonObject
from workflows.spec import DistillRepliesSpec, DistillSpec, PipelineSpec, SpinSpec, TeacherSpec
from workflows.spec.train import AUTO_TOKENS
from workflows.stage import Context, StageFailed
from workflows.store import Store

_ROWS_AT_ONCE = 64
_NEEDED = {
    "log_probabilities": ["input_ids", "supervised", "other_input_ids", "other_supervised"],
    "top_tokens": [*COLUMNS],
    "replies": [*COLUMNS],
    "own_replies": [*COLUMNS],
}
_SCHEMAS = {
    "log_probabilities": [
        ("reference_log_probability", pa.float32()),
        ("other_reference_log_probability", pa.float32()),
    ],
    "top_tokens": [
        ("teacher_tokens", pa.list_(pa.int32())),
        ("teacher_log_probabilities", pa.list_(pa.float32())),
    ],
    "replies": [
        ("input_ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),
        ("piece_lengths", pa.list_(pa.int32())),
        ("piece_parents", pa.list_(pa.int32())),
        ("num_tokens", pa.int32()),
        ("num_targets", pa.int32()),
    ],
}
_SCHEMAS["own_replies"] = [
    *_SCHEMAS["replies"],
    ("other_input_ids", pa.list_(pa.int32())),
    ("other_supervised", pa.list_(pa.bool_())),
    *_SCHEMAS["log_probabilities"],
]


def run(context: Context) -> ReferenceFigures:
    """Compute the values of all rows on the cluster's workers; returns their number."""
    spec, store, train = context.spec, context.store, context.spec.train
    check_fits(spec, ["reference"], context.progress)
    _check_model(spec)
    store.clear("reference", context.key)
    corpus = PrepareFigures.from_json(context.inputs["prepare"].figures)
    num_rows = corpus.conversations + corpus.held_out_conversations
    computes = train.objective.reference
    with watching(context.progress, "conversations", total=num_rows) as board:
        # Reading and writing request no CPU, because the workers may take all.
        # (`read_parquet` always requests one to list files.)
        (
            ray.data.from_items(_row_groups(context))
            .map_batches(
                _read_rows,
                batch_size=1,
                fn_kwargs={"store": store.uri, "columns": [*_NEEDED[computes], "num_tokens"]},
                num_cpus=0,
            )
            .map_batches(
                ReferenceModel,
                fn_constructor_kwargs={"spec": spec.model_dump(), "board": board},
                batch_size=_ROWS_AT_ONCE,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=train.min_workers),
                num_cpus=train.cpus_per_worker,
                num_gpus=train.gpus_per_worker or None,
                runtime_env={"env_vars": worker_environment(train.cpus_per_worker, train.gpus_per_worker)},
            )
            .write_parquet(
                store.path("reference", context.key, "values"),
                filesystem=store.filesystem,
                partition_cols=["split"],
                ray_remote_args={"num_cpus": 0},
            )
        )
    return ReferenceFigures(conversations=num_rows)


def _row_groups(context: Context) -> list[dict[str, str | int]]:
    """The row groups of both splits' Parquet files."""
    found: list[dict[str, str | int]] = []
    for split in ("train", "held_out"):
        files = corpus_files(context.store, context.inputs["prepare"].key, split)
        for fragment in files.get_fragments():
            for index in range(fragment.num_row_groups):
                found.append({"split": split, "path": fragment.path, "row_group": index})
    return found


def _read_rows(batch: Mapping[str, np.ndarray], store: str, columns: list[str]) -> Iterator[pa.Table]:
    path, index, split = str(batch["path"][0]), int(batch["row_group"][0]), str(batch["split"][0])
    with pyarrow.parquet.ParquetFile(path, filesystem=Store(store).filesystem) as file:
        for part in file.iter_batches(_ROWS_AT_ONCE, row_groups=[index], columns=["source", "line", *columns]):
            table = pa.Table.from_batches([part])
            yield table.append_column("split", pa.array([split] * len(table)))


def _check_model(spec: PipelineSpec) -> None:
    """Raise StageFailed if the teacher cannot be compared with the base model; otherwise both are on this machine."""
    from models.base.load import BaseModelError, load_tokenizer, resolve
    from models.base.sizes import describe

    base = resolve(spec.base_model)
    objective = spec.train.objective
    if not isinstance(objective, TeacherSpec):
        return
    try:
        teacher = resolve(objective.teacher)
    except BaseModelError as error:
        raise StageFailed(str(error).replace("base_model:", "train.objective.teacher:", 1)) from None
    if load_tokenizer(teacher).get_vocab() != load_tokenizer(base).get_vocab():
        raise StageFailed(
            f"train.objective.teacher: the tokens of {objective.teacher} are not those of base_model "
            f"{spec.base_model}; give a teacher with the same tokenizer"
        )
    most = min(describe(teacher)["vocab_size"], describe(base)["vocab_size"])
    if isinstance(objective, DistillSpec) and objective.top_k > most:
        raise StageFailed(f"train.objective.top_k: got {objective.top_k}; the vocabulary has {most} tokens")


class ReferenceModel:
    """A worker with the base model or the teacher in memory."""

    def __init__(self, spec: JsonObject, board: Any) -> None:
        import torch

        from models.base.load import load_model, resolve
        from models.base.new_tokens import fit_embeddings
        from models.base.precision import dtype_of
        from models.base.sizes import describe
        from models.chat import end_token_ids
        from models.kernels.attention import PACKED_ATTENTION
        from models.kernels.loss import fuse_head
        from workflows.corpus.chat_tokenizer import chat_tokenizer

        pipeline = PipelineSpec.model_validate(spec)
        train = pipeline.train
        torch.set_num_threads(max(1, int(train.cpus_per_worker)))
        self._objective = train.objective
        self._micro_batch_tokens = AUTO_TOKENS if train.batch_tokens == "auto" else train.batch_tokens
        self._vocabulary = describe(resolve(pipeline.base_model))["vocab_size"]
        self._board = board
        name = self._objective.teacher if isinstance(self._objective, TeacherSpec) else pipeline.base_model
        device = "cuda" if train.gpus_per_worker else "cpu"
        attention = None if self._objective.reference == "replies" else PACKED_ATTENTION
        self._model = load_model(resolve(name), dtype_of(train.precision, device), attention).to(device)
        if pipeline.data.new_tokens:
            fit_embeddings(self._model, resolve(pipeline.base_model), chat_tokenizer(pipeline))
        if attention == PACKED_ATTENTION:
            fuse_head(self._model)
        if "replies" in self._objective.reference:
            self._end_tokens = sorted(end_token_ids(chat_tokenizer(pipeline)))

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """The values of the rows, as one table per micro-batch."""
        schema = pa.schema(
            [
                ("source", pa.int32()),
                ("line", pa.int64()),
                ("split", pa.string()),
                *_SCHEMAS[self._objective.reference],
            ]
        )
        for rows in _micro_batches(batch.to_pylist(), self._micro_batch_tokens):
            place = {
                "source": [row["source"] for row in rows],
                "line": [row["line"] for row in rows],
                "split": [row["split"] for row in rows],
            }
            yield pa.table({**place, **self._values(rows)}, schema=schema)
            self._board.add.remote(done=len(rows), tokens=sum(row["num_tokens"] for row in rows))

    def _values(self, rows: list[CorpusRow]) -> dict[str, list[Any]]:
        import torch

        from models.objectives.distill import teacher_replies, teacher_values
        from models.objectives.preference import reference_values
        from models.objectives.spin import own_pairs

        with torch.inference_mode():
            if isinstance(self._objective, DistillSpec):
                return teacher_values(self._model, rows, self._objective.top_k, self._vocabulary)
            if isinstance(self._objective, DistillRepliesSpec):
                most = self._objective.max_reply_tokens
                return teacher_replies(self._model, rows, most, self._end_tokens)
            if isinstance(self._objective, SpinSpec):
                seeds = [(row["source"], row["line"]) for row in rows]
                return own_pairs(self._model, rows, self._objective.max_reply_tokens, self._end_tokens, seeds)
            return reference_values(self._model, rows)


def _micro_batches(rows: list[CorpusRow], max_tokens: int) -> Iterator[list[CorpusRow]]:
    """Rows in their order, in groups of at most this many tokens; a longer row is its own group."""
    taken: list[CorpusRow] = []
    tokens = 0
    for row in rows:
        if taken and tokens + row["num_tokens"] > max_tokens:
            yield taken
            taken, tokens = [], 0
        taken.append(row)
        tokens += row["num_tokens"]
    if taken:
        yield taken
