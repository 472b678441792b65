"""Conversations packed into micro-batches without padding; each attends only to itself.

    plan = StepPlan(num_tokens, weights, micro_batch_tokens=2048, num_workers=2, gradient_accumulation=1, seed=0)
    rows = plan.micro_batches(step=17, worker=0, num_workers=2)      # lists of row numbers
    batch = pack([(input_ids, supervised), ...])

Shape suffixes: T tokens in a micro-batch, S of them predicted ("targets"), C conversations.
"""

import functools
import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from models.errors import RayconteurError
from models.mixture import Mixture
from models.trees import Tree

_EPOCHS_COUNTED = 4
Conversation = tuple[Sequence[int], Sequence[bool]]
"""(input_ids, supervised) of one conversation"""


@dataclass(frozen=True)
class PackedBatch:
    """Whole conversations in one row, the model's input."""

    input_ids: torch.Tensor
    """int64 [1, T]"""
    position_ids: torch.Tensor
    """int64 [1, T]; starts at 0 with every conversation"""
    sequence_lengths: list[int]
    """tokens of each piece of the row, a conversation or a part of it; their sum is T"""
    prefixes: list[int]
    """for each piece the earlier piece that it continues; -1 if it starts a conversation.
    Empty if all pieces start one"""
    predictors: torch.Tensor
    """int64 [S]: the positions that predict a supervised token"""
    target_positions: torch.Tensor
    """int64 [S]: the positions of those tokens; mostly the next ones"""
    targets: torch.Tensor
    """int64 [S]: those tokens"""
    target_sequences: torch.Tensor
    """int64 [S]: which conversation of the batch each target belongs to, from 0 to C - 1"""
    num_sequences: int
    """C"""
    weight: int
    """the divisor of a mean over the batch: the number of targets or of examples"""
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    """further tensors of the objective, by name"""

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch on another device."""
        move = functools.partial(torch.Tensor.to, device=device, non_blocking=True)
        return replace(
            self,
            input_ids=move(self.input_ids),
            position_ids=move(self.position_ids),
            predictors=move(self.predictors),
            target_positions=move(self.target_positions),
            targets=move(self.targets),
            target_sequences=move(self.target_sequences),
            values={name: move(value) for name, value in self.values.items()},
        )


def pack(
    conversations: Sequence[Conversation], weight: int | None = None, values: dict[str, torch.Tensor] | None = None
) -> PackedBatch:
    """Conversations, each as (input_ids, supervised), as one packed batch; its weight is the number of targets.

    The first token of a conversation is never a target.
    """
    return pack_trees([Tree([ids], [-1], [supervised]) for ids, supervised in conversations], weight, values)


def pack_trees(
    conversations: Sequence[Tree], weight: int | None = None, values: dict[str, torch.Tensor] | None = None
) -> PackedBatch:
    """Conversations as one packed batch, their pieces in the order given; the weight is the number of targets."""
    pieces = [piece for tree in conversations for piece in tree.pieces]
    parents: list[int] = []
    for tree in conversations:
        begin = len(parents)
        parents += [begin + parent if parent >= 0 else -1 for parent in tree.parents]
    supervised = [marks for tree in conversations for marks in tree.supervised]
    owners = [number for number, tree in enumerate(conversations) for _ in tree.pieces]
    batch = _packed(pieces, parents, supervised, owners, len(conversations), values)
    return batch if weight is None else replace(batch, weight=weight)


def pack_replies(
    exchanges: Sequence[tuple[Sequence[int], Sequence[int], Sequence[bool]]],
    weight: int | None = None,
    values: dict[str, torch.Tensor] | None = None,
) -> PackedBatch:
    """Conversations as one packed batch, each as (history, reply, which of the reply's tokens are supervised); the
    weight is the number of supervised tokens. Neighbours with the same history share it in the row.
    """
    pieces: list[Sequence[int]] = []
    parents: list[int] = []
    marks: list[Sequence[bool]] = []
    owners: list[int] = []
    for number, (history, reply, supervised) in enumerate(exchanges):
        if len(history) and (not number or list(history) != list(exchanges[number - 1][0])):
            common = len(pieces)
            pieces.append(history)
            parents.append(-1)
            marks.append([False] * len(history))
            owners.append(number)
        pieces.append(reply)
        parents.append(common if len(history) else -1)
        marks.append(supervised)
        owners.append(number)
    batch = _packed(pieces, parents, marks, owners, len(exchanges), values)
    return replace(batch, weight=len(exchanges) if weight is None else weight)


def side_by_side(batches: Sequence[PackedBatch]) -> PackedBatch:
    """All batches as one row, each with its own conversations; without `values`, and with the sum of the weights."""
    if len(batches) == 1:
        return batches[0]
    starts = [0, *accumulate(sum(batch.sequence_lengths) for batch in batches)]
    pieces = [0, *accumulate(len(batch.sequence_lengths) for batch in batches)]
    owners = [0, *accumulate(batch.num_sequences for batch in batches)]
    prefixes = [
        first + prefix if prefix >= 0 else -1
        for first, batch in zip(pieces, batches, strict=False)
        for prefix in batch.prefixes or [-1] * len(batch.sequence_lengths)
    ]

    def joined(name: str, offsets: Sequence[int] | None = None, dim: int = 0) -> torch.Tensor:
        parts = [getattr(batch, name) for batch in batches]
        if offsets is not None:
            parts = [part + offset for part, offset in zip(parts, offsets, strict=False)]
        return torch.cat(parts, dim=dim)

    return PackedBatch(
        input_ids=joined("input_ids", dim=1),
        position_ids=joined("position_ids", dim=1),
        sequence_lengths=[length for batch in batches for length in batch.sequence_lengths],
        prefixes=prefixes if max(prefixes) >= 0 else [],
        predictors=joined("predictors", starts),
        target_positions=joined("target_positions", starts),
        targets=joined("targets"),
        target_sequences=joined("target_sequences", owners),
        num_sequences=owners[-1],
        weight=sum(batch.weight for batch in batches),
    )


def _packed(
    pieces: Sequence[Sequence[int]],
    parents: Sequence[int],
    supervised: Sequence[Sequence[bool]],
    owners: Sequence[int],
    num_sequences: int,
    values: dict[str, torch.Tensor] | None,
) -> PackedBatch:
    """Pieces in one row, each with its conversation in `owners`; the weight is the number of targets."""
    starts, places, predictors, positions = [0], [], [], []
    begins: list[int] = []  # how many tokens of its conversation come before each piece
    lasts: list[int] = []  # the position of the last token up to its end, -1 if there is none
    for piece, parent, marks in zip(pieces, parents, supervised, strict=True):
        start, length = starts[-1], len(piece)
        before, last = (begins[parent] + len(pieces[parent]), lasts[parent]) if parent >= 0 else (0, -1)
        own = np.arange(start, start + length)
        is_target = np.array(marks, dtype=bool)
        if last < 0:
            is_target[:1] = False  # no token predicts it
        places.append(own[is_target])
        predictors.append(np.concatenate([[last], own])[:-1][is_target])
        positions.append(own - start + before)
        starts.append(start + length)
        begins.append(before)
        lasts.append(start + length - 1 if length else last)
    input_ids = np.concatenate([np.asarray(piece, dtype=np.int64) for piece in pieces])
    target_positions = np.concatenate(places)
    lengths, prefixes = _joined([len(piece) for piece in pieces], parents)
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids)[None],
        position_ids=torch.from_numpy(np.concatenate(positions))[None],
        sequence_lengths=lengths,
        prefixes=prefixes if max(prefixes) >= 0 else [],
        predictors=torch.from_numpy(np.concatenate(predictors)),
        target_positions=torch.from_numpy(target_positions),
        targets=torch.from_numpy(input_ids[target_positions]),
        target_sequences=torch.from_numpy(np.repeat(owners, [len(each) for each in places])),
        num_sequences=num_sequences,
        weight=len(target_positions),
        values=values or {},
    )


def _joined(lengths: Sequence[int], parents: Sequence[int]) -> tuple[list[int], list[int]]:
    """The smallest equivalent list of pieces: without empty ones, and with a piece merged into the one right before
    it if it alone continues that.
    """
    renumbered: dict[int, int] = {-1: -1}
    real: list[int] = []
    for piece, (length, parent) in enumerate(zip(lengths, parents, strict=True)):
        renumbered[piece] = piece if length else renumbered[parent]
        if length:
            real.append(piece)
    before = {piece: renumbered[parents[piece]] for piece in real}
    children = Counter(before.values())
    joined: list[int] = []
    prefixes: list[int] = []
    number: dict[int, int] = {-1: -1}
    for last, piece in zip([-1, *real], real, strict=False):
        if last >= 0 and before[piece] == last and children[last] == 1:
            joined[-1] += lengths[piece]
        else:
            prefixes.append(number[before[piece]])
            joined.append(lengths[piece])
        number[piece] = len(joined) - 1
    return joined, prefixes


class StepPlan:
    """Which conversations every worker reads in every step, computed from their lengths and a seed.

    `num_tokens` and `weights` (`PackedBatch.weight`) have an entry for each row of the corpus.

    Any worker can compute the rows of step n without those of earlier steps, so a resumed run reads exactly what an
    uninterrupted one reads. The rows of a step do not depend on the number of workers: fewer than `num_workers` share
    the same micro-batches.

    An epoch is split into micro-batches of at most `micro_batch_tokens` tokens (a longer conversation has its own),
    as even as possible (longest processing time first, Graham 1969), so that workers do not wait for each other.
    """

    def __init__(
        self,
        num_tokens: Sequence[int],
        weights: Sequence[int],
        micro_batch_tokens: int,
        num_workers: int,
        gradient_accumulation: int,
        seed: int,
        mixture: Mixture | None = None,
    ) -> None:
        """`mixture`: which rows an epoch reads, some of them several times; None: each once."""
        self._num_tokens = np.asarray(num_tokens, dtype=np.int64)
        self._weights = np.asarray(weights, dtype=np.int64)
        self._seed = seed
        self._mixture = mixture
        self._per_step = num_workers * gradient_accumulation
        rows = len(self._epoch_rows(0))
        if rows < self._per_step:
            raise RayconteurError(
                f"train: {rows} training conversations are fewer than the {self._per_step} "
                f"micro-batches of one step (num_workers {num_workers} x gradient_accumulation "
                f"{gradient_accumulation}); lower one of them or add data"
            )
        # The epochs of a mixture have as many rows as each other, but not the same ones.
        counted = range(1 if mixture is None else _EPOCHS_COUNTED)
        self.steps_per_epoch = max(self._count_steps(micro_batch_tokens, self._epoch_rows(each)) for each in counted)
        self._epoch: tuple[int, list[list[int]]] | None = None

    def _epoch_rows(self, epoch: int) -> Any:
        """(R,) the rows of an epoch, not yet shuffled."""
        if self._mixture is None:
            return np.arange(len(self._num_tokens))
        return self._mixture.rows(epoch, self._seed)

    def _count_steps(self, budget: int, rows: Any) -> int:
        """The smallest number of steps such that no micro-batch of several conversations exceeds the budget."""
        lengths = np.sort(self._num_tokens[rows])[::-1]
        most = len(lengths) // self._per_step
        steps = min(most, max(1, math.ceil(int(lengths.sum()) / (budget * self._per_step))))
        while steps < most:
            bins = _spread(lengths, np.arange(len(lengths)), steps * self._per_step)
            if all(len(rows) == 1 or int(lengths[rows].sum()) <= budget for rows in bins):
                break
            steps += max(1, steps // 50)
        return min(steps, most)

    def micro_batches(self, step: int, worker: int, num_workers: int, parts: int = 1) -> list[list[int]]:
        """The row numbers of each of the worker's micro-batches in a step (both from 0), each split into `parts`.

        All workers have the same number of micro-batches; if the step's cannot be divided evenly, some are empty.
        """
        mine = self.rows(step)[worker::num_workers]
        mine += [[]] * (self.micro_batches_per_worker(num_workers) - len(mine))
        return [part for rows in mine for part in self._split(rows, parts)]

    def _split(self, rows: list[int], parts: int) -> list[list[int]]:
        if parts == 1:
            return [rows]
        longest_first = sorted(rows, key=lambda row: -self._num_tokens[row])
        return _spread(self._num_tokens[longest_first], np.asarray(longest_first, dtype=np.int64), parts)

    def parts_within(self, max_tokens: int) -> int:
        """The smallest number of parts of a micro-batch such that no part (of the first epoch) has over `max_tokens`.

        A conversation is never split: `max_tokens` must not be below the longest one's.
        """
        assert max_tokens >= self._num_tokens.max()
        parts = 1
        for step in range(self.steps_per_epoch):
            for rows in self.rows(step):
                while any(self._num_tokens[part].sum() > max_tokens for part in self._split(rows, parts)):
                    parts += 1
        return parts

    def micro_batches_per_worker(self, num_workers: int) -> int:
        """The number of a step's micro-batches on each worker."""
        return -(-self._per_step // num_workers)

    def weight(self, step: int) -> int:
        """Supervised tokens (or examples) of all workers in a step: the divisor of the step's loss sum."""
        return int(sum(self._weights[rows].sum() for rows in self.rows(step)))

    def num_tokens(self, step: int) -> int:
        """Tokens of all workers in a step."""
        return int(sum(self._num_tokens[rows].sum() for rows in self.rows(step)))

    def num_pairs(self, step: int) -> int:
        """Pairs of positions of a step, one of which attends to the other (or to itself)."""
        lengths = [self._num_tokens[rows] for rows in self.rows(step)]
        return int(sum((each * (each + 1) // 2).sum() for each in lengths))

    def rows(self, step: int) -> list[list[int]]:
        """The row numbers of each micro-batch in a step, all workers together."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._shuffled_epoch(epoch))
        return self._epoch[1][index * self._per_step : (index + 1) * self._per_step]

    def _shuffled_epoch(self, epoch: int) -> list[list[int]]:
        random = np.random.default_rng([self._seed, epoch])
        shuffled = random.permutation(self._epoch_rows(epoch))
        rows = shuffled[np.argsort(-self._num_tokens[shuffled], kind="stable")]
        bins = _spread(self._num_tokens[rows], rows, self.steps_per_epoch * self._per_step)
        return [bins[index] for index in random.permutation(len(bins))]


def _spread(lengths: Any, rows: Any, num_bins: int) -> list[list[int]]:
    """Put the rows, longest first, each into the emptiest bin so far."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    loads = [(0, index) for index in range(num_bins)]
    for length, row in zip(lengths.tolist(), rows.tolist(), strict=True):
        load, index = loads[0]
        bins[index].append(row)
        heapq.heapreplace(loads, (load + length, index))
    return bins
