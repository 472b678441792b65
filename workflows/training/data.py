"""The data of a training worker: its rows of every step, and the held-out conversations."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature

from models.base.load import resolve
from models.objectives.base import Objective
from models.objectives.registry import OBJECTIVES
from models.packing import PackedBatch, StepPlan
from models.training.engine import TrainingEngine
from models.training.fit import held_out_batches
from workflows.corpus.files.sources import source_files
from workflows.corpus.reader import Examples, open_examples
from workflows.corpus.rows import CorpusRow
from workflows.spec import ObjectiveSpec, PipelineSpec
from workflows.store import Store
from workflows.training.foresight import check_worker
from workflows.training.steps import step_plan

_MAX_NAMED = 20


@dataclass(frozen=True)
class TrainingData:
    """The rows of both splits, and the rows that each step reads."""

    objective: Objective
    rows: Examples
    held_out: Sequence[CorpusRow]
    """the first ones, together `train.held_out_tokens` tokens"""
    num_tokens: Sequence[int]
    """for each of `rows`, like `num_targets`"""
    num_targets: Sequence[int]
    plan: StepPlan
    micro_batch_parts: int = 1
    """number of parts of each micro-batch"""
    measured: Sequence[PackedBatch] = ()
    """this worker's share of the held-out rows"""

    def read(self, numbers: Sequence[int]) -> PackedBatch:
        """These rows as one batch."""
        return self.objective.batch([self.rows[number] for number in numbers])

    def cut(self, parts: int, batch_tokens: int, engine: TrainingEngine) -> "TrainingData":
        """The same data, with micro-batches and held-out rows in `parts` of `batch_tokens` tokens each."""
        batches = held_out_batches(self.held_out, batch_tokens, engine.rank, engine.num_workers, self.objective.batch)
        return replace(self, micro_batch_parts=parts, measured=list(batches))

    def longest(self, max_tokens: int) -> PackedBatch:
        """The longest conversations that together have at most this many tokens; at least the shortest one."""
        taken, total = [], 0
        for row in self._longest_first:
            if total + self.num_tokens[row] <= max_tokens:
                taken.append(row)
                total += self.num_tokens[row]
        return self.read(taken or self._longest_first[-1:])

    @functools.cached_property
    def _longest_first(self) -> list[int]:
        return sorted(range(len(self.num_tokens)), key=lambda row: -self.num_tokens[row])

    def num_targets_of(self, step: int) -> int:
        """The number of supervised tokens in a step, over all workers."""
        return sum(self.num_targets[row] for part in self.plan.rows(step) for row in part)


def open_data(spec: PipelineSpec, store: Store, keys: Mapping[str, str]) -> TrainingData:
    """The corpus and its reference values, by stage in `keys`; raises RayconteurError if the model lacks tokens."""
    train, objective = spec.train, objective_of(spec.train.objective)
    rows, held_out = (open_examples(store, keys, split, objective.columns) for split in ("train", "held_out"))
    check_worker(spec, resolve(spec.base_model), (rows, held_out))
    num_tokens, num_targets = ([*rows.column(name)] for name in ("num_tokens", "num_targets"))
    plan = step_plan(train, num_tokens, [1] * len(rows) if objective.per_example else num_targets)
    return TrainingData(objective, rows, _first(held_out, train.held_out_tokens), num_tokens, num_targets, plan)


def objective_of(section: ObjectiveSpec) -> Objective:
    """The objective that `train.objective` describes."""
    fields = section.model_dump(include=set(signature(OBJECTIVES[section.name]).parameters))
    return OBJECTIVES[section.name](**fields)


def _first(rows: Examples, max_tokens: int) -> list[CorpusRow]:
    """The first rows that together have this many tokens."""
    taken, tokens = [], 0
    for row in rows:
        if tokens >= max_tokens:
            break
        taken.append(row)
        tokens += row["num_tokens"]
    return taken


def places(rows: Examples, numbers: Sequence[int], spec: PipelineSpec) -> str:
    """The places of the first of these rows, as `file:line`."""
    files = source_files(spec)
    found = sorted({(rows[number]["source"], rows[number]["line"]) for number in numbers})
    names = [f"{files[source].path}:{line}" for source, line in found[:_MAX_NAMED]]
    return ", ".join(names) + (f" and {len(found) - len(names)} more" if len(found) > len(names) else "")
