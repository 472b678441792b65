"""Preference losses and distillation, compared with the papers' equations for one sequence at a time, in float64."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.base.load import load_model
from models.kernels.attention import PACKED_ATTENTION
from models.kernels.loss import fuse_head, top_log_probabilities
from models.objectives.distill import teacher_replies, teacher_values
from models.objectives.preference import reference_values
from models.objectives.registry import OBJECTIVES
from models.packing import pack

Row = dict[str, Any]
VOCABULARY = 200
SEQUENCES = ("input_ids", "other_input_ids")


@pytest.fixture
def rows() -> list[Row]:
    """Three rows with all columns that any objective reads; in the last row, each reply has its own prompt."""
    draw = random.Random(0)

    def tokens(most: int) -> list[int]:
        return [draw.randrange(VOCABULARY) for _ in range(draw.randrange(2, most))]

    def sequence(prompt: list[int]) -> tuple[list[int], list[bool]]:
        reply = tokens(12)
        return prompt + reply, [False] * len(prompt) + [True] * len(reply)

    made = []
    for index in range(3):
        prompt = tokens(9)
        ids, supervised = sequence(prompt)
        other_ids, other_supervised = sequence(tokens(9) if index == 2 else prompt)
        made.append(
            {
                "input_ids": ids, "supervised": supervised,
                "other_input_ids": other_ids, "other_supervised": other_supervised,
                "reference_log_probability": -5.0 * sum(supervised) - draw.random() * 20,
                "other_reference_log_probability": -5.0 * sum(other_supervised) - 9 - draw.random() * 20,
                "desirable": index != 1,
            }
        )  # fmt: skip
    return made


def shared(rows: list[Row]) -> int:
    """Prompt lengths of the first two rows."""
    return sum(row["supervised"].index(True) for row in rows[:2])


def plain_log_p(model: Any, ids: list[int], supervised: list[bool]) -> tuple[torch.Tensor, int]:
    """log p of a reply, and its length, from transformers' own forward pass on this sequence alone."""
    logits = model(torch.tensor([ids])).logits[0].double()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for position in range(1, len(ids)):
        if supervised[position]:
            total = total + logits[position - 1][ids[position]] - torch.logsumexp(logits[position - 1], 0)
            count += 1
    return total, count


def both(model: Any, row: Row) -> tuple[torch.Tensor, int, torch.Tensor, int]:
    return (
        *plain_log_p(model, row["input_ids"], row["supervised"]),
        *plain_log_p(model, row["other_input_ids"], row["other_supervised"]),
    )


def minus_log_s(x: torch.Tensor) -> torch.Tensor:
    return torch.log(1 + torch.exp(-x))


def plain_dpo(model: Any, rows: list[Row], beta: float, label_smoothing: float) -> tuple[torch.Tensor, list[float]]:
    total, margins = torch.zeros((), dtype=torch.float64), []
    for row in rows:
        chosen, _, rejected, _ = both(model, row)
        z = beta * (chosen - row["reference_log_probability"])
        z = z - beta * (rejected - row["other_reference_log_probability"])
        total = total + (1 - label_smoothing) * minus_log_s(z) + label_smoothing * minus_log_s(-z)
        margins.append(float(z.detach()))
    return total, margins


def plain_simpo(model: Any, rows: list[Row], beta: float, gamma: float) -> tuple[torch.Tensor, list[float]]:
    total, margins = torch.zeros((), dtype=torch.float64), []
    for row in rows:
        chosen, m, rejected, n = both(model, row)
        margin = beta / m * chosen - beta / n * rejected
        total = total + minus_log_s(margin - gamma)
        margins.append(float(margin.detach()))
    return total, margins


def plain_orpo(model: Any, rows: list[Row], weight: float) -> tuple[torch.Tensor, list[float]]:
    total, margins = torch.zeros((), dtype=torch.float64), []
    for row in rows:
        chosen, m, rejected, n = both(model, row)
        p, q = torch.exp(chosen / m), torch.exp(rejected / n)
        ratio = torch.log((p / (1 - p)) / (q / (1 - q)))
        total = total - torch.log(p) + weight * minus_log_s(ratio)
        margins.append(float(ratio.detach()))
    return total, margins


def plain_kto(
    model: Any, rows: list[Row], beta: float, desirable_weight: float, undesirable_weight: float
) -> tuple[torch.Tensor, list[float]]:
    seen = []
    for row in rows:
        reply, _, mismatched, _ = both(model, row)
        ratio = reply - row["reference_log_probability"]
        seen.append((row["desirable"], ratio, float(mismatched.detach()) - row["other_reference_log_probability"]))
    z = max(0.0, sum(drift for _, _, drift in seen) / len(seen))
    total, margins = torch.zeros((), dtype=torch.float64), []
    for desirable, ratio, _ in seen:
        margin = beta * (ratio - z) if desirable else beta * (z - ratio)
        value = 1 / (1 + torch.exp(-margin))
        total = total + (desirable_weight if desirable else undesirable_weight) * (1 - value)
        margins.append(float(margin.detach()))
    return total, margins


