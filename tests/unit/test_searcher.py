"""What a search draws: random settings by the number of the trial, TPE's, none twice; and what TPE is told."""

import math

import optuna
import pytest
import ray.tune
from ray.tune.search import BasicVariantGenerator, Searcher

from models.training.report import Report
from workflows.search.draws import Draws
from workflows.search.tpe import TpeSearch
from workflows.search.trial import RESULT, TrialEvent, values_of
from workflows.spec import TpeSpec
from workflows.spec.space import parse

SPACE = {
    "train.learning_rate": {"loguniform": [1e-5, 1e-3]}, "train.weight_decay": {"uniform": [0, 0.1]},
    "train.adapter.rank": {"logint": [4, 64]}, "train.seed": {"int": [0, 9]}, "train.adapter.alpha": [8, 16, 32],
}  # fmt: skip
ONE = {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}}
SMALL = {"train.seed": [0, 1, 2], "train.adapter.method": ["lora", "rslora"]}


def dimensions(space):
    return {field: parse(entry) for field, entry in space.items()}


def result(values, *, failed="", failures=0, step=1):
    """A result of Tune's with a report of these metrics, or of a failed trial."""
    report = None if failed else Report(step, 9, values, None)
    return {RESULT: TrialEvent("key", {}, None, report, failures, failed=failed)}


class Search:
    """Drives a searcher as Tune does: `concurrent` trials at once, each with one report."""

    def __init__(self, space=None, *, earlier=None, startup=10, metrics=("held_out_loss",), multivariate=False):
        spec = TpeSpec(startup_trials=startup, multivariate=multivariate)
        self.searcher = TpeSearch(spec, 0, dimensions(space or ONE), metrics, earlier or {})
        self.metrics = metrics

    def run(self, trials, concurrent=1, loss=lambda values: 1.0):
        running, chosen = [], []
        while len(chosen) < trials:
            if len(running) == concurrent:
                self.end(*running.pop(), loss)
            number = str(len(chosen))
            suggested = self.searcher.suggest(number)
            if suggested == Searcher.FINISHED:
                break
            chosen.append(values_of(suggested))
            running.append((number, chosen[-1]))
        return chosen

    def end(self, number, values, loss):
        self.searcher.on_trial_complete(number, result(dict.fromkeys(self.metrics, loss(values))))

    def told(self):
        """What Optuna knows of each trial."""
        return [(trial.state.name, trial.values) for trial in self.searcher._study.get_trials(deepcopy=False)]


def distinct(chosen):
    return len({repr(values) for values in chosen})


def test_random_draws_are_those_that_stores_have():
    """Tune's own searcher has drawn them until now."""
    theirs = {
        "train.learning_rate": ray.tune.loguniform(1e-5, 1e-3), "train.weight_decay": ray.tune.uniform(0, 0.1),
        "train.adapter.rank": ray.tune.lograndint(4, 65), "train.seed": ray.tune.randint(0, 10),
        "train.adapter.alpha": ray.tune.choice([8, 16, 32]),
    }  # fmt: skip
    generator = BasicVariantGenerator(random_state=7)
    experiment = ray.tune.Experiment("e", lambda config: None, config=theirs, num_samples=50, storage_path="/tmp")
    generator.add_configurations([experiment])
    draws = Draws(dimensions(SPACE), 7)
    for number in range(50):
        assert draws[number] == generator.next_trial().config


def test_a_draw_belongs_to_the_seed_and_the_number():
    draws, again = Draws(dimensions(SPACE), 3), Draws(dimensions(SPACE), 3)
    assert [again[number] for number in (9, 2, 5)] == [draws[number] for number in (9, 2, 5)]
    assert Draws(dimensions(SPACE), 4)[0] != draws[0]


@pytest.mark.parametrize("space", [SMALL, {"train.seed": {"logint": [1, 500]}}])
def test_every_setting_is_drawn_once_and_then_there_is_none(space):
    drawn = [*Draws(dimensions(space), 0)]
    assert len(drawn) == distinct(drawn) == math.prod(each.count for each in dimensions(space).values())
    assert [*Draws(dimensions(space), 0)] == drawn


def test_members_of_a_population_may_have_the_same_settings():
    draws = Draws(dimensions({"train.seed": [0, 1]}), 0, may_repeat=True)
    assert distinct([draws[number] for number in range(8)]) == 2


