"""The gate's rules, on scores whose differences are known."""

import re
from collections.abc import Sequence

import numpy as np
import pytest

from workflows.figures import EvaluateFigures
from workflows.scorecard.comparisons import Measure, compare_all
from workflows.scorecard.gate import gate_verdict
from workflows.spec import GateSpec

FIGURES = EvaluateFigures(
    base_loss=2.0, tuned_loss=1.9, loss_reduction=0.1, base_perplexity=7.39, tuned_perplexity=6.69, scored_tokens=900,
    passed=False, verdict="",
)  # fmt: skip
TOPICS = [{"topic": "returns" if place < 60 else "prices"} for place in range(240)]


def suite(
    name: str, other: Sequence[bool], tuned: Sequence[bool], golden: bool = False, model: str = "base"
) -> Measure:
    scores = {model: [float(each) for each in other], "tuned": [float(each) for each in tuned]}
    return Measure(
        name=name, unit="share", scores=scores, clusters=[str(place) for place in range(len(tuned))],
        tags=TOPICS[: len(tuned)], golden=golden,
    )  # fmt: skip


def verdict(measures: Sequence[Measure], against: str = "base", **gate: object) -> tuple[bool, str]:
    return gate_verdict(FIGURES, compare_all(measures, ["base", "service"], 0.95), GateSpec(**gate), against)  # type: ignore[arg-type]


SOME = [place % 2 == 0 for place in range(240)]
MORE = [place % 2 == 0 or place % 12 == 1 for place in range(240)]  # 20 more, and none fewer
OTHERS = [place % 2 == 0 if place % 12 > 1 else place % 12 == 1 for place in range(240)]  # 20 more, and 20 fewer
FEWER_RETURNS = [right and place >= 20 for place, right in enumerate(SOME)]  # 10 fewer, all among the returns


def test_better_is_said_with_the_numbers_and_the_interval() -> None:
    passed, said = verdict([suite("rules", SOME, MORE)], rule="better")
    assert passed
    assert re.fullmatch(
        r"passed: better than the base model: rules: 58\.3 % instead of 50\.0 % \(\+8\.3 points, 95 % interval "
        r"\+[\d.]+ to \+[\d.]+; 240 items\)",
        said,
    )


def test_what_chance_explains_is_not_better() -> None:
    passed, said = verdict([suite("rules", SOME, OTHERS)], rule="better")
    assert not passed
    assert said.startswith(
        "failed: not shown to be better than the base model; the clearest difference is in rules: 50.0"
    )
    assert "which chance can explain (p = 1); this many items show differences of" in said
    assert said.endswith("(evaluate.gate.rule: better)")


def test_better_in_one_suite_does_not_hide_what_is_worse_in_another() -> None:
    passed, said = verdict([suite("rules", SOME, MORE), suite("tone", MORE, SOME)], rule="better")
    assert not passed
    assert said.startswith("failed: worse than the base model: tone: 50.0 % instead of 58.3 %")


def test_several_suites_are_corrected_for() -> None:
    barely = [place % 2 == 0 or place in (1, 3, 5, 7, 9, 11) for place in range(240)]  # p = 2 / 2^6 = 0.03
    assert verdict([suite("rules", SOME, barely)], rule="better")[0]
    passed, said = verdict([suite("rules", SOME, barely), suite("tone", SOME, SOME)], rule="better")
    assert not passed
    assert "which chance can explain (p = 0.062 among 2 measures)" in said


@pytest.mark.parametrize(("margin", "passes"), [(0.1, True), (0.02, False)])
def test_no_worse_needs_the_whole_interval_within_the_margin(margin: float, passes: bool) -> None:
    passed, said = verdict([suite("rules", SOME, OTHERS)], rule="no_worse", margin=margin)
    assert passed == passes
    assert f"no worse than the base model by more than {margin * 100:g} points: rules: 50.0 %" in said


def test_a_golden_suite_stops_what_is_worse_in_one_topic_alone() -> None:
    for rule in ("thresholds", "better", "no_worse"):
        passed, said = verdict([suite("golden", SOME, FEWER_RETURNS, golden=True)], rule=rule)
        assert not passed
        assert said.startswith(
            "failed: a golden suite is worse than with the base model: golden, topic=returns: 33.3 % instead of 50.0"
        )
    assert verdict([suite("golden", SOME, FEWER_RETURNS)])[0], "a suite that is not golden stopped it"


def test_a_golden_suite_lets_pass_what_is_only_different() -> None:
    assert verdict([suite("golden", SOME, OTHERS, golden=True)])[0]


def test_the_release_in_service_is_what_counts_if_it_is_compared_with() -> None:
    measures = [suite("golden", MORE, SOME, golden=True, model="service")]
    assert verdict(measures)[0]
    passed, said = verdict(measures, against="service")
    assert not passed
    assert "worse than with the release in service: golden: 50.0 % instead of 58.3 %" in said


def test_a_lower_loss_is_better_and_groups_are_counted() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(2.0, 0.3, 200)
    measure = Measure(
        name="held-out loss", unit="nats", scores={"base": base.tolist(), "tuned": (base - 0.1).tolist()},
        clusters=[str(place // 2) for place in range(200)], tags=[{}] * 200, weights=[5.0] * 200,
        lower_is_better=True,
    )  # fmt: skip
    passed, said = verdict([measure], rule="better")
    assert passed
    assert "(-0.1000 nats a token, 95 % interval -0.1000 to -0.1000; 200 conversations in 100 groups)" in said


def test_nothing_to_compare_is_no_pass() -> None:
    passed, said = verdict([suite("rules", SOME, MORE)], against="service", rule="better")
    assert not passed
    assert said.startswith("failed: nothing to compare with the release in service; add evaluate.suites")


def test_minimum_values_that_are_set_count_under_every_rule() -> None:
    passed, said = verdict([suite("rules", SOME, MORE)], rule="better", min_loss_reduction=0.5)
    assert not passed
    assert "evaluate.gate.min_loss_reduction" in said
    assert verdict([suite("rules", SOME, MORE)], rule="better", min_loss_reduction=0.05)[0]
