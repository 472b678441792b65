"""Supervised fine-tuning: the cross-entropy of the supervised tokens.

L = - sum over supervised t of log p(x_t | x_<t)        (Radford et al. 2018, eq. 1, at the assistant's tokens alone)
"""

from collections.abc import Sequence
from typing import Any

import torch

from models.loss import supervised_loss_sum
from models.packing import PackedBatch, pack


class Sft:
    """`models.objectives.Objective`."""

    columns: tuple[str, ...] = ("input_ids", "supervised")
    per_example = False

    def batch(self, rows: Sequence[dict[str, Any]]) -> PackedBatch:
        return pack([(row["input_ids"], row["supervised"]) for row in rows])

    def loss_sum(self, model: Any, batch: PackedBatch) -> tuple[torch.Tensor, dict[str, float]]:
        return supervised_loss_sum(model, batch), {}