@pytest.mark.parametrize(("before", "after"), [(5, 10), (8, 16), (5, 20), (12, 13)])
@pytest.mark.parametrize("multivariate", [False, True])
def test_a_widened_tpe_search_goes_on_with_new_draws(before, after, multivariate):
    chosen = Search(multivariate=multivariate).run(before)
    wider = Search(earlier=dict(enumerate(chosen)), multivariate=multivariate).run(after)
    assert wider[:before] == chosen
    assert distinct(wider) == after
    whole = Search(multivariate=multivariate).run(after)
    assert wider[:10] == whole[:10]  # random ones
    assert wider == whole  # TPE's too, since they know the same and belong to the seed and the number


def test_an_interrupted_tpe_search_keeps_the_numbers_of_its_trials():
    whole = Search().run(10)
    known = {number: whole[number] for number in (0, 1, 3)}  # trial 2 had not reported
    assert Search(earlier=known).run(10) == whole


def test_concurrency_does_not_change_random_draws():
    one, many = Search().run(10), Search().run(24, concurrent=12)
    assert many[:10] == one
    assert distinct(many) == 24


def test_settings_of_tpes_are_one_trial_of_the_study():
    search = Search()
    search.run(30, concurrent=4)
    assert len(search.told()) == 30
    conditional = {"train.adapter.method": ["lora", "dora"], "train.adapter.rank": {
        "logint": [4, 64], "when": {"train.adapter.method": "dora"}}, **ONE}  # fmt: skip
    search = Search(conditional)
    chosen = search.run(30, concurrent=4)
    known = [trial.params for trial in search.searcher._study.get_trials() if trial.state.name != "FAIL"]
    assert known == chosen, "those that TPE has also chosen for an inactive field have failed"


@pytest.mark.parametrize("startup", [1, 10])
def test_tpe_tries_no_setting_twice_and_ends_when_the_space_is_used_up(startup):
    for concurrent in (1, 3):
        chosen = Search(SMALL, startup=startup).run(50, concurrent, loss=lambda values: values["train.seed"])
        assert len(chosen) == distinct(chosen) == 6


def test_tpe_goes_where_trials_are_good():
    chosen = Search().run(60, concurrent=4, loss=lambda values: abs(math.log10(values["train.learning_rate"]) + 3.5))
    near = [abs(math.log10(values["train.learning_rate"]) + 3.5) < 0.2 for values in chosen]
    assert sum(near[30:]) > 2 * sum(near[:10]) / 10 * 30


NAN = math.nan


@pytest.mark.parametrize("metric", ["held_out_loss", "held_out_accuracy"])
@pytest.mark.parametrize("end", ["finished", "stopped", "failed", "time"])
def test_tpe_is_told_what_decides(metric, end):
    """The best finite value up to a trial's end, whatever ended it."""
    search = Search(metrics=(metric,))
    search.searcher.suggest("0")
    reports = [{metric: 0.8}, {metric: 0.3}, {metric: NAN}, {metric: 0.5}]
    for number, values in enumerate(reports[:-1]):
        search.searcher.on_trial_result("0", result(values, step=number))
    ended = {
        "finished": result(reports[-1]), "stopped": result(reports[-1]), "failed": result({}, failed="it broke"),
        "time": None,
    }[end]  # fmt: skip
    search.searcher.on_trial_complete("0", ended)
    assert search.told() == [("COMPLETE", [0.3 if metric == "held_out_loss" else 0.8])]


def test_a_trial_without_a_number_is_worse_than_all_others():
    search = Search()
    lost = result({}, failed="out of memory", failures=3)
    for number, ended in enumerate([result({"held_out_loss": NAN}), result({}, failed="no such layer"), lost, None]):
        search.searcher.suggest(str(number))
        search.searcher.on_trial_complete(str(number), ended, error=ended is None)
    assert [state for state, _ in search.told()] == ["PRUNED", "PRUNED", "FAIL", "FAIL"]


def test_two_metrics_are_those_of_the_best_report():
    search = Search(metrics=("held_out_loss", "seconds"))
    search.searcher.suggest("0")
    for loss, seconds in ((3.0, 1.0), (1.0, 2.0), (2.0, 3.0)):
        search.searcher.on_trial_result("0", result({"held_out_loss": loss, "seconds": seconds}))
    search.searcher.on_trial_complete("0", result({"held_out_loss": NAN, "seconds": 4.0}))
    search.searcher.suggest("1")
    search.searcher.on_trial_complete("1", result({"held_out_loss": NAN, "seconds": 1.0}))
    assert search.told() == [("COMPLETE", [1.0, 2.0]), ("PRUNED", None)]
    assert distinct(search.run(20)) == 20
    assert search.searcher._study.directions == [optuna.study.StudyDirection.MINIMIZE] * 2
