"""Cross-entropy at the supervised positions of a packed batch."""

from typing import Any

import torch
import torch.nn.functional as F

from models.packing import PackedBatch


def supervised_logits(model: Any, batch: PackedBatch) -> torch.Tensor:
    """float32 [S, vocabulary]: logits at the predicting positions of the batch, and at no others.

    The model must use `models.packing.PACKED_ATTENTION`.
    """
    output = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        sequence_lengths=batch.sequence_lengths,
        logits_to_keep=batch.predictors,
        use_cache=False,
    )
    logits: torch.Tensor = output.logits[0].float()
    return logits


def supervised_loss_sum(model: Any, batch: PackedBatch) -> torch.Tensor:
    """Sum over the targets of -log p(target | what is before it in its conversation), in nats, as a scalar."""
    return F.cross_entropy(supervised_logits(model, batch), batch.targets, reduction="sum")
