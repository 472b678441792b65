"""Generator against discriminator, step by step, over two engines.

    trainer = AdversarialTrainer(generator, discriminator, settings, end_tokens)
    figures = trainer.step(17, parts, num_histories=64)                        # warm-up: only D learns
    figures = trainer.step(90, parts, num_histories=64, train_generator=True)

Each step samples replies to its histories. D learns from pairs of a real and a generated reply, and from a replay
buffer of earlier pairs, so that it does not forget earlier states of the generator. Then the generator learns from
D's scores. Samples depend only on the seed, the step and the row, so any number of workers computes the same steps.
"""

import copy
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from models.errors import RayconteurError
from models.exchange import Exchange, packed
from models.generation import drawn_replies, evaluating
from models.kernels.loss import log_probabilities
from models.objectives.adversarial import Discriminate, Generate, whiten
from models.objectives.gumbel import SoftBatch
from models.packing import PackedBatch
from models.training.accumulation import accumulate_means
from models.training.engine import Sums, TrainingEngine
from models.training.snapshot import copied

Part = Sequence[tuple[int, Exchange]]
"""a micro-batch: histories with their real replies, each with its row number"""

_MEASURED = 2**31 - 1
"""replaces the step in a seed, for replies sampled to measure and not to learn from"""


_SOFT = 1
"""follows the row in a seed, for replies with a gradient"""


@dataclass(frozen=True)
class AdversarialSettings:
    """Settings of both models; the weights of the generator's loss are `Generate`'s."""

    num_replies: int
    """sampled replies to each history"""
    max_reply_tokens: int
    learning_rate: float
    discriminator_learning_rate: float
    gradient: str = "policy"
    """how the generator learns from D: by the policy gradient, or `gumbel` (models/objectives/gumbel.py)"""
    replay_steps: int = 16
    """for how many steps pairs are kept; 0 for no replay"""
    seed: int = 0


