"""Cross-entropy at the supervised positions of a packed batch."""

from typing import Any

import torch
import torch.nn.functional as F

from models.packing import PackedBatch


def supervised_loss_sum(model: Any, batch: PackedBatch) -> torch.Tensor:
    """Sum over the targets of -log p(target | what is before it in its conversation), in nats, as a scalar.

    The model must use `models.packing.PACKED_ATTENTION`. Logits exist at the S predicting positions alone; the
    sum is taken in float32.
    """
    output = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        sequence_lengths=batch.sequence_lengths,
        logits_to_keep=batch.predictors,
        use_cache=False,
    )
    return F.cross_entropy(output.logits[0].float(), batch.targets, reduction="sum")