def gradients(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def check_same(model: Any, ours: torch.Tensor, theirs: torch.Tensor, packed: Any) -> None:
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6, abs=1e-6)
    for mine, plain in zip(gradients(packed, ours), gradients(model, theirs), strict=True):
        # Neither is exact: both forward passes are float32.
        assert torch.linalg.vector_norm(mine - plain) <= 2e-5 * torch.linalg.vector_norm(plain) + 1e-6


@pytest.mark.parametrize(("name", "plain", "options"), [
    ("dpo", plain_dpo, {"beta": 0.1, "label_smoothing": 0.0}),
    ("dpo", plain_dpo, {"beta": 0.5, "label_smoothing": 0.2}),
    ("simpo", plain_simpo, {"beta": 2.0, "gamma": 0.7}),
    ("orpo", plain_orpo, {"weight": 0.3}),
    ("kto", plain_kto, {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.5}),
])  # fmt: skip
@pytest.mark.parametrize("fused", [False, True])
def test_preference_losses_are_the_papers(
    tiny_llama: Path, rows: list[Row], name: str, plain: Callable[..., Any], options: dict[str, float], fused: bool
) -> None:
    model, packed = load_model(tiny_llama, torch.float32), load_model(tiny_llama, torch.float32, PACKED_ATTENTION)
    assert not fused or fuse_head(packed)
    objective = OBJECTIVES[name](**options)
    assert objective.per_example
    assert set(objective.columns) <= set(rows[0])
    batch = objective.batch([{column: row[column] for column in objective.columns} for row in rows])
    assert (batch.weight, batch.num_sequences) == (3, 6)
    assert batch.input_ids.shape[1] == sum(len(row[name]) for row in rows for name in SEQUENCES) - shared(rows)
    loss, figures = objective.loss_sum(packed, batch)
    expected, margins = plain(model, rows, **options)
    check_same(model, loss, expected, packed)
    assert figures["margin"] == pytest.approx(sum(margins), rel=1e-5, abs=1e-5)
    assert figures["accuracy"] == sum(margin > 0 for margin in margins)


@pytest.mark.parametrize("drift", [30.0, -30.0])
def test_the_reference_point_of_kto_is_never_below_zero(tiny_llama: Path, rows: list[Row], drift: float) -> None:
    model, packed = load_model(tiny_llama, torch.float32), load_model(tiny_llama, torch.float32, PACKED_ATTENTION)
    for row in rows:
        row["other_reference_log_probability"] = float(both(model, row)[2].detach()) - drift
    objective = OBJECTIVES["kto"](beta=0.05)
    loss, _ = objective.loss_sum(packed, objective.batch(rows))
    expected, _ = plain_kto(model, rows, 0.05, 1.0, 1.0)
    check_same(model, loss, expected, packed)
    shifted = sum(
        1
        / (
            1
            + math.exp(
                (1 if row["desirable"] else -1) * 0.05 * (float(both(model, row)[0].detach()) - at - max(0.0, drift))
            )
        )
        for row in rows
        for at in [row["reference_log_probability"]]
    )
    assert float(loss.detach()) == pytest.approx(shifted, rel=1e-5)


def plain_distillation(
    model: Any, teacher: Any, rows: list[Row], k: int, temperature: float, plain_share: float
) -> torch.Tensor:
    """Computed from both models' full distributions, position by position."""
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        ids = row["input_ids"]
        student_p = torch.softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        teacher_p = torch.softmax(teacher(torch.tensor([ids])).logits[0].double(), -1).detach()
        for position in range(1, len(ids)):
            if not row["supervised"][position]:
                continue
            p, q = student_p[position - 1], teacher_p[position - 1]
            best = torch.argsort(q, descending=True)[:k]
            outcomes = [[m[token] for token in best] + [(1 - m[best].sum()).clamp(min=1e-6)] for m in (p, q)]
            softened = [[x ** (1 / temperature) for x in side] for side in outcomes]
            divergence = torch.zeros((), dtype=torch.float64)
            for a, b in zip(*softened, strict=True):
                a, b = a / sum(softened[0]), b / sum(softened[1])
                divergence = divergence + b * torch.log(b / a)
            total = total - plain_share * torch.log(p[ids[position]])
            total = total + (1 - plain_share) * temperature**2 * divergence
    return total


def with_teacher(rows: list[Row], teacher: Any, k: int) -> list[Row]:
    values = teacher_values(teacher, rows, k, vocabulary=260)
    return [{**row, **{name: column[index] for name, column in values.items()}} for index, row in enumerate(rows)]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("k", "temperature", "plain_share"), [(4, 1.0, 0.5), (12, 2.0, 0.0), (100, 0.5, 0.25)])
