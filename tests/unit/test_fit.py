"""The training loop with plain torch: it learns, it resumes exactly, and it stops when training diverges."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.base import adapters
from models.base.load import load_model, load_tokenizer
from models.chat import encode_conversation
from models.kernels.attention import PACKED_ATTENTION
from models.objectives.sft import Sft
from models.packing import PackedBatch, StepPlan, pack
from models.training.engine import TorchEngine
from models.training.fit import (
    FitCallbacks,
    FitSettings,
    HeldOut,
    TrainingDiverged,
    fit,
    held_out_batches,
    learning_rate_at,
    measure,
)
from models.training.report import Progress, Report

Conversation = tuple[list[int], list[bool]]


@pytest.fixture(scope="module")
def sums(tiny_llama: Path) -> list[Conversation]:
    """20 short conversations about sums."""
    tokenizer, draw, rows = load_tokenizer(tiny_llama), random.Random(0), []
    for _ in range(20):
        a, b = draw.randrange(50), draw.randrange(50)
        turns = [("user", f"{a}+{b}?"), ("assistant", f"It is {a + b}."), ("user", "Sure?"), ("assistant", "Yes!")]
        encoded = encode_conversation(tokenizer, [{"role": role, "content": text} for role, text in turns])
        rows.append((encoded.input_ids, encoded.supervised))
    return rows


def plan_of(rows: list[Conversation], budget: int = 600, accumulation: int = 1) -> StepPlan:
    lengths, targets = [len(ids) for ids, _ in rows], [sum(supervised[1:]) for _, supervised in rows]
    return StepPlan(lengths, targets, budget, 1, accumulation, seed=0)


def settings(num_steps: int, every: int = 1000) -> FitSettings:
    return FitSettings(num_steps, 1e-2, 0.0, 1.0, every)


def train(
    engine: TorchEngine,
    rows: list[Conversation],
    wanted: FitSettings,
    plan: StepPlan | None = None,
    before: Sequence[Progress] = (),
    on_checkpoint: Callable[[Report, list[float]], None] = lambda report, seconds: None,
) -> list[Progress]:
    history: list[Progress] = []
    fit(
        engine, plan or plan_of(rows), lambda numbers: pack([rows[n] for n in numbers]), wanted,
        HeldOut([pack(rows[:3])]), FitCallbacks(history.append, on_checkpoint), before=before,
    )  # fmt: skip
    return history


def engine_of(folder: Path, dropout: float | None = None, **options: float) -> TorchEngine:
    """Training all weights, or an adapter with dropout."""
    model = load_model(folder, torch.float32, PACKED_ATTENTION)
    if dropout is not None:
        model = adapters.attach(model, 4, 8.0, dropout, "all-linear", base="random:tiny-llama")
    return TorchEngine(model, Sft(), **options)


def test_the_loss_falls(tiny_llama: Path, sums: list[Conversation]) -> None:
    reports: list[Report] = []
    history = train(
        engine_of(tiny_llama), sums, settings(40, every=15), on_checkpoint=lambda report, _: reports.append(report)
    )
    assert [progress.step for progress in history] == list(range(1, 41))
    assert history[0].loss == pytest.approx(5.56, abs=0.2), "ln 260: nothing is known yet"
    assert history[-1].loss < 2
    assert [(report.step, report.num_steps) for report in reports] == [(15, 40), (30, 40), (40, 40)]
    assert reports[-1].figures["held_out_loss"] < reports[0].figures["held_out_loss"]
    assert reports[-1].figures["loss"] == history[-1].loss
    assert history[-1].num_tokens == sum(plan_of(sums).num_tokens(step) for step in range(40))


def test_an_adapter_learns_and_leaves_the_base_alone(tiny_llama: Path, sums: list[Conversation]) -> None:
    engine = engine_of(tiny_llama, dropout=0.0)
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters() if not p.requires_grad}
    history = train(engine, sums, settings(40))
    assert history[-1].loss < history[0].loss - 0.5
    after = dict(engine.model.named_parameters())
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


class Killed(Exception):
    pass


@pytest.mark.parametrize("dropout", [None, 0.2], ids=["all weights", "adapter with dropout"])
def test_a_resumed_run_ends_like_an_undisturbed_one(
    tiny_llama: Path, sums: list[Conversation], tmp_path: Path, dropout: float | None
) -> None:
    torch.manual_seed(1)
    straight = engine_of(tiny_llama, dropout)
    expected = train(straight, sums, settings(6, every=3))

    torch.manual_seed(1)
    killed = engine_of(tiny_llama, dropout)

    def save_and_die(report: Report, seconds: list[float]) -> None:
        killed.snapshot()(tmp_path)
        raise Killed

    with pytest.raises(Killed):
        train(killed, sums, settings(6, every=3), on_checkpoint=save_and_die)
    torch.manual_seed(2)
    resumed = engine_of(tiny_llama, dropout)
    resumed.load(tmp_path)
    history = train(resumed, sums, settings(6, every=3), before=expected[:3])

    assert [progress.step for progress in history] == [4, 5, 6]
    assert [p.loss for p in history] == pytest.approx([p.loss for p in expected[3:]], abs=1e-6)
    assert [p.num_tokens for p in history] == [p.num_tokens for p in expected[3:]]
    for mine, theirs in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-6)


def test_a_checkpoint_does_not_decide_the_weight_decay(
    tiny_llama: Path, sums: list[Conversation], tmp_path: Path
) -> None:
    """A member of a population goes on from another's checkpoint with settings of its own."""
    first = engine_of(tiny_llama, weight_decay=0.1)
    train(first, sums, settings(1))
    first.snapshot()(tmp_path)
    ended = {}
    for decay in (0.0, 0.1, 1.0):
        copy = engine_of(tiny_llama, weight_decay=decay)
        copy.load(tmp_path)
        train(copy, sums, settings(1))
        ended[decay] = sum(float(weights.detach().square().sum()) for weights in copy.model.parameters())
    assert ended[0.0] > ended[0.1] > ended[1.0]


