"""A worker that scores conversations and answers prompts, with the base model and the tuned one."""

import itertools
import json
from dataclasses import dataclass
from typing import Any, TypedDict

import pyarrow as pa

from models.chat import Conversation
from workflows.corpus.rows import CorpusRow
from workflows.store import Store

SCORED_SCHEMA = pa.schema(
    [
        ("question", pa.int32()),  # -1 for a conversation that is scored
        ("input_ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),
        ("piece_lengths", pa.list_(pa.int32())),
        ("piece_parents", pa.list_(pa.int32())),
        ("other_input_ids", pa.list_(pa.int32())),  # of a pair, with its rejected reply
        ("other_supervised", pa.list_(pa.bool_())),
        ("desirable", pa.bool_()),
        ("messages", pa.string()),
        ("tools", pa.string()),
        ("source", pa.int32()),
        ("language", pa.string()),
    ]
)


class ScoredRow(CorpusRow, total=False):
    """A conversation to score, or a prompt to reply to."""

    question: int
    """index among the prompts; -1 for a conversation to score"""


class ScoreRow(TypedDict, total=False):
    """A worker's result for several scored conversations, or for one prompt."""

    question: int
    """as above"""
    base_loss: float
    """in nats, summed over `targets` tokens"""
    tuned_loss: float
    targets: int
    source: int
    """index of their file, as in the corpus"""
    language: str | None
    margins: list[float] | None
    """for pairs, each one's reward margin"""
    base_reply: str
    tuned_reply: str


@dataclass(frozen=True)
class ScoringSettings:
    """The configuration of a worker."""

    store: str
    checkpoint: str
    """the key of `train`'s artifact"""
    base_model: str
    precision: str
    threads: float
    gpus: float
    max_new_tokens: int


class ScoringWorker:
    """A worker with both models in memory, which scores conversations and replies to prompts."""

    def __init__(self, settings: ScoringSettings, board: Any) -> None:
        import torch

        from models.base.load import resolve
        from models.base.precision import dtype_of
        from models.measures.base_and_tuned import BaseAndTuned

        torch.set_num_threads(max(1, int(settings.threads)))
        folder = Store(settings.store).local_folder("train", settings.checkpoint, "model")
        device = "cuda" if settings.gpus else "cpu"
        dtype = dtype_of(settings.precision, device)
        self._pair = BaseAndTuned(resolve(settings.base_model), folder, dtype, device)
        self._max_new_tokens = settings.max_new_tokens
        self._board = board

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The results of base and tuned model: loss sums with their targets, or replies."""
        rows: list[ScoredRow] = batch.to_pylist()
        scored = [row for row in rows if row["question"] < 0 and row["desirable"] is not False]
        asked = [row for row in rows if row["question"] >= 0]
        scored.sort(key=_part)
        parts = itertools.groupby(scored, _part)
        results: list[ScoreRow] = [
            {**self._score(list(rows)), "source": source, "language": language or None}
            for (source, language), rows in parts
        ]
        if asked:
            conversations = [
                Conversation(json.loads(row["messages"]), json.loads(row["tools"]) if row["tools"] else None)
                for row in asked
            ]
            base, tuned = self._pair.replies(conversations, self._max_new_tokens)
            results += [
                {"question": row["question"], "base_reply": before, "tuned_reply": after}
                for row, before, after in zip(asked, base, tuned, strict=True)
            ]
        self._board.add.remote(done=len(rows))
        return pa.Table.from_pylist(results, schema=_RESULT_SCHEMA)

    def _score(self, rows: list[ScoredRow]) -> ScoreRow:
        from models.objectives.preference import pack_both
        from models.packing import pack_trees
        from models.trees import tree_of

        if rows[0]["desirable"] is None and rows[0]["other_input_ids"] is not None:
            batch = pack_both(rows)
            base, tuned = (log_p.view(-1, 2) for log_p in self._pair.log_probabilities(batch))
            ratios = tuned - base
            return {
                "question": -1,
                "base_loss": -float(base[:, 0].sum()),
                "tuned_loss": -float(tuned[:, 0].sum()),
                "targets": int((batch.target_sequences % 2 == 0).sum()),
                "margins": (ratios[:, 0] - ratios[:, 1]).tolist(),
            }
        batch = pack_trees([tree_of(row) for row in rows])
        base_loss, tuned_loss = self._pair.loss_sums(batch)
        return {"question": -1, "base_loss": base_loss, "tuned_loss": tuned_loss, "targets": len(batch.targets)}


def _part(row: ScoredRow) -> tuple[int, str]:
    """The part of the corpus to which a row belongs: the loss of each is told apart."""
    return row["source"], row["language"] or ""


_RESULT_SCHEMA = pa.schema(
    [
        ("question", pa.int32()),
        ("base_loss", pa.float64()),
        ("tuned_loss", pa.float64()),
        ("targets", pa.int64()),
        ("source", pa.int32()),
        ("language", pa.string()),
        ("margins", pa.list_(pa.float64())),
        ("base_reply", pa.string()),
        ("tuned_reply", pa.string()),
    ]
)
