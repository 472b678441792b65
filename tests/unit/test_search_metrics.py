"""The metrics that a search can compare by: what each objective reports, and which fields enter a figure itself."""

import random
from typing import Any, get_args

import pytest
import torch

from models.base.load import load_model
from models.training.engine import TorchEngine
from models.training.fit import HeldOut, held_out_batches, held_out_figures, measure
from workflows.spec import ObjectiveSpec, TrainSpec
from workflows.spec.objectives import AnyObjective
from workflows.spec.tune import COSTS, Metric
from workflows.training.data import objective_of

OBJECTIVES: dict[str, type[ObjectiveSpec]] = {
    each.model_fields["name"].default: each for each in get_args(get_args(AnyObjective)[0])
}
# Another value of each field that an objective's loss could read.
OTHER = {
    "beta": 0.35, "label_smoothing": 0.2, "weight": 0.7, "desirable_weight": 1.5, "undesirable_weight": 0.6,
    "gamma": 0.4, "temperature": 2.0, "plain_share": 0.2, "l1_weight": 0.5,
    "likelihood_weight": 0.1, "kl_weight": 0.2,
    "learning_rate": 1e-3, "discriminator_learning_rate": 1e-3, "num_replies": 2, "replay_steps": 3,
    "min_accuracy": 0.9, "warmup_steps": 7, "turns": 9, "gradient": "gumbel",
}  # fmt: skip
# They decide the reference values, which all trials share: they are not searched.
SHARED = {"name", "teacher", "top_k", "max_reply_tokens"}
TOKENS = 64


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Rows with all columns that any objective reads."""
    draw, made = random.Random(0), []
    for index in range(8):
        prompt = [draw.randrange(200) for _ in range(4)]
        replies = [[draw.randrange(200) for _ in range(draw.randrange(3, 9))] for _ in range(2)]
        supervised = [[False] * 4 + [True] * len(reply) for reply in replies]
        made.append({
            "input_ids": prompt + replies[0], "supervised": supervised[0],
            "other_input_ids": prompt + replies[1], "other_supervised": supervised[1],
            "piece_lengths": [], "piece_parents": [],
            "num_tokens": 4 + len(replies[0]) + len(replies[1]),
            "reference_log_probability": -5.6 * len(replies[0]) + draw.uniform(-4, 4),
            "other_reference_log_probability": -5.6 * len(replies[1]) + draw.uniform(-4, 4),
            "desirable": index % 3 != 0,
            "teacher_tokens": [draw.randrange(200) for _ in range(32 * len(replies[0]))],
            "teacher_log_probabilities": [-4.0 - draw.random() for _ in range(32 * len(replies[0]))],
        })  # fmt: skip
    return made


@pytest.fixture(scope="module")
def figures_of(tiny_llama, rows):
    model = load_model(tiny_llama, torch.float32)

    def figures(section: ObjectiveSpec, batch_tokens: int = TOKENS) -> dict[str, float]:
        objective = objective_of(section)
        engine = TorchEngine(model, objective)
        batches = [*held_out_batches(rows, batch_tokens, 0, 1, objective.batch)]
        return held_out_figures(measure(engine, HeldOut(batches))[0])

    return figures


def section_of(name: str, **fields: Any) -> ObjectiveSpec:
    teacher = {"teacher": "random:tiny-llama"} if name.startswith("distill") else {}
    train = {"objective": {"name": name, **teacher, **fields}, "adapter": None}
    return TrainSpec.model_validate(train).objective


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_reports_its_metrics_and_only_the_named_fields_enter_them(name, figures_of):
    plain = figures_of(section_of(name))
    assert list(plain) == list(OBJECTIVES[name].metrics)
    entering: dict[str, set[str]] = {metric: set() for metric in plain}

    def note(field: str, found: dict[str, float]) -> None:
        for metric, value in found.items():
            if value != pytest.approx(plain[metric], rel=1e-6, abs=1e-9):
                entering[metric].add(field)

    note("batch_tokens", figures_of(section_of(name), batch_tokens=TOKENS // 2))
    for field in OBJECTIVES[name].model_fields.keys() - SHARED:
        note(f"objective.{field}", figures_of(section_of(name, **{field: OTHER[field]})))
    assert entering == {metric: set(fields) for metric, fields in OBJECTIVES[name].metrics.items()}


def test_all_metrics_have_a_name_in_the_pipeline_file():
    named = set(get_args(get_args(Metric)[0]))
    assert named == {metric for each in OBJECTIVES.values() for metric in each.metrics} | set(COSTS)
