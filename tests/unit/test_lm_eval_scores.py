"""lm-eval's results of several models as a measure, as figures, and as items."""

import pytest

from workflows.lm_eval.results import TaskItem, TaskMetric, TaskResult
from workflows.scorecard.lm_eval_scores import scored_tasks

IDS = ["0", "1", "2"]


def result(scores: list[float], name: str = "rules", metric: str = "acc", higher: bool = True) -> TaskResult:
    items = [TaskItem(id=number, task=name, prompt=f"Q{number}", replies=["yes"], expected="yes") for number in IDS]
    by_item = dict(zip(IDS, scores, strict=True)) if scores else {}
    main = TaskMetric(
        name=metric, value=sum(scores) / 3 if scores else 0.4, higher_is_better=higher, scores=by_item,
        weights=dict.fromkeys(by_item, 2.0),
    )  # fmt: skip
    other = TaskMetric(name="f1", value=0.25, higher_is_better=True, scores={}, weights={})
    return TaskResult(name=name, field="evaluate.lm_eval.0", golden=True, items=items, metrics=[main, other])


def test_a_task_is_a_measure_and_has_its_items_and_all_its_metrics() -> None:
    found = scored_tasks({"base": [result([0, 0, 1])], "tuned": [result([1, 0, 1])]}, 0.95)
    [measure], [figures], [task] = found.measures, found.figures, found.tasks
    assert (measure.name, measure.unit, measure.golden, measure.lower_is_better) == (
        "lm-eval rules",
        "share",
        True,
        False,
    )
    assert measure.scores == {"base": [0, 0, 1], "tuned": [1, 0, 1]}
    assert measure.weights == [2.0] * 3
    assert (figures.scorer, figures.items, [score.mean for score in figures.scores]) == (
        "lm-eval acc", 3, [pytest.approx(1 / 3), pytest.approx(2 / 3)]
    )  # fmt: skip
    assert task.values == {
        "acc": {"base": pytest.approx(1 / 3), "tuned": pytest.approx(2 / 3)}, "f1": {"base": 0.25, "tuned": 0.25},
    }  # fmt: skip
    assert [(item.suite, item.asked, item.scores) for item in found.items[:1]] == [
        ("lm-eval rules", ["Q0"], {"base": 0, "tuned": 1})
    ]


def test_a_perplexity_is_a_number_of_which_less_is_better() -> None:
    of_model = [result([2.5, 3.0, 0.5], metric="word_perplexity", higher=False)]
    [measure] = scored_tasks({"base": of_model, "tuned": of_model}, 0.95).measures
    assert (measure.unit, measure.lower_is_better) == ("number", True)


def test_a_metric_without_scores_of_items_is_only_reported() -> None:
    found = scored_tasks({"base": [result([])], "tuned": [result([])]}, 0.95)
    assert (found.measures, found.figures, found.items) == ((), (), ())
    assert found.tasks[0].values["acc"] == {"base": 0.4, "tuned": 0.4}


def test_a_task_that_is_listed_twice_has_two_names() -> None:
    twice = [result([1, 1, 1]), result([0, 0, 0])]
    assert [each.name for each in scored_tasks({"base": twice, "tuned": twice}, 0.95).measures] == [
        "lm-eval rules", "lm-eval rules (2)"
    ]  # fmt: skip
