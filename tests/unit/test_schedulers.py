"""What schedulers of a search do with trials whose metric is no number, and with the settings of a population."""

import math
import random
from collections import Counter
from types import SimpleNamespace

import pytest
from ray.tune import CheckpointConfig
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from workflows.search.population import Population, scaled, shifted
from workflows.search.schedulers import Asha, Median
from workflows.search.trial import TOGETHER, values_of
from workflows.search.tuner import scheduler_of
from workflows.spec import PipelineSpec, PopulationSpec
from workflows.spec.space import Choice, parse

NAN, INFINITE = math.nan, math.inf
STOP, CONTINUE = TrialScheduler.STOP, TrialScheduler.CONTINUE


class OneTrial:
    def __init__(self, number):
        self.trial_id = str(number)


class Controller:
    def get_live_trials(self):
        return []


def decisions(scheduler, metric, *trials):
    """What a scheduler decides of each trial at each step, trials one after the other; a string fails the trial."""
    scheduler.set_search_properties(metric, "max" if metric == "held_out_accuracy" else "min")
    found = []
    for number, values in enumerate(trials):
        trial, decided = OneTrial(number), []
        scheduler.on_trial_add(Controller(), trial)
        for index, value in enumerate(values):
            result = {"step": 3 * (index + 1), metric: value}
            decided.append(scheduler.on_trial_result(Controller(), trial, result))
            if decided[-1] == STOP:
                break
        scheduler.on_trial_complete(Controller(), trial, result)
        found.append(decided)
    return found


@pytest.mark.parametrize("metric", ["held_out_loss", "held_out_accuracy"])
@pytest.mark.parametrize("broken", [NAN, INFINITE, -INFINITE])
@pytest.mark.parametrize("make", [
    lambda: Asha(6, max_t=27, reduction_factor=2.0), lambda: Median(6, min_samples_required=2)
], ids=["asha", "median"])  # fmt: skip
def test_a_trial_whose_metric_is_no_number_is_stopped_at_the_first_rung(make, metric, broken):
    good = [0.5] * 8
    for trials in ([[broken] * 8, good, good], [good, good, [broken] * 8], [good, good, [0.5, broken, broken]]):
        found = decisions(make(), metric, *trials)
        for values, decided in zip(trials, found, strict=True):
            if broken in values or any(map(math.isnan, values)):
                assert decided == [CONTINUE, STOP]
            else:
                assert STOP not in decided


