"""The data of a training worker: its rows of every step, and the held-out conversations."""

import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from inspect import signature

from models.base.load import resolve
from models.mixture import Mixture
from models.objectives.base import Objective
from models.objectives.registry import OBJECTIVES
from models.packing import PackedBatch, StepPlan
from models.text.language import UNDETERMINED
from models.training.engine import TrainingEngine
from models.training.fit import HeldOut, held_out_batches
from workflows.corpus.files.sources import source_files
from workflows.corpus.reader import Examples, open_examples
from workflows.corpus.rows import CorpusRow
from workflows.spec import DataSpec, ObjectiveSpec, PipelineSpec
from workflows.store import Store
from workflows.training.foresight import check_worker
from workflows.training.inputs import TrainingInputs
from workflows.training.steps import entries_of_rows, mixture_of, part_names, step_plan

_MAX_NAMED = 20
_ROUNDING = 1e-6


@dataclass(frozen=True)
class TrainingData:
    """The rows of both splits, and the rows that each step reads."""

    objective: Objective
    rows: Examples
    held_out: Sequence[CorpusRow]
    """the first ones of each source, together `train.held_out_tokens` tokens"""
    labels: Sequence[tuple[str, ...]]
    """of each of `held_out` the parts of the corpus whose loss is reported apart: its source, its language"""
    num_tokens: Sequence[int]
    """for each of `rows`, like `num_targets`"""
    num_targets: Sequence[int]
    plan: StepPlan
    mixture: Mixture | None
    """how often an epoch reads each of `rows`; None: once"""
    micro_batch_parts: int = 1
    """number of parts of each micro-batch"""
    measured: HeldOut = field(default_factory=lambda: HeldOut(()))
    """this worker's share of the held-out rows"""

    def read(self, numbers: Sequence[int]) -> PackedBatch:
        """These rows as one batch."""
        return self.objective.batch([self.rows[number] for number in numbers])

    def cut(self, parts: int, batch_tokens: int, engine: TrainingEngine) -> "TrainingData":
        """The same data, with micro-batches and held-out rows in `parts` of `batch_tokens` tokens each."""
        batches: list[PackedBatch] = []
        labels: list[tuple[str, ...]] = []
        for label, rows in _by_label(self.held_out, self.labels, least=engine.num_workers).items():
            found = held_out_batches(rows, batch_tokens, engine.rank, engine.num_workers, self.objective.batch)
            batches += found
            labels += [label] * (len(batches) - len(labels))
        return replace(self, micro_batch_parts=parts, measured=HeldOut(batches, labels))

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


def open_data(spec: PipelineSpec, store: Store, inputs: TrainingInputs) -> TrainingData:
    """The corpus and its reference values; raises RayconteurError if the model lacks tokens."""
    train, objective = spec.train, objective_of(spec.train.objective)
    columns = [*objective.columns, "language"]
    rows, held_out = (open_examples(store, inputs.keys, split, columns) for split in ("train", "held_out"))
    check_worker(spec, resolve(spec.base_model), (rows, held_out))
    num_tokens, num_targets = ([*rows.column(name)] for name in ("num_tokens", "num_targets"))
    mixture = mixture_of(spec.data, inputs.entries, rows.column("source"), num_tokens)
    plan = step_plan(train, num_tokens, [1] * len(rows) if objective.per_example else num_targets, mixture)
    entries = entries_of_rows(inputs.entries, held_out.column("source")).tolist()
    taken = _first(held_out, entries, train.held_out_tokens)
    measured = [held_out[number] for number in taken]
    labels = _labels([entries[number] for number in taken], measured, spec.data)
    return TrainingData(objective, rows, measured, labels, num_tokens, num_targets, plan, mixture)


def objective_of(section: ObjectiveSpec) -> Objective:
    """The objective that `train.objective` describes."""
    fields = section.model_dump(include=set(signature(OBJECTIVES[section.name]).parameters))
    return OBJECTIVES[section.name](**fields)


def _first(rows: Examples, entries: Sequence[int], max_tokens: int) -> list[int]:
    """The numbers of the first rows of each source that have together as many tokens as is its share of this many."""
    num_tokens = rows.column("num_tokens")
    total = sum(num_tokens)
    left: dict[int, float] = {}
    for entry, tokens in zip(entries, num_tokens, strict=True):
        left[entry] = left.get(entry, 0.0) + tokens * min(1.0, max_tokens / total)
    taken = []
    for number, (entry, tokens) in enumerate(zip(entries, num_tokens, strict=True)):
        if left[entry] > _ROUNDING:
            taken.append(number)
            left[entry] -= tokens
    return taken


def _labels(entries: Sequence[int], rows: Sequence[CorpusRow], data: DataSpec) -> list[tuple[str, ...]]:
    """The source and the language of each row, if there are several, as parts of the names of figures."""
    names = part_names(data)
    languages = [row.get("language") or UNDETERMINED for row in rows]
    several = len(set(entries)) > 1, len(set(languages)) > 1
    found = zip((names[entry] for entry in entries), (f"language_{each}" for each in languages), strict=True)
    return [tuple(itertools.compress(each, several)) for each in found]


def _by_label(
    rows: Sequence[CorpusRow], labels: Sequence[tuple[str, ...]], least: int
) -> dict[tuple[str, ...], list[CorpusRow]]:
    """The rows of each label; those of labels with fewer than `least` rows have none."""
    counts = Counter(labels)
    found: dict[tuple[str, ...], list[CorpusRow]] = {}
    for row, label in zip(rows, labels, strict=True):
        found.setdefault(label if counts[label] >= least else (), []).append(row)
    return found


def places(rows: Examples, numbers: Sequence[int], spec: PipelineSpec) -> str:
    """The places of the first of these rows, as `file:line`."""
    files = source_files(spec)
    found = sorted({(rows[number]["source"], rows[number]["line"]) for number in numbers})
    names = [f"{files[source].path}:{line}" for source, line in found[:_MAX_NAMED]]
    return ", ".join(names) + (f" and {len(found) - len(names)} more" if len(found) > len(names) else "")
