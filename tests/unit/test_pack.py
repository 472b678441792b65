"""Packed trainings: each learns what it learns alone, whatever its neighbours do."""

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from models.base import adapters
from models.base.load import load_model
from models.errors import RayconteurError
from models.kernels.attention import PACKED_ATTENTION
from models.objectives.sft import Sft
from models.packing import StepPlan, pack, side_by_side
from models.training.engine import TorchEngine, TrainingEngine
from models.training.fit import FitCallbacks, FitSettings, HeldOut, fit
from models.training.pack import Pack, PackedEngine, PackedSettings, is_packed
from models.training.report import Progress, Report

STEPS = 200
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Trial:
    """One training."""

    rank: int
    rate: float = 3e-3
    alpha: float = 16.0
    dropout: float = 0.0
    seed: int = 0
    tokens: int = 300
    accumulation: int = 1
    weight_decay: float = 0.0
    targets: str | list[str] = "all-linear"
    method: str = "lora"
    joins_at: int = 0
    """number of steps that the first trial must have taken before"""
    leaves_after: int = STEPS
    resumes_at: int = 0
    """number of steps after which it is saved, closed and goes on in another engine"""


TRIALS = [
    Trial(4),
    Trial(64, alpha=64.0, rate=1e-3, weight_decay=0.1),
    Trial(16, dropout=0.2, seed=1, method="rslora"),
    Trial(8, tokens=150, accumulation=2, targets=["q_proj", "down_proj"]),
    Trial(32, seed=2, tokens=600, leaves_after=100),
    Trial(8, rate=1e25, alpha=1024.0),  # its loss is soon no number
    Trial(12, seed=3, dropout=0.1, joins_at=60),
    Trial(6, dropout=0.3, resumes_at=150),
]
FAILING = 5


@pytest.fixture(scope="module")
def rows() -> list[Any]:
    """40 token sequences with structure, of other lengths."""
    made = []
    for number in range(40):
        ids = [(7 * number + 3 * at) % 90 + 5 for at in range(20 + number % 17)]
        made.append((ids, [at > 5 for at in range(len(ids))]))
    return made


