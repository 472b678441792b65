"""The number of optimizer steps of a training, and the rows that each of them reads."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from workflows.spec import TrainSpec
from workflows.store import Store

if TYPE_CHECKING:
    from models.packing import StepPlan  # at run time it would import torch


def step_plan(train: TrainSpec, lengths: Sequence[int], weights: Sequence[int]) -> "StepPlan":
    """The rows that every step reads, for rows of these lengths and weights."""
    from models.packing import StepPlan

    return StepPlan(
        lengths, weights, train.pass_tokens, train.max_workers, gradient_accumulation=train.passes, seed=train.seed
    )


def num_steps(train: TrainSpec, steps_per_epoch: int) -> int:
    """The number of optimizer steps for `epochs` and `max_steps`."""
    steps = max(1, round(train.epochs * steps_per_epoch))
    return min(steps, train.max_steps) if train.max_steps else steps


def steps_per_epoch(train: TrainSpec, store: Store, key: str) -> int:
    """Steps per epoch over the corpus `key`, packed as in training; reads only the lengths of its rows."""
    from workflows.corpus.reader import corpus_files

    lengths = corpus_files(store, key, "train").to_table(columns=["num_tokens"])["num_tokens"].to_numpy()
    return step_plan(train, lengths, lengths).steps_per_epoch
