"""The number of optimizer steps of a training, and the rows that each of them reads."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workflows.spec import DataSpec, PipelineSpec, TrainSpec
from workflows.store import Store
from workflows.training.inputs import TrainingInputs

if TYPE_CHECKING:
    from models.mixture import Mixture
    from models.packing import StepPlan  # at run time it would import torch

# A pass of this many tokens uses a machine as well as a longer one (benchmarks/packed_trials.py).
PASS_TOKENS = 1024


def step_plan(
    train: TrainSpec, lengths: Sequence[int], weights: Sequence[int], mixture: "Mixture | None" = None
) -> "StepPlan":
    """The rows that every step reads, for rows of these lengths and weights."""
    from models.packing import StepPlan

    return StepPlan(
        lengths, weights, train.pass_tokens, train.max_workers, gradient_accumulation=train.passes, seed=train.seed,
        mixture=mixture,
    )  # fmt: skip


def mixture_of(data: DataSpec, entries: Sequence[int], files: Any, num_tokens: Sequence[int]) -> "Mixture | None":
    """How often an epoch reads each row, for rows of these files; None: each once. `entries`: `TrainingInputs`."""
    if (fields := data.mixture_fields()) is None:
        return None
    from models.mixture import Mixture, MixtureSettings

    settings = MixtureSettings(
        {index: weight for index, weight in enumerate(fields["weights"]) if weight is not None},
        {index: repeat for index, repeat in enumerate(fields["repeats"]) if repeat is not None},
        fields["temperature"],
    )
    return Mixture.of(entries_of_rows(entries, files), num_tokens, settings)


def entries_of_rows(entries: Sequence[int], files: Any) -> Any:
    """(N,) the number in `data.sources` of each row, for rows of these files. `entries`: `TrainingInputs`."""
    import numpy as np

    files = np.asarray(files)
    return np.asarray(entries)[files] if entries else np.zeros_like(files)


def part_names(data: DataSpec) -> list[str]:
    """The name of each source in the names of figures, as in `held_out_loss_<name>`."""
    return [re.sub(r"[^\w.-]+", "_", source.shown_name) for source in data.sources]


def num_steps(train: TrainSpec, steps_per_epoch: int) -> int:
    """The number of optimizer steps for `epochs` and `max_steps`."""
    steps = max(1, round(train.epochs * steps_per_epoch))
    return min(steps, train.max_steps) if train.max_steps else steps


def steps_per_epoch(spec: PipelineSpec, store: Store, inputs: TrainingInputs) -> int:
    """Steps per epoch over the corpus, packed as in training."""
    lengths, files = lengths_and_files(store, inputs)
    mixture = mixture_of(spec.data, inputs.entries, files, lengths)
    return step_plan(spec.train, lengths, lengths, mixture).steps_per_epoch


def lengths_and_files(store: Store, inputs: TrainingInputs) -> tuple[Any, Any]:
    """(N,) the tokens and (N,) the file of each row to train on; reads nothing else of the corpus."""
    from workflows.corpus.reader import corpus_files

    rows = corpus_files(store, inputs.keys["prepare"], "train").to_table(columns=["num_tokens", "source"])
    return rows["num_tokens"].to_numpy(), rows["source"].to_numpy()
