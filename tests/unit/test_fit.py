"""The training loop in one process, and DeepSpeed beside plain torch."""

import math

import pytest
import torch

from models.base import load_model, load_tokenizer
from models.chat import encode_conversation
from models.engine import TorchEngine
from models.fit import FitSettings, TrainingDiverged, fit, held_out_batches, learning_rate_at, mean_loss
from models.packing import PACKED_ATTENTION, StepPlan

SETTINGS = FitSettings(
    num_steps=12, learning_rate=1e-2, warmup_share=0.25, final_learning_rate_share=0.1, checkpoint_every_steps=6
)


@pytest.fixture(scope="module")
def rows(tiny_llama):
    tokenizer = load_tokenizer(tiny_llama)
    talks = [
        [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"The number is {n}."}]
        for n in range(20)
    ]
    encoded = [encode_conversation(tokenizer, talk) for talk in talks]
    return [(talk.input_ids, talk.supervised) for talk in encoded]


def plan_of(rows, budget=200, accumulation=1):
    return StepPlan([len(ids) for ids, _ in rows], [sum(mask[1:]) for _, mask in rows], budget, 1, accumulation, 0)


def engine_of(folder):
    torch.manual_seed(0)
    return TorchEngine(load_model(folder, torch.float32, PACKED_ATTENTION))


def train(engine, rows, plan, settings=SETTINGS, start_step=0):
    steps, checkpoints = [], []
    held_out = list(held_out_batches(rows[:4], 100, 0, 1))
    fit(
        engine, plan, lambda row: rows[row], settings, held_out, on_step=steps.append,
        on_checkpoint=lambda step, metrics: checkpoints.append((step, metrics)), start_step=start_step,
    )  # fmt: skip
    return steps, checkpoints


def test_the_loss_falls(tiny_llama, rows):
    steps, checkpoints = train(engine_of(tiny_llama), rows, plan_of(rows))
    assert steps[-1].loss < steps[0].loss - 1.5
    assert [step for step, _ in checkpoints] == [6, 12]
    assert checkpoints[1][1]["held_out_loss"] < checkpoints[0][1]["held_out_loss"]
    assert steps[-1].num_tokens == sum(plan_of(rows).num_tokens(step) for step in range(12))


def test_a_resumed_run_equals_an_undisturbed_one(tiny_llama, rows, tmp_path):
    plan = plan_of(rows)
    whole = engine_of(tiny_llama)
    steps, _ = train(whole, rows, plan)
    first = engine_of(tiny_llama)
    held_out = list(held_out_batches(rows[:4], 100, 0, 1))

    class Killed(Exception):
        pass

    def save_and_die(step, metrics):
        first.save(tmp_path)
        raise Killed

    with pytest.raises(Killed):
        fit(
            first, plan, lambda row: rows[row], SETTINGS, held_out, on_step=lambda p: None, on_checkpoint=save_and_die
        )
    second = engine_of(tiny_llama)
    second.load(tmp_path)
    resumed, _ = train(second, rows, plan_of(rows), start_step=6)
    assert [step.loss for step in resumed] == [step.loss for step in steps[6:]]
    for mine, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_gradient_accumulation_changes_nothing(tiny_llama, rows):
    few = FitSettings(3, 1e-2, 0.0, 1.0, 10)
    whole, _ = train(engine_of(tiny_llama), rows, plan_of(rows, budget=10_000), few)
    parts, _ = train(engine_of(tiny_llama), rows, plan_of(rows, budget=5_000, accumulation=4), few)
    for one, other in zip(whole, parts, strict=True):
        assert one.loss == pytest.approx(other.loss, abs=1e-4)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-3)


def test_the_learning_rate_climbs_and_falls_along_a_cosine():
    rates = [learning_rate_at(step, SETTINGS) for step in range(12)]
    assert rates[:4] == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert learning_rate_at(12, SETTINGS) == pytest.approx(1e-3)
    middle = 3 + 4.5
    assert learning_rate_at(7, SETTINGS) > 1e-2 * (0.1 + 0.9 * 0.5) > learning_rate_at(8, SETTINGS)
    assert math.isclose(middle, 7.5)


def test_a_loss_that_is_no_number_ends_training_with_advice(tiny_llama, rows):
    engine = engine_of(tiny_llama)
    with torch.no_grad():
        engine.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match=r"nan at step 1; lower train\.learning_rate"):
        train(engine, rows, plan_of(rows))


@pytest.mark.parametrize("num_workers", [1, 2, 3, 30])
def test_every_worker_measures_equally_many_held_out_batches(tiny_llama, rows, num_workers):
    shares = [list(held_out_batches(rows, 150, rank, num_workers)) for rank in range(num_workers)]
    assert len({len(share) for share in shares}) == 1
    assert shares[0]
    if num_workers <= len(rows):
        lengths = [length for share in shares for batch in share for length in batch.sequence_lengths]
        assert sorted(lengths) == sorted(len(ids) for ids, _ in rows)
        whole = mean_loss(engine_of(tiny_llama), list(held_out_batches(rows, 10_000, 0, 1)))
        assert mean_loss(engine_of(tiny_llama), [b for share in shares for b in share]) == pytest.approx(
            whole, abs=1e-5
        )