def test_distillation_is_its_equation(
    tiny_llama: Path, make_loud: Any, rows: list[Row], k: int, temperature: float, plain_share: float, fused: bool
) -> None:
    model, packed = load_model(tiny_llama, torch.float32), load_model(tiny_llama, torch.float32, PACKED_ATTENTION)
    teacher, packed_teacher = make_loud(tiny_llama), make_loud(tiny_llama)
    packed_teacher.set_attn_implementation(PACKED_ATTENTION)
    for loud in (teacher, packed_teacher):  # else float32 rounds the rest after the top 12 tokens to 0
        loud.lm_head.weight.data *= 0.3
    assert not fused or (fuse_head(packed) and fuse_head(packed_teacher))
    taught = with_teacher(rows, packed_teacher, k)
    objective = OBJECTIVES["distill"](temperature=temperature, plain_share=plain_share, top_k=k)
    batch = objective.batch(taught)
    assert not objective.per_example
    assert batch.weight == len(batch.targets)
    loss, figures = objective.loss_sum(packed, batch)
    check_same(model, loss, plain_distillation(model, teacher, rows, k, temperature, plain_share), packed)
    expected = plain_share * figures["plain_loss"] + (1 - plain_share) * temperature**2 * figures["divergence"]
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tiny_llama: Path, rows: list[Row]) -> None:
    model = load_model(tiny_llama, torch.float32, PACKED_ATTENTION)
    objective = OBJECTIVES["distill"](temperature=2.0, plain_share=0.0, top_k=8)
    loss, _ = objective.loss_sum(model, objective.batch(with_teacher(rows, model, 8)))
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-5)
    assert all(gradient.abs().max() < 1e-5 for gradient in gradients(model, loss))


def test_stored_values_of_the_start_make_it_the_start(tiny_llama: Path, rows: list[Row]) -> None:
    model = load_model(tiny_llama, torch.float32, PACKED_ATTENTION)
    with torch.no_grad():
        stored = reference_values(model, rows)
        rows = [{**row, **{name: column[i] for name, column in stored.items()}} for i, row in enumerate(rows)]
        for name, start in (("dpo", math.log(2)), ("kto", 0.5)):
            loss, figures = OBJECTIVES[name]().loss_sum(model, OBJECTIVES[name]().batch(rows))
            assert float(loss) == pytest.approx(3 * start, rel=1e-5)
            assert figures["margin"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_the_teachers_tokens_are_in_the_students_vocabulary(tiny_llama: Path, fused: bool) -> None:
    model = load_model(tiny_llama, torch.float32, PACKED_ATTENTION)
    assert not fused or fuse_head(model)
    batch = pack([([5, 6, 7, 8], [True] * 4)])
    tokens, log_p = top_log_probabilities(model, batch, 3, vocabulary=50)
    whole, whole_log_p = top_log_probabilities(model, batch, 260)
    assert tokens.shape == log_p.shape == (3, 3)
    assert int(tokens.max()) < 50
    assert torch.allclose(whole_log_p.exp().sum(1), torch.ones(3))
    for position in range(3):
        inside = [int(token) for token in whole[position] if token < 50]
        assert tokens[position].tolist() == inside[:3]


def test_a_teachers_reply_takes_the_place_of_the_last_one(tiny_model: Path, make_loud: Callable[[Path], Any]) -> None:
    teacher = make_loud(tiny_model)
    draw = random.Random(4)
    rows, prompts = [], []
    for prompt_length, reply_length in ((9, 4), (30, 2), (1, 7)):
        ids = [draw.randrange(3, 200) for _ in range(prompt_length + reply_length)]
        supervised = [False] * prompt_length + [True] * reply_length
        supervised[: prompt_length // 3] = [True] * (prompt_length // 3)  # earlier replies stay unchanged
        rows.append({"input_ids": [*ids, 5], "supervised": [*supervised, False]})
        prompts.append(ids[:prompt_length])
    alone = [
        teacher.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        for ids in prompts
    ]
    expected = [output[0, len(ids) :].tolist() for output, ids in zip(alone, prompts, strict=True)]
    ends = [expected[0][5], 0]
    expected = [
        reply[: next((index + 1 for index, token in enumerate(reply) if token in ends), 12)] for reply in expected
    ]
    found = teacher_replies(teacher, rows, 12, ends)
    assert found["input_ids"] == [ids + reply for ids, reply in zip(prompts, expected, strict=True)]
    assert found["supervised"] == [
        [False] * len(ids) + [True] * len(reply) for ids, reply in zip(prompts, expected, strict=True)
    ]
    assert found["num_tokens"] == [len(ids) for ids in found["input_ids"]]
    assert found["num_targets"] == [len(reply) for reply in expected]
    assert found["num_targets"][0] <= 6