def train(
    trial: Trial, engine: TrainingEngine, rows: list[Any], losses: list[float], before: list[Progress],
    until: int, on_checkpoint: Callable[[Report], None] = lambda report: None,
    on_step: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    lengths, targets = [len(ids) for ids, _ in rows], [sum(supervised[1:]) for _, supervised in rows]
    plan = StepPlan(lengths, targets, trial.tokens, 1, trial.accumulation, seed=trial.seed)
    settings = FitSettings(STEPS, trial.rate, 0.05, 0.1, 50)

    def step(progress: Progress) -> None:
        losses.append(progress.loss)
        before.append(progress)
        on_step()

    def checkpoint(report: Report, seconds: list[float]) -> None:
        losses.append(report.figures["held_out_loss"])
        on_checkpoint(report)

    fit(
        engine, plan, lambda numbers: pack([rows[number] for number in numbers]), settings,
        HeldOut([pack(rows[:4]), pack(rows[4:7])]),
        FitCallbacks(step, checkpoint, is_over=lambda: len(before) >= until), before=before,
    )  # fmt: skip


def model_of(folder: Path, trial: Trial) -> Any:
    model = load_model(folder, torch.float32, PACKED_ATTENTION)
    torch.manual_seed(trial.seed)
    return adapters.attach(
        model, trial.rank, trial.alpha, trial.dropout, trial.targets, base="random:tiny-llama", method=trial.method
    )


def alone(folder: Path, trial: Trial, rows: list[Any]) -> list[float]:
    engine = TorchEngine(model_of(folder, trial), Sft(), trial.weight_decay)
    torch.manual_seed(trial.seed + 1)
    losses: list[float] = []
    before: list[Progress] = []
    try:
        train(trial, engine, rows, losses, before, trial.leaves_after)
    except RayconteurError:
        losses.append(math.inf)
    return losses


class Together:
    """All trials in one pack."""

    def __init__(self, folder: Path, rows: list[Any], max_tokens: int, place: Path) -> None:
        self._folder, self._rows, self._place = folder, rows, place
        self._pack = Pack(load_model(folder, torch.float32, PACKED_ATTENTION), max_tokens)
        self._steps_of_first = 0
        self._moved = threading.Condition()
        self.losses: list[list[float]] = [[] for _ in TRIALS]
        self.errors: list[BaseException] = []
        threads = [threading.Thread(target=self._train, args=[number]) for number in range(len(TRIALS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._pack.close()

    def _train(self, number: int) -> None:
        try:
            with self._pack.member():
                self._as_member(TRIALS[number], self.losses[number], number)
        except RayconteurError:
            self.losses[number].append(math.inf)
        except BaseException as error:
            self.errors.append(error)

    def _as_member(self, trial: Trial, losses: list[float], number: int) -> None:
        with self._pack.away(), self._moved:
            self._moved.wait_for(lambda: self._steps_of_first >= trial.joins_at)
        before: list[Progress] = []
        for until in [each for each in (trial.resumes_at, trial.leaves_after) if each]:
            engine = self._engine(trial)
            place = self._place / str(number)
            if before:
                engine.load(place)
            train(trial, engine, self._rows, losses, before, until, self._wait, lambda: self._step(number))
            place.mkdir(exist_ok=True)
            engine.snapshot()(place)
            assert is_packed(place)
            assert (place / "model/adapter_config.json").is_file()
            engine.close()

    def _engine(self, trial: Trial) -> PackedEngine:
        with self._pack.loading:
            model = model_of(self._folder, trial)
        return PackedEngine(self._pack, model, Sft(), PackedSettings(trial.weight_decay, 1.0, trial.seed + 1))

    def _step(self, number: int) -> None:
        if number == 0:
            with self._moved:
                self._steps_of_first += 1
                self._moved.notify_all()

    def _wait(self, report: Report) -> None:
        """As for Tune's answer."""
        with self._pack.away():
            threading.Event().wait(0.02)


@pytest.fixture(scope="module")
def expected(tiny_llama: Path, rows: list[Any]) -> list[list[float]]:
    """The losses of each trial alone."""
    return [alone(tiny_llama, trial, rows) for trial in TRIALS]


@pytest.fixture(scope="module", params=[100_000, 700])
def found(request: pytest.FixtureRequest, tiny_llama: Path, rows: list[Any], tmp_path_factory: Any) -> Iterator[Any]:
    """Those of all trials together, in one row or in several."""
    together = Together(tiny_llama, rows, request.param, tmp_path_factory.mktemp("checkpoints"))
    assert not together.errors, together.errors
    return together.losses


@pytest.mark.parametrize("number", range(len(TRIALS)))
def test_a_packed_training_is_the_same_as_alone(expected: Any, found: Any, number: int) -> None:
    one, other = expected[number], found[number]
    assert len(other) == len(one)
    if number == FAILING:
        assert other[-1] == math.inf
        one, other = one[:2], other[:2]
    assert other == pytest.approx(one, rel=TOLERANCE, abs=TOLERANCE)
    assert one[-1] < one[0] or number == FAILING


def test_batches_side_by_side_are_one_batch(rows: list[Any]) -> None:
    parts = [pack(rows[:2]), pack(rows[2:5])]
    whole, joined = pack(rows[:5]), side_by_side(parts)
    assert joined.sequence_lengths == whole.sequence_lengths
    for name in ("input_ids", "position_ids", "predictors", "target_positions", "targets", "target_sequences"):
        assert torch.equal(getattr(joined, name), getattr(whole, name)), name
    assert (joined.num_sequences, joined.weight) == (whole.num_sequences, whole.weight)
