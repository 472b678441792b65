"""Records as JSON and back, and the figures of stages as they stand in stores."""

from dataclasses import dataclass
from typing import Any

import pytest

from workflows.figures import (
    DeployFigures,
    EvaluateFigures,
    OptimizeFigures,
    Part,
    PrepareFigures,
    ReferenceFigures,
    TrainFigures,
    TuneFigures,
)
from workflows.record import Record, optional

FORM = {
    "form": "model", "kept": True, "weights": "bf16", "size_mb": 272.6, "perplexity": 4.2016,
    "perplexity_increase": 2e-05, "greedy_agreement": 0.992, "load_s": 0.76,
}  # fmt: skip
EVALUATED = {
    "base_loss": 3.8153, "tuned_loss": 1.4341, "loss_reduction": 2.3812, "base_perplexity": 45.392,
    "tuned_perplexity": 4.196, "scored_tokens": 624, "tuned_fact_share": 0.8182, "passed": True, "verdict": "passed",
    "pair_verdict": "the pair is no better",
}  # fmt: skip
RELEASE = {"checkpoint_perplexity": 4.2, "held_out_tokens": 624, "forms": [FORM, {**FORM, "tokens_per_second": 14.8}]}
# As builds have written them.
STORED: list[tuple[type[Record], dict[str, Any]]] = [
    (PrepareFigures, {
        "conversations": 284, "held_out_conversations": 13, "quarantined": 2, "left_out": 0, "tokens": 37781,
        "supervised_tokens": 13875, "held_out_tokens": 1693, "truncated": 0, "longest": 213,
        "set_aside": [{"reason": "not JSON", "count": 2, "file": "a.jsonl", "line": 7, "example": "not JSON"}],
    }),
    (ReferenceFigures, {"conversations": 284}),
    (TrainFigures, {
        "steps": 90, "best_step": 60, "held_out_loss": 1.5, "held_out_accuracy": 0.9, "training_loss": 1.0,
        "tokens": 64060, "tokens_per_second": 123.6, "precision": "fp32", "peak_memory_gb_per_worker": 3.12,
    }),
    (EvaluateFigures, EVALUATED),
    (OptimizeFigures, {"openvino": "exported", **RELEASE}),
    (OptimizeFigures, {"openvino": "its model_type is unknown", **RELEASE, "discriminator": "shipped"}),
    (OptimizeFigures, {"openvino": "exported", **RELEASE, "discriminator": "left out: its accuracy is 60.0%"}),
    (DeployFigures, {"url": "http://127.0.0.1:8000", "model": "shop"}),
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Inner(Record):
    words: tuple[str, ...] = ()
    known: float | None = optional()


@dataclass(frozen=True, kw_only=True)
class Outer(Record):
    name: str
    ended: str | None = None
    by_name: dict[str, Inner]


@pytest.mark.parametrize(("kind", "stored"), STORED)
def test_figures_are_read_and_written_as_they_stand(kind: type[Record], stored: dict[str, Any]) -> None:
    written = kind.from_json(stored).to_json()
    assert written == stored
    assert list(written) == list(stored)


def test_none_is_null_but_in_optional_fields() -> None:
    record = Outer(name="a", by_name={"one": Inner(words=("x", "y")), "two": Inner(known=0.5)})
    plain = {
        "name": "a",
        "ended": None,
        "by_name": {"one": {"words": ["x", "y"]}, "two": {"words": [], "known": 0.5}},
    }
    assert record.to_json() == plain
    assert Outer.from_json(plain) == record
    assert Outer.from_json({"name": "a", "by_name": {}, "of a newer build": 1}) == Outer(name="a", by_name={})


def test_a_release_says_what_it_has() -> None:
    stored = {"openvino": "too new", **RELEASE, "discriminator": "left out: its accuracy is 60.0%"}
    figures = OptimizeFigures.from_json(stored)
    assert figures.openvino == Part("too new")
    assert not figures.openvino.is_there
    assert figures.discriminator == Part("its accuracy is 60.0%")
    assert OptimizeFigures.from_json({"openvino": "exported", **RELEASE}).openvino.is_there


def test_a_searchs_values_and_metric_stand_under_their_own_names() -> None:
    figures = TuneFigures(
        trials=3, finished=3, stopped=0, failed=0, winner=0, step=20, values={"train.learning_rate": 0.1},
        metric="held_out_loss", reported=3.5, remeasured=3.6,
    )  # fmt: skip
    plain = {
        "trials": 3, "finished": 3, "stopped": 0, "failed": 0, "winner": 0, "step": 20, "train.learning_rate": 0.1,
        "held_out_loss": 3.5, "remeasured": 3.6,
    }  # fmt: skip
    assert figures.to_json() == plain
    assert list(figures.to_json()) == list(plain)
