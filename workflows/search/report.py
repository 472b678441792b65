"""The figures of a training at one of its checkpoints: one type from the worker to the table."""

from dataclasses import dataclass


@dataclass
class Report:
    """What a training reports at a checkpoint."""

    step: int
    num_steps: int
    """that the whole training takes"""
    figures: dict[str, float]
    """held_out_loss and the like, loss, seconds (of training, since its start), peak_memory_gb"""
    checkpoint: str | None
    """name of the folder beside trial.json; None where there is none, or it is deleted"""