def test_accumulating_small_batches_is_one_large_batch(tiny_llama: Path, sums: list[Conversation]) -> None:
    tokens = sum(len(ids) for ids, _ in sums)
    whole, halves = plan_of(sums, tokens), plan_of(sums, tokens // 2 + 60, accumulation=2)
    assert (whole.steps_per_epoch, halves.steps_per_epoch) == (1, 1)
    assert (len(whole.micro_batches(0, 0, 1)), len(halves.micro_batches(0, 0, 1))) == (1, 2)
    [large], [small] = (train(engine_of(tiny_llama), sums, settings(1), plan) for plan in (whole, halves))
    assert small.loss == pytest.approx(large.loss, rel=1e-4)
    assert small.gradient_norm == pytest.approx(large.gradient_norm, rel=1e-4)


def test_the_gradient_is_clipped(tiny_llama: Path, sums: list[Conversation]) -> None:
    """After one step, AdamW's first moment is a tenth of the gradient."""
    for clip in (0.0, 0.01):
        engine = engine_of(tiny_llama, gradient_clip=clip)
        [progress] = train(engine, sums, settings(1))
        moments = [state["exp_avg"] for state in engine._optimizer.state.values()]
        used = 10 * float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(m) for m in moments])))
        assert used == pytest.approx(clip or progress.gradient_norm, rel=1e-3)


def test_the_learning_rate_climbs_and_falls_to_its_share() -> None:
    wanted = FitSettings(100, 1e-3, 0.1, 0.2, 1000)
    rates = [learning_rate_at(step, wanted) for step in range(101)]
    assert rates[0] == pytest.approx(1e-3 / 11)
    assert rates[10] == pytest.approx(1e-3) == max(rates)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx((1e-3 + 2e-4) / 2)
    assert rates[100] == pytest.approx(2e-4)
    constant = FitSettings(100, 1e-3, 0.0, 1.0, 1000)
    assert {learning_rate_at(step, constant) for step in range(100)} == {1e-3}


