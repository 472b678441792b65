"""Packing and batching change nothing but speed."""

import random

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from models.base import load_model
from models.loss import supervised_loss_sum
from models.packing import PACKED_ATTENTION, StepPlan, pack


def conversations(count=7, vocabulary=200, longest=60):
    draw = random.Random(0)
    made = []
    for _ in range(count):
        length = draw.randrange(5, longest)
        made.append(
            ([draw.randrange(vocabulary) for _ in range(length)], [draw.random() < 0.5 for _ in range(length)])
        )
    return made


def plain_loss_sum(model, rows):
    """The same sum by transformers' own forward and attention, one conversation at a time."""
    total = torch.zeros(())
    for ids, mask in rows:
        logits = model(torch.tensor([ids])).logits[0]
        for position in range(1, len(ids)):
            if mask[position]:
                total = total - F.log_softmax(logits[position - 1].float(), -1)[ids[position]]
    return total


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_the_loss_does_not_depend_on_packing_or_batching(name, request):
    folder = request.getfixturevalue(name)
    rows = conversations()
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    expected = plain_loss_sum(reference, rows)
    expected.backward()
    model = load_model(folder, torch.float32, PACKED_ATTENTION)
    groupings = [[rows], [[row] for row in rows], [rows[::-1]], [rows[:3], rows[3:]], [rows[4:], rows[:4]]]
    targets = sum(len(pack(group).targets) for group in groupings[1])
    for grouping in groupings:
        model.zero_grad()
        total = sum(supervised_loss_sum(model, pack(group)) for group in grouping)
        assert float(total.detach() / targets) == pytest.approx(float(expected.detach() / targets), abs=1e-4)
        total.backward()
        for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
            assert torch.allclose(mine.grad, theirs.grad, rtol=1e-3, atol=1e-3 * float(theirs.grad.abs().max()))


def test_a_sliding_window_is_kept():
    config = MistralConfig(
        vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval()
    rows = conversations()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = float(plain_loss_sum(model, rows))
        model.set_attn_implementation(PACKED_ATTENTION)
        assert float(supervised_loss_sum(model, pack(rows))) == pytest.approx(expected, rel=1e-5)


def test_pack_starts_every_conversation_anew():
    batch = pack([([5, 6, 7], [True, False, True]), ([8, 9], [True, True])])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.sequence_lengths == [3, 2]
    assert (batch.predictors.tolist(), batch.targets.tolist()) == ([1, 3], [7, 9])


def plan_of(workers=3, accumulation=2, seed=1, budget=300):
    draw = random.Random(3)
    lengths = [draw.randrange(5, 200) for _ in range(97)] + [900]
    return StepPlan(lengths, [n // 2 for n in lengths], budget, workers, accumulation, seed), lengths


def test_an_epoch_reads_every_conversation_once():
    plan, lengths = plan_of()
    for epoch in range(2):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        batches = [rows for step in steps for worker in range(3) for rows in plan.micro_batches(step, worker)]
        assert sorted(row for rows in batches for row in rows) == list(range(98))
        for rows in batches:
            assert rows
            assert len(rows) == 1 or sum(lengths[row] for row in rows) <= 300
        assert sum(plan.num_tokens(step) for step in steps) == sum(lengths)
        assert sum(plan.num_targets(step) for step in steps) == sum(n // 2 for n in lengths)


def test_a_step_is_known_without_the_steps_before_it():
    plan, _ = plan_of()
    steps = [plan.micro_batches(step, 1) for step in range(2 * plan.steps_per_epoch)]
    for step in (5, 0, 2 * plan.steps_per_epoch - 1):
        assert plan_of()[0].micro_batches(step, 1) == steps[step]
    assert steps[: plan.steps_per_epoch] != steps[plan.steps_per_epoch :]
    assert plan_of(seed=2)[0].micro_batches(0, 1) != steps[0]


def test_too_few_conversations_are_said_with_both_numbers():
    with pytest.raises(ValueError, match=r"2 training conversations are fewer than the 4 micro-batches"):
        StepPlan([5, 5], [2, 2], 100, 2, 2, 0)
