"""The scorecard: made of what workers found, written and read, in words, and as an adversarial pair's page."""

import json
from dataclasses import replace

import pytest

from workflows.judge.records import Judged, JudgedItem, JudgeFigures
from workflows.scorecard.adversarial_plot import pair_page
from workflows.scorecard.judged import to_judge
from workflows.scorecard.questions import Prompt, Question
from workflows.scorecard.records import AdversarialScorecard, Controls, Diversity, RepliesFigures, Scorecard
from workflows.scorecard.scorecard import scorecard_of, scorecard_text
from workflows.scorecard.worker import ScoreRow
from workflows.spec import GateSpec

ASKED = [
    Prompt(
        [{"role": "user", "content": "When?"}],
        question=Question("When?", [["45 days"], ["Monday", "Mon"]], "questions.jsonl:1"),
    ),
    Prompt([{"role": "user", "content": "Hello"}], reference="Good day."),
]
SCORED: list[ScoreRow] = [
    {"question": -1, "losses": {"base": 30.0, "tuned": 20.0}, "targets": 10, "margin": None},
    {"question": -1, "losses": {"base": 10.0, "tuned": 10.0}, "targets": 10, "margin": None},
    {"question": 0, "model": "base", "answers": [{"role": "assistant", "content": "Never."}]},
    {"question": 0, "model": "tuned", "answers": [{"role": "assistant", "content": " In 45 days, on Mon."}]},
    {"question": 1, "model": "base", "answers": [{"error": "the prompt is too long"}]},
    {"question": 1, "model": "tuned", "answers": [{"role": "assistant", "content": "Good day!"}]},
]
PAIR = AdversarialScorecard(
    histories=20,
    loss=2.0,
    reranked_loss=1.9,
    candidates=4,
    discriminator_accuracy=0.75,
    verdict="the discriminator lowers it",
    continued_loss=2.1,
    turns_verdict="the turns lower it",
    replies=(
        RepliesFigures(
            model="generator", temperature=1.0, fresh_accuracy=0.7, length_accuracy=0.5, frechet_distance=1.5,
            distinct_1=0.1, distinct_2=0.2, self_bleu=0.3,
        ),
    ),
    controls=Controls(real_against_real=0.5, random_tokens=1.0),
    real=Diversity(distinct_1=0.4, distinct_2=0.5, self_bleu=0.6),
)  # fmt: skip


@pytest.fixture
def scorecard() -> Scorecard:
    return scorecard_of(SCORED, ASKED, GateSpec(min_fact_share=1.0))[0]


def test_losses_are_means_over_all_tokens_and_facts_are_counted(scorecard: Scorecard) -> None:
    assert (scorecard.base_loss, scorecard.tuned_loss, scorecard.loss_reduction) == (2.0, 1.5, 0.5)
    assert (scorecard.scored_tokens, scorecard.scored_pairs) == (20, None)
    assert (scorecard.base_fact_share, scorecard.tuned_fact_share) == (0.0, 1.0)
    assert scorecard.passed
    assert scorecard.verdict == "passed: held-out loss lower by 0.5000 nats a token"
    words = scorecard_text(scorecard)
    assert "tuned  [2/2]  In 45 days, on Mon." in words
    assert "reference Good day." in words


def test_sources_and_languages_have_losses_of_their_own_if_there_are_several() -> None:
    rows: list[ScoreRow] = [
        {"question": -1, "losses": {"base": 30.0, "tuned": 20.0}, "targets": 10, "source": 0, "language": "de"},
        {"question": -1, "losses": {"base": 10.0, "tuned": 10.0}, "targets": 10, "source": 2, "language": "de"},
        {"question": -1, "losses": {"base": 10.0, "tuned": 4.0}, "targets": 4, "source": 1, "language": "de"},
    ]
    found, _ = scorecard_of(rows, [], GateSpec(), names=["shop", "shop", "news"])
    assert [(each.part, each.base_loss, each.tuned_loss, each.scored_tokens) for each in found.parts] == [
        ("news", 1.0, 1.0, 10), ("shop", 2.8571, 1.7143, 14)
    ]  # fmt: skip
    assert "    news: base 1.0000, tuned 1.0000 (10 tokens)" in scorecard_text(found)
    assert Scorecard.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert scorecard_of(rows, [], GateSpec())[0].parts == ()