class AdversarialTrainer:
    """Generator and discriminator on one worker; all workers call the same methods together."""

    def __init__(
        self,
        generator: TrainingEngine,
        discriminator: TrainingEngine,
        settings: AdversarialSettings,
        end_tokens: Sequence[int],
        objective: Generate,
        copy_of: Callable[[Any], Any] = copy.deepcopy,
    ) -> None:
        """`copy_of(model)` copies the generator as it is now, the reference of the KL term."""
        self._generator, self._discriminator = generator, discriminator
        self._settings, self._ends = settings, end_tokens
        self._objective, self._discriminate = objective, Discriminate()
        self._copy_of = copy_of
        self._start: Any = None
        self._replay: deque[list[tuple[Exchange, Exchange]]] = deque(maxlen=settings.replay_steps)

    def step(
        self, number: int, parts: Sequence[Part | None], num_histories: int, train_generator: bool = False
    ) -> Sums:
        """One step over this worker's micro-batches, None where it has fewer than others; returns means over all
        workers.

        `num_histories` counts all workers' histories. Raises RayconteurError if a loss is not finite.
        """
        drawn = [self._drawn(number, part) if part else [] for part in parts]
        figures = self._train_discriminator(number, parts, drawn, num_histories)
        if train_generator:
            figures |= self._train_generator(number, parts, drawn, num_histories)
        self._remember(parts, drawn)
        return figures

    def measure(self, parts: Sequence[Part]) -> Sums:
        """D's figures on held-out histories with one generated reply each: `loss`, and `accuracy`, the share of pairs
        in which it gives the real reply the higher score.
        """
        loss = right = pairs = 0.0
        for part in parts:
            batch = self._discriminate.batch_of(_pairs(part, self._drawn(_MEASURED, part, num_replies=1)))
            found = self._discriminator.measure(batch.to(self._discriminator.device))
            loss, right, pairs = loss + found["loss"], right + found["accuracy"], pairs + batch.weight
        loss, right, pairs = self._discriminator.total([loss, right, pairs])
        return {"loss": loss / pairs, "accuracy": right / pairs}

    def state(self) -> dict[str, Any]:
        """The trainer's part of a checkpoint, beside both engines'."""
        start = None
        if self._start is not None:
            trained = {name for name, p in self._generator.model.named_parameters() if p.requires_grad}
            start = {name: copied(value) for name, value in self._start.state_dict().items() if name in trained}
        return {"replay": list(self._replay), "start": start}

    def load_state(self, state: dict[str, Any]) -> None:
        """Resume from that state."""
        self._replay.extend(state["replay"])
        if state["start"] is not None:
            self._start = self._copy_of(self._generator.model)
            self._start.load_state_dict(state["start"], strict=False)

    def _drawn(self, number: int, part: Part, num_replies: int | None = None) -> list[list[Exchange]]:
        """For each history of the part, the generator's replies."""
        settings = self._settings
        replies = drawn_replies(
            self._generator.model,
            [real.history for _, real in part],
            num_replies or settings.num_replies,
            settings.max_reply_tokens,
            self._ends,
            seeds=[(settings.seed, number, row) for row, _ in part],
        )
        return [
            [Exchange(real.history, reply) for reply in mine] for (_, real), mine in zip(part, replies, strict=True)
        ]

    def _train_discriminator(
        self, number: int, parts: Sequence[Part | None], drawn: Sequence[list[list[Exchange]]], num_histories: int
    ) -> Sums:
        num_pairs = num_histories * self._settings.num_replies * (2 if self._replay else 1)
        batches: list[PackedBatch | None] = []
        for part, replies in zip(parts, drawn, strict=True):
            if part is None:
                batches.append(None)
                continue
            pairs = _pairs(part, replies)
            batches.append(self._discriminate.batch_of([*pairs, *self._replayed(number, part[0][0], len(pairs))]))
        sums = accumulate_means(self._discriminator, batches, num_pairs)
        _check_finite(sums["loss"], number, "discriminator", "discriminator_learning_rate")
        self._discriminator.update(self._settings.discriminator_learning_rate)
        return {f"discriminator_{name}": value for name, value in sums.items()}

    def _train_generator(
        self, number: int, parts: Sequence[Part | None], drawn: Sequence[list[list[Exchange]]], num_histories: int
    ) -> Sums:
        if self._start is None:
            self._start = self._copy_of(self._generator.model)
        batches: list[Any] = []
        for part, replies in zip(parts, drawn, strict=True):
            if part is None:
                batches.append(None)
                continue
            ours = [exchange for some in replies for exchange in some]
            reals, start = [real for _, real in part], self._log_probabilities_at_start(ours)
            if self._settings.gradient == "gumbel":
                plain = self._objective.batch_of(reals, replies, torch.zeros(len(part), len(replies[0])), start)
                judge = self._discriminator.model
                batches.append(SoftBatch(plain, reals, self._noise(number, part), judge, self._ends))
            else:
                advantages = whiten(self._scores(ours).view(len(part), -1))
                batches.append(self._objective.batch_of(reals, replies, advantages, start))
        sums = accumulate_means(self._generator, batches, num_histories)
        _check_finite(sums["loss"], number, "generator", "learning_rate")
        self._generator.update(self._settings.learning_rate)
        return sums

    def _noise(self, number: int, part: Part) -> torch.Tensor:
        """float32 [replies, tokens, vocabulary] from Gumbel(0, 1), seeded by the seed, the step and each row."""
        settings = self._settings
        sizes = (
            settings.num_replies,
            settings.max_reply_tokens,
            self._generator.model.config.get_text_config().vocab_size,
        )
        seeds = ([settings.seed, number, row, _SOFT] for row, _ in part)
        return torch.from_numpy(
            np.concatenate([np.random.default_rng(seed).gumbel(size=sizes).astype(np.float32) for seed in seeds])
        )

    def _scores(self, exchanges: Sequence[Exchange]) -> torch.Tensor:
        """float32 [exchanges], on the CPU."""
        batch = packed(exchanges).to(self._discriminator.device)
        model = self._discriminator.model
        model.eval()
        with torch.no_grad():
            scores: torch.Tensor = model(batch).cpu()
        model.train()
        return scores

    def _log_probabilities_at_start(self, exchanges: Sequence[Exchange]) -> list[torch.Tensor]:
        """float32 [tokens] of each reply, on the CPU."""
        batch = packed(exchanges).to(self._generator.device)
        usual = self._generator.model.config._attn_implementation
        with torch.no_grad(), evaluating(self._start, usual):
            found = log_probabilities(self._start, batch).cpu()
        return list(torch.split(found, [len(exchange.reply) for exchange in exchanges]))

    def _replayed(self, number: int, row: int, count: int) -> list[tuple[Exchange, Exchange]]:
        """`count` pairs of earlier steps."""
        pairs = [pair for step in self._replay for pair in step]
        if not pairs:
            return []
        chosen = np.random.default_rng([self._settings.seed, number, row]).integers(len(pairs), size=count)
        return [pairs[index] for index in chosen]

    def _remember(self, parts: Sequence[Part | None], drawn: Sequence[list[list[Exchange]]]) -> None:
        """Keep one pair of each history of all workers, in the order of the step's micro-batches."""
        if not self._settings.replay_steps:
            return
        mine = [
            [(real, some[0]) for (_, real), some in zip(part, replies, strict=True)] if part else []
            for part, replies in zip(parts, drawn, strict=True)
        ]
        in_order = zip(*self._generator.gather(mine), strict=True)  # each worker has every num_workers-th one
        self._replay.append([pair for parts_then in in_order for part in parts_then for pair in part])


def _pairs(part: Part, replies: Sequence[Sequence[Exchange]]) -> list[tuple[Exchange, Exchange]]:
    """Each generated reply with the real one to the same history."""
    return [(real, reply) for (_, real), some in zip(part, replies, strict=True) for reply in some]


def _check_finite(loss: float, number: int, player: str, field: str) -> None:
    if not math.isfinite(loss):
        raise RayconteurError(
            f"train: the {player}'s loss is {loss} at step {number + 1}; lower train.objective.{field}, or "
            "train.gradient_clip"
        )