class Faulty(Sft):
    """Fine-tuning in which the loss of batches with one row is multiplied, as a broken conversation would do."""

    def __init__(self, token: int, factor: float) -> None:
        self._token, self._factor = token, factor

    def loss_sum(self, model: Any, batch: PackedBatch) -> tuple[torch.Tensor, dict[str, float]]:
        loss, figures = super().loss_sum(model, batch)
        return (loss * self._factor if self._token in batch.input_ids else loss), figures


def with_fault(
    folder: Path, rows: list[Conversation], factor: float, most: int, clip: float = 1.0
) -> tuple[TorchEngine, list[Conversation], FitSettings]:
    """Mark row 7 with a token that no other row has."""
    model = load_model(folder, torch.float32, PACKED_ATTENTION)
    marked = [([250, *ids[1:]] if index == 7 else ids, mask) for index, (ids, mask) in enumerate(rows)]
    assert not any(250 in ids for index, (ids, _) in enumerate(marked) if index != 7)
    engine = TorchEngine(model, Faulty(250, factor), gradient_clip=clip)
    return engine, marked, replace(settings(24), spike_factor=5.0, max_skipped_steps=most)


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 40.0])
def test_a_broken_step_leaves_no_trace(tiny_llama: Path, sums: list[Conversation], factor: float) -> None:
    engine, rows, wanted = with_fault(tiny_llama, sums, factor, most=100)
    plan = plan_of(rows, budget=150)
    broken = [step + 1 for step in range(24) if any(7 in part for part in plan.rows(step))]
    first = next(step for step in broken if step > 8)  # a spike is detected relative to the steps before it
    weights: dict[int, torch.Tensor] = {}
    history: list[Progress] = []

    def on_step(progress: Progress) -> None:
        history.append(progress)
        weights[progress.step] = torch.cat([p.detach().flatten().clone() for p in engine.model.parameters()])

    fit(engine, plan, lambda numbers: pack([rows[n] for n in numbers]), wanted, HeldOut([pack(rows[:3])]),
        FitCallbacks(on_step, lambda *_: None))  # fmt: skip
    skipped = [progress.step for progress in history if progress.skipped]
    assert skipped == [step for step in broken if step > 8 or math.isnan(factor) or math.isinf(factor)]
    assert torch.equal(weights[first], weights[first - 1])
    assert not torch.equal(weights[first + 1], weights[first])
    applied = [progress.loss for progress in history if not progress.skipped]
    assert applied[-1] < applied[0] - 1


def test_a_gradient_that_is_not_finite_is_not_applied(tiny_llama: Path, sums: list[Conversation]) -> None:
    engine = engine_of(tiny_llama)
    before = [p.detach().clone() for p in engine.model.parameters()]
    engine.accumulate(pack(sums), 1)
    next(engine.model.parameters()).grad[0] = float("nan")
    assert not math.isfinite(engine.update(1e-2))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(engine.model.parameters(), before, strict=True))
    assert engine._optimizer.state == {}


def test_too_many_broken_steps_end_training_and_name_their_rows(tiny_llama: Path, sums: list[Conversation]) -> None:
    engine, rows, wanted = with_fault(tiny_llama, sums, float("nan"), most=1)
    plan = plan_of(rows, budget=150)
    words = r"2 steps could not be applied, more than train\.max_skipped_steps \(1\); .* the loss is nan; lower"
    with pytest.raises(TrainingDiverged, match=words) as caught:
        train(engine, rows, wanted, plan)
    assert 7 in caught.value.rows
    assert len(set(caught.value.rows)) < len(rows), "the other micro-batches are not blamed"


