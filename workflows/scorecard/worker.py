"""A worker that scores conversations and asks questions, with the base model and the tuned one."""

import json
from typing import Any

import pyarrow as pa

from models.chat import Conversation
from workflows.store import Store

SCORED_SCHEMA = pa.schema(
    [
        ("question", pa.int32()),  # -1 for a conversation that is scored
        ("input_ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),
        ("piece_lengths", pa.list_(pa.int32())),
        ("piece_parents", pa.list_(pa.int32())),
        ("other_input_ids", pa.list_(pa.int32())),  # the rejected reply of a pair
        ("other_supervised", pa.list_(pa.bool_())),
        ("desirable", pa.bool_()),
        ("messages", pa.string()),
        ("tools", pa.string()),
    ]
)


class ScoringWorker:
    """One worker: both models in memory, scoring conversations and replying to prompts."""

    def __init__(
        self,
        store: str,
        checkpoint: str,
        base_model: str,
        precision: str,
        threads: float,
        gpus: float,
        max_new_tokens: int,
        board: Any,
    ) -> None:
        import torch

        from models.base.load import resolve
        from models.base.precision import dtype_of
        from models.measures.base_and_tuned import BaseAndTuned

        torch.set_num_threads(max(1, int(threads)))
        folder = Store(store).local_folder("train", checkpoint, "model")
        device = "cuda" if gpus else "cpu"
        self._pair = BaseAndTuned(resolve(base_model), folder, dtype_of(precision, device), device)
        self._max_new_tokens = max_new_tokens
        self._board = board

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows of base and tuned: loss sums with their targets, or replies."""
        rows = batch.to_pylist()
        scored = [row for row in rows if row["question"] < 0 and row["desirable"] is not False]
        asked = [row for row in rows if row["question"] >= 0]
        results = [self._score(scored)] if scored else []
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

    def _score(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
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


_RESULT_SCHEMA = pa.schema(
    [
        ("question", pa.int32()),
        ("base_loss", pa.float64()),
        ("tuned_loss", pa.float64()),
        ("targets", pa.int64()),
        ("margins", pa.list_(pa.float64())),
        ("base_reply", pa.string()),
        ("tuned_reply", pa.string()),
    ]
)