@pytest.mark.parametrize("name", ["asha", "median"])
@pytest.mark.parametrize(("grace", "first"), [({}, 21), ({"grace_steps": 6}, 6)])
def test_trials_are_compared_from_0_4_of_the_longest_training_on(name, grace, first):
    """By the first checkpoint, in replays of recorded trainings, both are worse than random search."""
    spec = PipelineSpec.model_validate({
        "name": "shop", "base_model": "random:tiny-llama", "data": {"sources": [{"path": "talks.jsonl"}]},
        "train": {"checkpoint_every_steps": 3},
        "tune": {"space": {"train.max_steps": [20, 50]}, "trials": 4, "scheduler": {"name": name, **grace}},
    })  # fmt: skip
    scheduler = scheduler_of(spec, {}, lambda values: values["train.max_steps"])
    good, poor = [1.0] * 16, [2.0] * 16
    assert decisions(scheduler, "held_out_loss", good, good, good, poor)[-1] == [CONTINUE] * (first // 3 - 1) + [STOP]


@pytest.mark.parametrize("metric", ["held_out_loss", "held_out_accuracy"])
def test_others_are_compared_with_a_broken_trial_as_with_the_worst(metric):
    sign = 1 if metric == "held_out_accuracy" else -1
    good, poor = [sign * 2.0] * 2, [sign * 1.0] * 2
    asha = Asha(3, max_t=27, reduction_factor=2.0)
    assert decisions(asha, metric, [NAN], [NAN], [NAN], good, poor)[-1][0] == CONTINUE
    asha = Asha(3, max_t=27, reduction_factor=2.0)
    assert decisions(asha, metric, [NAN], good, good, good, poor)[-1] == [STOP]
    median = Median(3, min_samples_required=3)
    assert decisions(median, metric, good, [NAN], [NAN], poor)[-1] == [CONTINUE, CONTINUE]


@pytest.mark.parametrize("kind", ["int", "logint"])
def test_an_integer_changes_by_at_least_one_both_ways(kind):
    dimension = parse({kind: [1, 8]})
    assert [scaled(dimension, value, 1.2) for value in range(1, 9)] == [2, 3, 4, 5, 6, 7, 8, 6]
    assert [scaled(dimension, value, 0.8) for value in range(1, 9)] == [2, 1, 2, 3, 4, 5, 6, 6]
    assert scaled(parse({"int": [0, 8]}), 0, 0.8) == 1
    assert scaled(parse({kind: [10, 1000]}), 100, 1.2) == 120


def test_what_an_end_of_the_range_undoes_goes_inwards():
    for kind in ("uniform", "loguniform"):
        dimension = parse({kind: [0.5, 1.0]})
        assert scaled(dimension, 1.0, 1.2) == pytest.approx(0.8)
        assert scaled(dimension, 0.5, 0.8) == pytest.approx(0.6)
        assert scaled(dimension, 0.9, 1.2) == 1.0
    assert [shifted(Choice((1, 2, 4)), value, 1) for value in (1, 2, 4)] == [2, 4, 2]
    assert [shifted(Choice((1, 2, 4)), value, -1) for value in (1, 2, 4)] == [2, 1, 2]
    assert shifted(Choice(("lora",)), "lora", 1) == "lora"


def population(space, steps_of=lambda values: 100, probability=0.25):
    dimensions = {field: parse(entry) for field, entry in space.items()}
    return Population(PopulationSpec(resample_probability=probability), 0, dimensions, 3, steps_of)


def test_a_population_reaches_every_integer_of_its_range():
    scheduler, reached = population({"train.gradient_accumulation": {"int": [1, 8]}}, probability=0.0), Counter()
    random.seed(0)
    values = {"train.gradient_accumulation": 2}
    for _ in range(2000):
        before, values = values, scheduler._explored(values)
        reached[values["train.gradient_accumulation"]] += 1
        assert values != before
        assert type(values["train.gradient_accumulation"]) is int
    assert set(reached) == set(range(1, 9))


def test_a_copy_gets_no_settings_with_which_its_training_would_be_over():
    scheduler = population({"train.max_steps": [6, 9, 12, 15]}, lambda values: values["train.max_steps"])
    scheduler._step = 9
    random.seed(0)
    explored = {scheduler._explored({"train.max_steps": 12})["train.max_steps"] for _ in range(100)}
    assert explored == {12, 15}
    scheduler._step = 14
    assert {scheduler._explored({"train.max_steps": 15})["train.max_steps"] for _ in range(100)} == {15}


class Member:
    """A trial of Tune's, as far as population-based training knows it."""

    experiment_tag = ""

    def __init__(self, number, end, fails_at=None):
        self.number, self.end, self.fails_at = number, end, fails_at
        self.config = {TOGETHER: {"train.learning_rate": 0.1 * (number + 1), "train.max_steps": end}}
        self.status, self.step = Trial.PENDING, 0
        self.temporary_state = SimpleNamespace(saving_to=None)
        self.run_metadata = SimpleNamespace(checkpoint_manager=SimpleNamespace(checkpoint_config=CheckpointConfig()))
        self.set_experiment_tag = lambda tag: None

    @property
    def trial_id(self):
        return str(self.number)

    @property
    def checkpoint(self):
        return SimpleNamespace(step=self.step)

    def is_finished(self):
        return self.status in (Trial.TERMINATED, Trial.ERROR)

    def set_config(self, config):
        self.config = config

    def resume(self):
        """From its own state, or that of a member that it copies."""
        copied = getattr(self.run_metadata.checkpoint_manager, "_latest_checkpoint_result", None)
        if copied is not None:
            self.step = copied.checkpoint.step
            del self.run_metadata.checkpoint_manager._latest_checkpoint_result
        self.status = Trial.RUNNING


class OneAtATime:
    """Tune's controller with workers for one member."""

    search_alg = None

    def __init__(self, scheduler, members, has_errors):
        self.scheduler, self.members, self.has_errors = scheduler, members, has_errors
        scheduler.set_search_properties("held_out_loss", "min")
        for member in members:
            scheduler.on_trial_add(self, member)

    def get_trials(self):
        return self.members

    def get_live_trials(self):
        return {each for each in self.members if each.status != Trial.TERMINATED}  # Tune's set has failed ones too

    def _schedule_trial_save(self, trial, result):
        return trial.checkpoint

    def pause_trial(self, trial, should_checkpoint):
        trial.status = Trial.PAUSED

    def run(self):
        """Continue members until the scheduler names none."""
        while (member := self.scheduler.choose_trial_to_run(self)) is not None:
            member.resume()
            values = values_of(member.config)
            assert member.step < values["train.max_steps"]
            while member.status == Trial.RUNNING:
                if member.step == member.fails_at:
                    member.status = Trial.ERROR if self.has_errors else Trial.TERMINATED
                    break
                member.step += 3
                if member.step >= values["train.max_steps"]:
                    member.status = Trial.TERMINATED
                    break
                result = {"step": member.step, "held_out_loss": values["train.learning_rate"]}
                if self.scheduler.on_trial_result(self, member, result) == TrialScheduler.PAUSE:
                    member.status = Trial.PAUSED


@pytest.mark.parametrize("has_errors", [False, True])
@pytest.mark.parametrize(("ends", "fails"), [
    ([12, 12, 12], {}), ([12, 12, 12], {1: 0}), ([12, 12, 12], {2: 0}), ([12, 12, 12], {0: 3, 1: 6}),
    ([12, 12], {0: 0, 1: 6}), ([6, 9, 12, 15], {}), ([12, 3, 3], {}), ([6, 9, 12, 15, 12], {4: 6}),
])  # fmt: skip
def test_members_of_a_population_go_on_without_those_that_fail_or_end(ends, fails, has_errors):
    space = {"train.learning_rate": {"uniform": [0.01, 1]}, "train.max_steps": {"int": [3, 15]}}
    dimensions = {field: parse(entry) for field, entry in space.items()}
    spec = PopulationSpec(quantile=0.5)
    scheduler = Population(spec, 0, dimensions, 3, lambda values: values["train.max_steps"])
    members = [Member(number, end, fails.get(number)) for number, end in enumerate(ends)]
    OneAtATime(scheduler, members, has_errors).run()
    assert all(member.is_finished() for member in members)
    for member in members:
        if member.number not in fails:
            assert member.step >= values_of(member.config)["train.max_steps"]