def test_pairs_have_their_margins() -> None:
    rows: list[ScoreRow] = [
        {"question": -1, "losses": {"base": 1.0, "tuned": 2.0}, "targets": 1, "margin": margin}
        for margin in (0.5, -0.25, 1.0)
    ]
    found, _ = scorecard_of(rows, [], GateSpec())
    assert (found.preference_accuracy, found.reward_margin, found.scored_pairs) == (0.6667, 0.4167, 3)
    assert found.passed, "the gate of pairs is their accuracy"


@pytest.mark.parametrize("pair", [None, PAIR], ids=["one model", "a pair"])
def test_json_has_what_was_measured_and_is_read_back(scorecard: Scorecard, pair: AdversarialScorecard | None) -> None:
    whole = Scorecard(**{**vars(scorecard), "pair": pair})
    content = json.loads(json.dumps(whole.to_json()))
    assert Scorecard.from_json(content).to_json() == whole.to_json()
    assert ("pair" in content) == (pair is not None)
    assert "preference_accuracy" not in content
    assert content["questions"][0]["tuned_facts"] == 2
    figures = whole.figures.to_json()
    assert not {"questions", "replies", "pair"} & set(figures)
    assert figures.get("pair_reranked_loss") == (None if pair is None else 1.9)


def test_a_page_has_a_line_for_each_model() -> None:
    page = pair_page("shop", PAIR.replies, PAIR.real, PAIR.controls)
    assert "Replies of shop" in page
    assert "generator" in page


def test_a_judges_outcomes_are_a_measure_unless_it_is_refused() -> None:
    results = [*SCORED[:2], *(reply for number in (0, 1) for reply in replies_to(number))]
    asked = [Prompt([{"role": "user", "content": text}], reference="") for text in ("When?", "Hello")]
    items = to_judge(asked, results, "base")
    assert [(item.first, item.second) for item in items] == [("old 0", "new 0"), ("old 1", "new 1")]
    outcomes = tuple(JudgedItem(id=str(number), group=str(number), tags={}, outcome="win") for number in range(20))
    judged = Judged(figures=JUDGED, items=outcomes)
    found, _ = scorecard_of(results, asked, GateSpec(rule="better"), judged=judged)
    [compared] = [each for each in found.comparisons if each.measure == "judge"]
    assert (compared.other, compared.tuned, compared.items) == (0.5, 1.0, 20)
    assert "judge: 100.0 % instead of 50.0 %" in found.verdict
    assert "judge someone (pairwise): 20 items, tuned wins 20" in scorecard_text(found)
    refused = Judged(figures=replace(JUDGED, refused="it is of no use"), items=outcomes)
    found, _ = scorecard_of(results, asked, GateSpec(rule="better"), judged=refused)
    assert not [each for each in found.comparisons if each.measure == "judge"]
    assert "its answers do not count: it is of no use" in scorecard_text(found)


def test_what_the_endpoint_refused_is_not_judged() -> None:
    assert to_judge(ASKED, SCORED, "base") == []  # a question has facts, and the other has no reply of the base


def replies_to(number: int) -> list[ScoreRow]:
    said = {"base": f"old {number}", "tuned": f"new {number}"}
    return [
        {"question": number, "model": model, "answers": [{"role": "assistant", "content": text}]}
        for model, text in said.items()
    ]


JUDGED = JudgeFigures(
    judge="someone", mode="pairwise", items=20, wins=20, ties=0, losses=0, no_answers=0, identical=0, requests=40,
    cached=0, input_tokens=1, output_tokens=1,
)  # fmt: skip
