"""What a training says of itself: the progress of every step, and a report at every checkpoint. Imports no torch."""

from dataclasses import dataclass, field

PACKED = "packed"
"""a figure of a report: 1 if the training has shared its passes with others, which enter its time and its memory"""


@dataclass(frozen=True)
class Progress:
    """One optimizer step, over all workers; the loss in nats per supervised token or per example."""

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    gradient_norm: float | None
    """before clipping; None where it was not computed"""
    skipped: bool
    """whether the step was not applied, because its loss or gradient was no finite number or its loss a spike"""
    num_tokens: int
    """tokens read since the start of training, all workers together"""
    tokens_per_second: float
    """since this process began to train"""
    figures: dict[str, float] = field(default_factory=dict)
    """what else the objective says of the step"""


@dataclass
class Report:
    """The figures of a training at one of its checkpoints: one type from the training loop to a search's table."""

    step: int
    num_steps: int
    """that the whole training takes"""
    figures: dict[str, float]
    """held_out_loss and the like, loss, seconds (of training, since its start), peak_memory_gb"""
    checkpoint: str | None = None
    """name of its folder in the trial's; None where there is none, or it is deleted"""
