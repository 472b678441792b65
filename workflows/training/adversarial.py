"""Adversarial training in one worker: the current phase, and the phases after likelihood.

    likelihood       until the held-out loss reaches a plateau, or `train.epochs` are over (models/training/fit.py)
    warm-up          the discriminator alone, until its held-out loss reaches a plateau, or `warmup_steps` are over
    turns            both, `turns` times; skipped if the discriminator cannot tell real from generated replies
    control          likelihood again, from the start of the warm-up, for as long as warm-up and turns took

Only the history decides the phase, so training resumes in the phase in which it stopped.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.base.discriminator import Discriminator
from models.chat import end_token_ids
from models.exchange import exchange_of
from models.objectives.adversarial import Discriminate, Generate
from models.packing import StepPlan
from models.training.adversarial import AdversarialSettings, AdversarialTrainer, Part
from models.training.deepspeed_engine import DeepSpeedEngine
from models.training.engine import MODEL_FOLDER
from models.training.fit import held_out_figures, measure
from models.training.report import Progress, Report
from models.training.snapshot import Write, model_writer
from workflows.corpus.chat_tokenizer import chat_tokenizer
from workflows.spec import AdversarialSpec
from workflows.stage import CONTINUED, DISCRIMINATOR
from workflows.training.control import continued
from workflows.training.data import TrainingData
from workflows.training.history import HistoryLine
from workflows.training.reporter import Reporter
from workflows.training.trained_models import TrainedModels

PLAYER_LOSS = "discriminator_loss"
_HELD_OUT_PLAYER_LOSS = "held_out_discriminator_loss"
_CONTINUED_LOSS = "held_out_continued_loss"
_GAME = "duel.pt"
_MEASURED_AT_ONCE = 16

# On a plateau, the last two measurements are lower than all earlier ones by less than this, in nats.
_LESS_LOSS = 1e-3
_SECONDS_BETWEEN_NOTICES = 5.0


class AdversarialPhases:
    """Trains generator and discriminator; all workers call the same methods together."""

    def __init__(
        self,
        models: TrainedModels,
        data: TrainingData,
        generator: DeepSpeedEngine,
        reports: Reporter,
        likelihood_steps: int,
        resume_from: Path | None,
    ) -> None:
        """`likelihood_steps`: the maximum of the first phase; `resume_from`: a local checkpoint."""
        spec = models.spec
        assert isinstance(spec.train.objective, AdversarialSpec)
        assert isinstance(data.objective, Generate)
        self._train, self._settings, self._objective = spec.train, spec.train.objective, data.objective
        self._models, self._data = models, data
        self._generator, self._reports = generator, reports
        self._likelihood_steps, self._resume_from = likelihood_steps, resume_from
        self._ends = sorted(end_token_ids(chat_tokenizer(spec)))
        self._discriminator: DeepSpeedEngine | None = None

    @property
    def is_likelihood(self) -> bool:
        """Whether the likelihood phase continues."""
        lines = self._reports.record.lines
        if any(PLAYER_LOSS in line.figures for line in lines[-1:]):
            return False
        return len(lines) < self._likelihood_steps and not _is_level(lines, "held_out_loss")

    @property
    def num_steps(self) -> int:
        """The number of steps of the whole training, as far as it is known."""
        steps, warmup, turns = self._counts()
        max_likelihood = self._likelihood_steps if self.is_likelihood else steps
        max_warmup = warmup if self._is_warm() else self._settings.warmup_steps
        max_turns = self._settings.turns if self._may_play() else turns
        return max_likelihood + max_warmup + max_turns

    def play(self, leaving: Callable[[], bool]) -> None:
        """Run the phases after likelihood, starting where the history ends."""
        trainer, plan = self._begin()
        lines = self._reports.record.lines
        began, num_tokens, left = time.monotonic(), 0, False
        while len(lines) < self.num_steps:
            step, is_warm = len(lines), self._is_warm()
            parts, num_histories = self._parts(plan, step)
            figures = trainer.step(step, parts, num_histories, train_generator=is_warm)
            num_tokens += plan.num_tokens(step)
            before = lines[-1].num_tokens if lines else 0
            rates = self._settings.learning_rate if is_warm else self._settings.discriminator_learning_rate
            rate = num_tokens / (time.monotonic() - began)
            self._reports.step(
                Progress(
                    step + 1, self.num_steps, figures.pop("loss", math.nan), rates, None, False,
                    before + plan.num_tokens(step), rate, figures,
                )
            )  # fmt: skip
            warmup_ends = not is_warm and self._counts()[1] == self._settings.warmup_steps
            due = (step + 1) % self._train.checkpoint_every_steps == 0 or warmup_ends or len(lines) == self.num_steps
            if time.monotonic() - began > _SECONDS_BETWEEN_NOTICES and not left:
                left = leaving()
                due = due or left
            if len(lines) == self.num_steps and is_warm:
                self._compare(trainer)
            if due:
                self._checkpoint(trainer, is_warm, rate)

    def _compare(self, trainer: AdversarialTrainer) -> None:
        """Train the control: the generator from before the adversarial phases, by likelihood for the same time. The
        last checkpoint includes it.
        """
        lines = self._reports.record.lines
        steps = self._counts()[0]
        seconds = _seconds(lines[-1]) - (_seconds(lines[steps - 1]) if steps else 0.0)
        write_model, loss = self._continued(trainer.state()["start"], seconds)
        lines[-1].figures[_CONTINUED_LOSS] = loss

        def write(folder: Path) -> None:
            if self._generator.rank == 0:
                write_model(folder / CONTINUED / MODEL_FOLDER)

        self._reports.snapshots = [*self._reports.snapshots, lambda: write]

    def _continued(self, start: Mapping[str, torch.Tensor], seconds: float) -> tuple[Write, float]:
        """Train by likelihood from these weights for the same time; returns a function that writes the best model,
        and its loss.
        """
        model = self._models.model()
        model.load_state_dict(start, strict=False)
        engine = self._models.engine(model, self._objective)
        try:
            weights, loss = continued(
                engine, self._data, self._train.learning_rate / 2, seconds, self._reports.continued
            )
        finally:
            engine.close()
        return model_writer(model, weights), loss

    def close(self) -> None:
        """Free the discriminator."""
        if self._discriminator is not None:
            self._discriminator.close()

    def _begin(self) -> tuple[AdversarialTrainer, StepPlan]:
        """Load the discriminator, and the state of adversarial training from the checkpoint."""
        train, settings = self._train, self._settings
        torch.manual_seed(train.seed + 1)  # equal initial weights on all workers
        reader, knows = self._models.model(discriminates=True), self._generator.model.state_dict()
        if {name: weight.shape for name, weight in reader.state_dict().items()} == {
            n: w.shape for n, w in knows.items()
        }:
            reader.load_state_dict(knows)  # it starts from the weights of likelihood training
        discriminator = self._discriminator = self._models.engine(
            Discriminator(reader, settings.max_reply_tokens), Discriminate()
        )
        torch.manual_seed(train.seed + 1_000_000 + self._generator.rank)  # dropout
        trainer = AdversarialTrainer(
            self._generator,
            discriminator,
            AdversarialSettings(
                settings.num_replies, settings.max_reply_tokens, settings.learning_rate,
                settings.discriminator_learning_rate, settings.gradient, settings.replay_steps, train.seed,
            ),
            self._ends,
            self._objective,
            copy_of=self._copied,
        )  # fmt: skip
        folder = self._resume_from
        if folder is not None and (folder / _GAME).is_file():
            discriminator.load(folder / DISCRIMINATOR)
            trainer.load_state(torch.load(folder / _GAME, weights_only=False))

        def snapshot_of_player() -> Write:
            write_player, game = discriminator.snapshot(), trainer.state()

            def write(to: Path) -> None:
                (to / DISCRIMINATOR).mkdir(parents=True, exist_ok=True)
                write_player(to / DISCRIMINATOR)
                if self._generator.rank == 0:
                    torch.save(game, to / _GAME)

            return write

        self._reports.snapshots = [self._generator.snapshot, snapshot_of_player]
        return trainer, self._plan()

    def _plan(self) -> StepPlan:
        """The histories of every step; a history is computed once, and once more for each replayed pair."""
        train, lengths = self._train, self._data.num_tokens
        tokens = max(1, train.pass_tokens // (1 + self._settings.num_replies))
        return StepPlan(
            lengths, [1] * len(lengths), tokens, train.max_workers,
            gradient_accumulation=train.passes, seed=train.seed + 1, mixture=self._data.mixture,
        )  # fmt: skip

    def _copied(self, model: Any) -> Any:
        """A frozen copy of the generator."""
        copy = self._models.model().to(self._generator.device).eval()
        copy.load_state_dict(model.state_dict())
        return copy.requires_grad_(False) if self._train.adapter is None else copy

    def _parts(self, plan: StepPlan, step: int) -> tuple[list[Part | None], int]:
        """This worker's histories for a step, and the number over all workers."""
        engine, most = self._generator, self._settings.max_reply_tokens
        rows = plan.micro_batches(step, engine.rank, engine.num_workers)

        def part(numbers: list[int]) -> Part:
            seeds = [[self._train.seed, step, number] for number in numbers]
            return [
                (number, exchange_of(self._data.rows[number], most, np.random.default_rng(seed).integers))
                for number, seed in zip(numbers, seeds, strict=True)
            ]

        return [part(numbers) if numbers else None for numbers in rows], plan.weight(step)

    def _held_out_parts(self) -> Iterator[Part]:
        """This worker's share of held-out histories, each with its last reply."""
        most, engine = self._settings.max_reply_tokens, self._generator
        numbered = list(enumerate(self._data.held_out))[engine.rank :: engine.num_workers]
        for start in range(0, len(numbered), _MEASURED_AT_ONCE):
            some = numbered[start : start + _MEASURED_AT_ONCE]
            yield [(number, exchange_of(row, most, lambda n: n - 1)) for number, row in some]

    def _checkpoint(self, trainer: AdversarialTrainer, plays: bool, rate: float) -> None:
        lines = self._reports.record.lines
        last = lines[-1]
        means, seconds_each = measure(self._generator, self._data.measured)
        judged = trainer.measure(list(self._held_out_parts()))
        accuracy = judged["accuracy"]
        found = held_out_figures(means) | {"held_out_accuracy": accuracy, _HELD_OUT_PLAYER_LOSS: judged["loss"]}
        if (continued_loss := last.figures.get(_CONTINUED_LOSS)) is not None:
            found[_CONTINUED_LOSS] = continued_loss
        last.figures.update(found)  # marks the phase in the history
        if not plays and self._is_warm() and not self._may_play():
            self._reports.note(
                f"the discriminator's accuracy on held-out pairs is {accuracy:.1%}, below "
                f"train.objective.min_accuracy ({self._settings.min_accuracy:.1%}): the turns are skipped, and the "
                "generator keeps its weights from likelihood training"
            )
        loss = last.figures[PLAYER_LOSS] if last.loss is None else last.loss
        assert loss is not None
        figures = {"loss": loss, "tokens_per_second": rate, "num_tokens": last.num_tokens}
        figures |= {"skipped_steps": sum(line.skipped for line in lines), **found}
        self._reports.checkpoint(Report(len(lines), self.num_steps, figures), seconds_each)

    def _counts(self) -> tuple[int, int, int]:
        """The number of steps of each phase so far."""
        lines = self._reports.record.lines
        turns = sum(_is_turn(line) for line in lines)
        warmup = sum(PLAYER_LOSS in line.figures for line in lines) - turns
        return len(lines) - warmup - turns, warmup, turns

    def _is_warm(self) -> bool:
        """Whether the warm-up has ended; it ends at a checkpoint."""
        lines = [line for line in self._reports.record.lines if PLAYER_LOSS in line.figures]
        warmup = [line for line in lines if not _is_turn(line)]
        if len(lines) > len(warmup):
            return True
        has_accuracy = bool(warmup) and "held_out_accuracy" in warmup[-1].figures
        return has_accuracy and (
            len(warmup) >= self._settings.warmup_steps or _is_level(warmup, _HELD_OUT_PLAYER_LOSS)
        )

    def _may_play(self) -> bool:
        """Whether the turns run: only after a warm-up with a sufficiently accurate discriminator."""
        if not self._is_warm():
            return True
        lines = self._reports.record.lines
        warmup = [line for line in lines if PLAYER_LOSS in line.figures and not _is_turn(line)]
        accuracy = warmup[-1].figures["held_out_accuracy"]
        return accuracy is not None and accuracy >= self._settings.min_accuracy


def _seconds(line: HistoryLine) -> float:
    return line.figures.get("seconds") or 0.0


def _is_turn(line: HistoryLine) -> bool:
    return "gan" in line.figures


def _is_level(lines: Sequence[HistoryLine], name: str) -> bool:
    """Whether the last two measurements of a loss are no lower than all earlier ones."""
    values = [value for line in lines if (value := line.figures.get(name)) is not None]
    return len(values) > 2 and min(values[-2:]) > min(values[:-2]) - _LESS_LOSS
