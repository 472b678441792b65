"""tune.max_cost: what a search may still spend, when it starts no trial and stops running ones, and what it says."""

import pytest
import yaml
from ray.tune.search import Searcher

from models.training.report import Report
from workflows.cluster import capacity
from workflows.cluster.price import price_of_trainings, why_no_price
from workflows.runs.page.html import Plots
from workflows.runs.page.run_page import _search
from workflows.search.budget import Budget
from workflows.search.price_text import price_lines
from workflows.search.priced import StopsAtCost, WithinCost
from workflows.search.records import Search, Trial
from workflows.search.table import search_text
from workflows.search.trial import RESULT, TrialEvent
from workflows.search.tuner import InOrder
from workflows.spec import PipelineSpec, TuneSpec
from workflows.store import Store

DATA = {"sources": [{"path": "x.jsonl"}]}
SPACE = {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}}


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def spend(budget, clock, trial, steps=(1, 2, 3), seconds=10.0):
    """A trial with these checkpoints of three, each after so many seconds."""
    budget.begin(trial)
    for step in steps:
        clock.now += seconds
        budget.report(trial, step, 3)
    budget.end(trial, is_new=True)


def test_another_trial_begins_if_it_ends_within_the_cost(clock):
    budget = Budget(1.0, 36.0, clock=clock)  # a cent a second: 100 seconds
    trials = 0
    while budget.allows_another():
        spend(budget, clock, str(trials))
        trials += 1
    assert (trials, clock.now) == (3, 190.0)
    assert budget.cost_with_another() == pytest.approx(1.2)


def test_before_any_trial_has_ended_the_pace_of_running_ones_counts(clock):
    budget = Budget(1.0, 36.0, clock=clock)
    budget.begin("long")
    assert budget.allows_another()  # nothing is known
    clock.now += 10
    budget.report("long", 1, 10)
    assert not budget.allows_another()
    assert budget.may_allow_another()
    assert budget.cost_with_another() == pytest.approx(1.1)
    budget.end("long", is_new=True)  # the scheduler has stopped it after 10 seconds
    assert budget.allows_another()
    clock.now += 90
    assert not budget.may_allow_another()
    assert not Budget(1.0, 36.0, spent_before=1.0, clock=clock).allows_another()


def test_a_running_trial_ends_at_its_last_checkpoint_within_the_cost(clock):
    budget = Budget(1.0, 36.0, clock=clock)
    budget.begin("0")
    for step in range(1, 10):
        clock.now += 30
        budget.report("0", step, 90)
        if not budget.allows_more("0"):
            break
    assert (step, clock.now) == (3, 190.0)


def test_a_known_trial_counts_with_the_seconds_of_its_reports_and_without_any_not_at_all(clock):
    budget = Budget(1.0, 36.0, clock=clock)
    budget.begin("0")
    budget.end("0", is_new=False)
    assert budget.cost_with_another() == 0.0
    budget.begin("1")
    budget.report("1", 3, 3, trained=60.0)
    budget.end("1", is_new=False)
    assert budget.cost_with_another() == pytest.approx(0.6)
    clock.now += 41
    assert not budget.allows_another()


def result(step, *, num_steps=3, was_known=False, known=()):
    report = Report(step, num_steps, {"held_out_loss": 1.0, "num_tokens": step * 10.0, "seconds": step * 20.0})
    return {RESULT: TrialEvent("key", {}, None, report, was_known=was_known, known=known)}


class Driven:
    """A search with a maximum cost, driven as Tune drives it, one trial at a time."""

    def __init__(self, clock, known=(), spent_before=0.0):
        self.search = Search(
            "p", "k", ["held_out_loss"], {}, "random", "none", None, price_per_hour=36.0, max_cost=1.0,
            spent_before=spent_before,
        )  # fmt: skip
        self.clock, budget = clock, Budget(1.0, 36.0, spent_before, known, clock)
        settings = [{"train.seed": number} for number in range(99)]
        self.searcher = WithinCost(InOrder(settings), budget, self.search)
        self.stops = StopsAtCost(budget, self.search)

    def run(self, reports=None):
        """Trains until the search ends; returns each trial's last step. `reports`: of known trials, by number."""
        ended = []
        while isinstance(self.searcher.suggest(str(len(ended))), dict):
            ended.append(self._trial(str(len(ended)), (reports or {}).get(len(ended), 0)))
        assert self.searcher.suggest("more") == Searcher.FINISHED
        return ended

    def _trial(self, number, known):
        recorded = [Report(step, 3, {}) for step in range(1, known + 1)]
        for step in (1, 2, 3):
            was_known = step <= known
            self.clock.now += 0 if was_known else 20
            now = result(step, was_known=was_known, known=recorded if step == 1 else ())
            if self.stops(number, now) or step == 3:
                self.searcher.on_trial_complete(number, now)
                return step
            self.searcher.on_trial_result(number, now)
        return None


def test_a_search_ends_at_its_maximum_cost_and_says_so(clock):
    driven = Driven(clock)
    assert driven.run() == [3]
    driven.search.seconds = 60.0
    assert driven.search.spent == pytest.approx(0.6)
    assert driven.search.cost_with_another == pytest.approx(1.2)
    assert price_lines(driven.search) == [
        "spent $0.60 of tune.max_cost, $1.00, at $36.00 an hour; the search ended, because another trial would have "
        "ended at $1.20"
    ]


