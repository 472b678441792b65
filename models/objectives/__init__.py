"""What training minimises: one file each, one interface.

objective = OBJECTIVES["dpo"](beta=0.2)
batch = objective.batch(rows)
loss_sum, figures = objective.loss_sum(model, batch)
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from models.objectives.adversarial import Generate
from models.objectives.distill import Distill
from models.objectives.preference import Dpo, Kto, Orpo, Simpo
from models.objectives.sft import Sft
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

    def batch(self, rows: Sequence[dict[str, Any]]) -> PackedBatch:
        """Rows of the corpus as one packed batch."""


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "sft": Sft,
    "dpo": Dpo,
    "orpo": Orpo,
    "kto": Kto,
    "simpo": Simpo,
    "distill": Distill,
    "distill_replies": Sft,
    "adversarial": Generate,
    "spin": Dpo,
}
"""by their name in a pipeline file; each takes its section's fields as keyword arguments"""
