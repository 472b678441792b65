"""What a training minimises, as the loop sees it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from models.packing import PackedBatch


class Loss(Protocol):
    """A sum over supervised tokens, or over examples."""

    def loss_sum(self, model: Any, batch: PackedBatch) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss in nats summed over the batch, a scalar with a gradient; and further sums to be shown by name.

        Every sum divided by `batch.weight` is a mean. The names are the same for every batch.
        """


class Objective(Loss, Protocol):
    """A loss over rows of the corpus."""

    columns: tuple[str, ...]
    """what `batch` reads of a row"""

    per_example: bool
    """whether a row weighs 1 in the mean loss, or as much as it has targets"""

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> PackedBatch:
        """Rows of the corpus as one packed batch."""