def test_all_trials_end_at_the_maximum_cost_also_those_that_have_not_reported(clock):
    budget = Budget(1.0, 36.0, known=(0,), clock=clock)
    budget.begin("0", is_known=True)
    budget.begin("1")
    clock.now += 100
    assert not budget.is_used_up()  # trial 0 is still repeated
    budget.report("0", 1, 3, 5.0, was_known=True)
    assert not budget.is_used_up()
    budget.report("0", 2, 3, 10.0)
    assert budget.is_used_up()
    assert not Budget(1.0, 36.0, known=(0,), clock=clock).is_used_up()
    assert not Budget(1.0, 36.0, spent_before=1.0, clock=clock).is_used_up()  # only what is known runs


def test_a_search_waits_where_running_trials_may_turn_out_to_be_shorter(clock):
    driven = Driven(clock)
    assert isinstance(driven.searcher.suggest("long"), dict)
    clock.now += 30
    assert not driven.stops("long", result(1, num_steps=9))  # 270 seconds at this pace
    assert driven.searcher.suggest("next") is None
    driven.searcher.on_trial_complete("long", result(1, num_steps=9))
    assert isinstance(driven.searcher.suggest("next"), dict)


def test_the_time_of_trials_that_fail_counts(clock):
    driven, failed = Driven(clock), {RESULT: TrialEvent("key", {}, None, None, failed="no such layer")}
    for number in range(2):
        assert isinstance(driven.searcher.suggest(str(number)), dict)
        clock.now += 40
        driven.searcher.on_trial_complete(str(number), failed if number else None, error=not number)
    assert driven.searcher.suggest("2") == Searcher.FINISHED
    assert driven.search.cost_with_another == pytest.approx(1.2)


def test_what_earlier_starts_have_spent_counts_and_what_they_trained_is_replayed(clock):
    """Another start has trained one trial, and two checkpoints of a second one, for 90 cents."""
    driven = Driven(clock, known=(0, 1), spent_before=0.9)
    assert driven.run({0: 3, 1: 2}) == [3, 2]
    assert clock.now == 100.0
    assert driven.search.stopped_by_cost
    assert driven.search.cost_with_another == pytest.approx(0.9 + 0.5)  # as 60 and 40 seconds before


def test_trials_that_are_known_are_replayed_to_their_last_report_even_without_money(clock):
    assert Driven(clock, known=(0, 1), spent_before=2.0).run({0: 3, 1: 2}) == [3, 2]


def test_a_member_of_a_population_needs_no_searcher(clock):
    search = Search("p", "k", ["held_out_loss"], {}, "random", "population", 2)
    stops = StopsAtCost(Budget(1.0, 36.0, clock=clock), search)
    clock.now += 40
    assert not stops("0", result(1))
    clock.now += 40
    assert stops("0", result(2))
    assert not stops("0", result(3))  # that is its end


def spec(**more):
    content = {"name": "p", "base_model": "random:tiny-llama", "data": DATA, **more}
    return PipelineSpec.model_validate(content)


def test_the_price_is_the_fields_or_that_of_the_nodes_in_the_cluster_file(tmp_path, monkeypatch):
    assert price_of_trainings(spec(), 1) is None
    assert price_of_trainings(spec(cluster={"price_per_hour": 3.5}), 4) == 3.5
    file = tmp_path / "bootstrap.yaml"
    node = {"resources": {"CPU": 4}, "max_workers": 8}
    content = {"available_node_types": {"w": node}, "max_workers": 8}
    content["metadata"] = {"rayconteur": {"w": {"price_per_hour": 0.5}}}
    file.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(capacity, "BOOTSTRAP", str(file))
    on_cluster = spec(cluster={"address": "auto"}, train={"num_workers": 2, "cpus_per_worker": 2})
    assert price_of_trainings(on_cluster, 1) == 0.5
    assert price_of_trainings(on_cluster, 4) == 2.0
    wanted = on_cluster.model_copy(update={"tune": TuneSpec(space=SPACE, max_cost=5)})
    assert why_no_price(wanted, 2.0) == why_no_price(on_cluster, None) == ""
    assert why_no_price(wanted, None).startswith("tune.max_cost: got 5, but no price of this cluster is known; set")


@pytest.mark.parametrize(("tune", "words"), [
    ({"space": SPACE, "max_cost": 5}, ""),
    ({"space": SPACE}, "neither trials nor time_minutes nor max_cost"),
    ({"space": SPACE, "trials": 3, "max_cost": 0}, "greater than 0"),
    ({"searcher": "mixture", "max_cost": 5, "min_gain": 1}, "leave out min_gain and max_cost"),
    ({"space": SPACE, "trials": 3, "scheduler": "population", "min_gain": 1}, "leave out min_gain"),
    ({"space": SPACE, "trials": 3, "scheduler": "population", "max_cost": 1}, ""),
])  # fmt: skip
def test_the_fields_of_a_price(problems, tune, words):
    text = problems(tune)
    assert words in text
    assert bool(text) == bool(words)


def test_the_table_and_the_page_show_what_was_spent_and_expected(tmp_path):
    search = Search("p", "k", ["held_out_loss"], SPACE, "random", "none", 3, seconds=1800.0, price_per_hour=2.0)
    search.trials = [
        Trial(0, "key", {"train.learning_rate": 1e-4}, "finished", [Report(1, 1, {"held_out_loss": 2.0})])
    ]
    search.expected_gain = 0.0031
    assert "\nspent $1.00, at $2.00 an hour\nan improvement by 0.0031 is expected" in search_text(search)
    assert _search(Store(str(tmp_path)), search, Plots()).price == price_lines(search)
