"""The interface of losses and objectives."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from models.packing import PackedBatch


class Loss(Protocol):
    """A sum over supervised tokens, or over examples."""

    def loss_sum(self, model: Any, batch: PackedBatch) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss in nats summed over the batch, a scalar with a gradient; and further sums to report, by name.

        Dividing a sum by `batch.weight` gives a mean. The names are the same for every batch.
        """


class Objective(Loss, Protocol):
    """A loss over rows of the corpus."""

    columns: tuple[str, ...]
    """the columns of a row that `batch` reads"""

    per_example: bool
    """whether a row's weight in the mean loss is 1, or its number of targets"""

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> PackedBatch:
        """Rows of the corpus as one packed batch."""
