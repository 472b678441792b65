"""How many optimizer steps a training takes, and which rows each of them reads."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from workflows.spec import TrainSpec
from workflows.store import Store

if TYPE_CHECKING:
    from models.packing import StepPlan  # at run time it would import torch


def step_plan(train: TrainSpec, lengths: Sequence[int], weights: Sequence[int]) -> "StepPlan":
    """Which rows of the corpus, of these lengths and weights, every step reads."""
    from models.packing import StepPlan

    return StepPlan(
        lengths, weights, train.pass_tokens, train.max_workers, gradient_accumulation=train.passes, seed=train.seed
    )


def num_steps(train: TrainSpec, steps_per_epoch: int) -> int:
    """Optimizer steps that `epochs` and `max_steps` come to."""
    steps = max(1, round(train.epochs * steps_per_epoch))
    return min(steps, train.max_steps) if train.max_steps else steps


def steps_per_epoch(train: TrainSpec, store: Store, key: str) -> int:
    """Steps over the corpus `key`, packed as training will pack it; of the corpus only the lengths are read."""
    from workflows.corpus.reader import corpus_files

    lengths = corpus_files(store, key, "train").to_table(columns=["num_tokens"])["num_tokens"].to_numpy()
    return step_plan(train, lengths, lengths).steps_per_epoch