@pytest.mark.parametrize("split", [2, 3])
def test_a_split_micro_batch_gives_the_same_step(tiny_llama: Path, sums: list[Conversation], split: int) -> None:
    [whole] = train(engine_of(tiny_llama), sums, settings(1))
    history: list[Progress] = []
    fit(engine_of(tiny_llama), plan_of(sums), lambda numbers: pack([sums[n] for n in numbers]), settings(1),
        HeldOut([pack(sums[:3])]), FitCallbacks(history.append, lambda *_: None), (), split)  # fmt: skip
    assert history[0].loss == pytest.approx(whole.loss, rel=1e-5)
    assert history[0].gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-4)


def test_a_machine_about_to_be_preempted_saves_a_checkpoint(
    tiny_llama: Path, sums: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.training.fit._SECONDS_BETWEEN_NOTICES", 0.0)
    asked: list[int] = []
    saved: list[int] = []

    def leaving() -> bool:
        asked.append(1)
        return len(asked) >= 3

    fit(
        engine_of(tiny_llama), plan_of(sums), lambda numbers: pack([sums[n] for n in numbers]), settings(6),
        HeldOut([pack(sums[:3])]), FitCallbacks(lambda _: None, lambda report, _: saved.append(report.step), leaving),
    )  # fmt: skip
    assert saved == [3, 6], "once for the notice, once at the end"


@pytest.mark.parametrize(("num_rows", "num_workers"), [(1, 1), (7, 1), (7, 3), (8, 8), (2, 5), (50, 4)])
def test_workers_get_equal_numbers_of_held_out_batches_that_cover_all(num_rows: int, num_workers: int) -> None:
    rows = [{"input_ids": [n, 1, 2, 3], "supervised": [True] * 4, "num_tokens": 4} for n in range(num_rows)]
    shares = [list(held_out_batches(rows, 12, rank, num_workers, Sft().batch)) for rank in range(num_workers)]
    assert len({len(batches) for batches in shares}) == 1
    lengths = [length for batches in shares for batch in batches for length in batch.sequence_lengths]
    assert set(lengths) == {4}
    read = [int(batch.input_ids[0, at]) for batches in shares for batch in batches
            for at in range(0, batch.input_ids.shape[1], 4)]  # fmt: skip
    assert sorted(read) == sorted((list(range(num_rows)) * num_workers)[: max(num_rows, num_workers)])


def test_the_measure_is_over_all_targets(
    tiny_llama: Path,
    token_rows: list[Conversation],
    plain_loss_sum: Callable[[Any, Sequence[Conversation]], torch.Tensor],
) -> None:
    batches = [pack(token_rows[:1]), pack(token_rows[1:])]
    with torch.no_grad():
        total = float(plain_loss_sum(load_model(tiny_llama, torch.float32), token_rows))
    targets = sum(sum(supervised[1:]) for _, supervised in token_rows)
    assert measure(engine_of(tiny_llama), HeldOut(batches))[0]["loss"] == pytest.approx(total / targets, rel=1e-5)


def test_the_held_out_loss_is_measured_without_dropout(tiny_llama: Path, sums: list[Conversation]) -> None:
    engine = engine_of(tiny_llama, dropout=0.5)
    train(engine, sums, settings(3))
    assert measure(engine, HeldOut([pack(sums)]))[0] == measure(engine, HeldOut([pack(sums)]))[0]
    assert engine.model.training


def test_labels_have_a_loss_of_their_own(tiny_llama: Path, sums: list[Conversation]) -> None:
    engine, parts = engine_of(tiny_llama), [sums[:2], sums[2:3], sums[3:6]]
    means, _ = measure(engine, HeldOut([pack(part) for part in parts], [("shop", "de"), ("shop",), ()]))
    assert set(means) == {"loss", "loss_shop", "loss_de"}
    alone = [measure(engine, HeldOut([pack(part)]))[0]["loss"] for part in (sums[:3], sums[:2], sums[:6])]
    assert [means["loss_shop"], means["loss_de"], means["loss"]] == pytest.approx(alone, rel=1e-4)
