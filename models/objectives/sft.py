"""Supervised fine-tuning: the cross-entropy of the supervised tokens.

L = - sum over supervised t of log p(x_t | x_<t)        (Radford et al. 2018, eq. 1, only at the assistant's tokens)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from models.kernels.loss import supervised_loss_sum
from models.packing import PackedBatch, pack_trees
from models.trees import COLUMNS, tree_of


class Sft:
    """`models.objectives.base.Objective`."""

    columns: tuple[str, ...] = COLUMNS
    per_example = False

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> PackedBatch:
        return pack_trees([tree_of(row) for row in rows])

    def loss_sum(self, model: Any, batch: PackedBatch) -> tuple[torch.Tensor, dict[str, float]]:
        return supervised_loss_sum(model, batch), {}
