"""Constraints, conditions and steps of a search: how they are read, what they draw, and what they exclude."""

import itertools
import math
from dataclasses import replace

import pytest

from models.training.report import Report
from workflows.progress import Progress
from workflows.search.brackets import Brackets
from workflows.search.draws import Draws
from workflows.search.hyperband import Hyperband
from workflows.search.recorder import SearchRecorder
from workflows.search.records import FINISHED, STOPPED, Search, Trial, compared_badness
from workflows.search.run import is_excluded
from workflows.search.tpe import TpeSearch
from workflows.search.trial import RESULT, TrialEvent, values_of
from workflows.spec import TpeSpec
from workflows.spec.constraints import broken, parse_constraint
from workflows.spec.space import active, all_settings, dimensions_of, parse, size_of
from workflows.store import Store

LIMIT = ["peak_memory_gb <= 20"]
SPACE = {
    "train.adapter.method": ["lora", "dora"],
    "train.adapter.rank": {"int": [8, 32], "step": 8},
    "train.learning_rate": {"when": {"train.adapter.method": "dora"}, "loguniform": [1e-5, 1e-3]},
    "train.adapter.alpha": {"when": {"train.adapter.method": ["lora"]}, "choices": [8, 16]},
}


@pytest.fixture
def problems(problems):
    """The same with a search of four trials."""
    search = {"trials": 4, "space": {"train.learning_rate": [1e-4, 1e-3]}}
    return lambda tune, train=None: problems(search | tune, train)


@pytest.mark.parametrize(("text", "kept", "not_kept"), [
    ("peak_memory_gb <= 20", 20.0, 20.1), ("tokens_per_second>=500", 500.0, 499.0),
    (" held_out_loss  <= 2e0", 2.0, math.nan),
])  # fmt: skip
def test_a_constraint_is_a_bound_on_a_figure(text, kept, not_kept):
    constraint = parse_constraint(text)
    assert not constraint.is_broken({constraint.figure: kept})
    assert constraint.is_broken({constraint.figure: not_kept})
    assert parse_constraint(str(constraint)) == constraint
    assert broken([text], {constraint.figure: kept}) == ""
    assert constraint.figure in broken([text], {constraint.figure: not_kept})


@pytest.mark.parametrize(
    "text", ["peak_memory_gb", "peak_memory_gb < 20", "peak_memory_gb <= much", "<= 20", "seconds <= nan"]
)
def test_what_is_no_constraint_is_refused_with_the_form(problems, text):
    assert "must be a figure, <= or >=, and a number" in problems({"constraints": [text]})


def test_a_figure_that_nobody_measures_is_refused(problems):
    text = problems({"constraints": ["peak_memry_gb <= 20"]})
    assert "tune.constraints: got peak_memry_gb, which no checkpoint measures; did you mean peak_memory_gb?" in text
    assert "held_out_accuracy, which no checkpoint measures" in problems({"constraints": ["held_out_accuracy >= 1"]})
    assert problems({"constraints": [*LIMIT, "tokens_per_second >= 5", "held_out_loss <= 9"]}) == ""


def result(step, loss, memory, done=False):
    report = Report(step, 9, {"held_out_loss": loss, "peak_memory_gb": memory, "num_tokens": 10.0 * step}, None)
    return {"step": step, "held_out_loss": loss, RESULT: TrialEvent("key", {}, None, report), "done": done}


@pytest.mark.parametrize(("figures", "expected"), [
    ({"held_out_accuracy": 0.5, "peak_memory_gb": 20.0}, -0.5),
    ({"held_out_accuracy": 0.5, "peak_memory_gb": 20.5}, math.inf),
    ({"held_out_accuracy": math.nan, "peak_memory_gb": 1.0}, math.inf),
    ({"held_out_accuracy": math.inf, "peak_memory_gb": 1.0}, math.inf),
    ({"held_out_accuracy": 0.5}, math.inf),
    ({"peak_memory_gb": 1.0}, math.inf),
])  # fmt: skip
def test_what_breaks_a_constraint_or_is_no_number_compares_as_the_worst(figures, expected):
    assert compared_badness("held_out_accuracy", figures, LIMIT) == expected


class OneTrial:
    trial_id = "0"

    def __str__(self):
        return "0"


def test_a_report_that_breaks_a_constraint_cannot_win(tmp_path):
    search = Search("p", "k", ["held_out_loss"], {}, "random", "none", 1, constraints=LIMIT)
    recorder = SearchRecorder(search, Store(str(tmp_path)), Progress(), is_population=False)
    recorder.on_trial_result(0, [], OneTrial(), result(3, 2.5, 19.0))
    recorder.on_trial_result(0, [], OneTrial(), result(6, 2.0, 21.0, done=True))
    recorder.close()
    [trial] = search.trials
    assert trial.state == STOPPED
    assert trial.error == "peak_memory_gb was 21 (tune.constraints: peak_memory_gb <= 20)"
    assert search.leader()[1].step == 3
    assert [report.step for _, report in recorder._standing.best([])] == [3]
    assert is_excluded(LIMIT, result(6, 2.0, 21.0))
    assert not is_excluded(LIMIT, result(3, 2.5, 19.0))


def test_a_search_without_constraints_excludes_nothing():
    trial = Trial(0, "key", {}, FINISHED, [Report(3, 3, {"held_out_loss": 2.0}, None)])
    assert trial.best("held_out_loss").step == 3
    assert replace(trial, excluded=[3]).best("held_out_loss") is None


def test_schedulers_and_tpe_take_a_broken_constraint_for_the_worst():
    scheduler = Hyperband(Brackets(30, 3.0, 1), "held_out_loss", LIMIT)
    scheduler.on_trial_complete(None, OneTrial(), result(3, 1.0, 21.0))
    assert [*scheduler._brackets._rungs.values[0].values()] == [1e300]
    dimensions = dimensions_of({"train.seed": {"int": [0, 99]}})
    searcher = TpeSearch(TpeSpec(), 0, dimensions, ["held_out_loss"], {}, LIMIT)
    for trial_id, ends in {"0": [result(3, 1.0, 21.0)], "1": [result(3, 2.0, 9.0), result(6, 1.0, 21.0)]}.items():
        searcher.suggest(trial_id)
        for each in ends[:-1]:
            searcher.on_trial_result(trial_id, each)
        searcher.on_trial_complete(trial_id, ends[-1])
    told = [(trial.state.name, trial.values) for trial in searcher._study.get_trials(deepcopy=False)]
    assert told == [("PRUNED", None), ("COMPLETE", [2.0])]


def test_steps_of_an_integer():
    dimension = parse({"int": [8, 32], "step": 8})
    assert [dimension.nearest(value) for value in (0, 11, 13, 99)] == [8, 8, 16, 32]
    assert dimension.count == 4
    drawn = {values["x"] for values in itertools.islice(Draws({"x": dimension}, 0), 10)}
    assert drawn == {8, 16, 24, 32}


@pytest.mark.parametrize(("entry", "words"), [
    ({"int": [8, 30], "step": 8}, "divides high - low"), ({"uniform": [0, 1], "step": 1}, "only int has steps"),
    ({"when": {"train.adapter.method": "dora"}}, "must be a list of choices"),
    ({"when": "dora", "int": [1, 2]}, "must be other fields of the space"),
    ({"when": {"train.seed": 1}, "choices": []}, "one or more plain values"),
])  # fmt: skip
def test_an_entry_with_a_mistake_in_its_step_or_condition(entry, words):
    with pytest.raises(ValueError, match=words):
        parse(entry)


@pytest.mark.parametrize(("condition", "words"), [
    ({"train.adapter.rank": 8}, "must be another field of the space, with a list of choices"),
    ({"train.weight_decay": 0}, "must be another field of the space, with a list of choices"),
    ({"train.adapter.method": "pissa"}, "got 'pissa', which is not among its choices ['lora', 'dora']"),
])  # fmt: skip
def test_a_condition_that_never_holds_is_refused(problems, condition, words):
    text = problems({"space": SPACE | {"train.learning_rate": {"when": condition, "uniform": [0.1, 0.2]}}})
    assert "tune.space.train.learning_rate: when." in text
    assert words in text
    assert problems({"space": SPACE}) == ""


def test_a_field_is_drawn_only_where_its_condition_holds():
    dimensions = dimensions_of(SPACE)
    for values in itertools.islice(Draws(dimensions, 0), 50):
        assert ("train.learning_rate" in values) == (values["train.adapter.method"] == "dora")
        assert ("train.adapter.alpha" in values) == (values["train.adapter.method"] == "lora")
    chain = dimensions_of({
        "train.seed": [0, 1], "train.epochs": {"when": {"train.seed": 1}, "choices": [1, 2]},
        "train.max_steps": {"when": {"train.epochs": [2]}, "int": [5, 7]},
    })  # fmt: skip
    assert size_of(chain) == len([*all_settings(chain)]) == 1 + 1 + 3
    assert len([*Draws(chain, 0)]) == 5
    assert active(chain, {"train.seed": 0, "train.epochs": 2, "train.max_steps": 5}) == {"train.seed": 0}


def test_tpe_keeps_conditions():
    searcher = TpeSearch(TpeSpec(startup_trials=3, multivariate=True), 0, dimensions_of(SPACE), ["held_out_loss"], {})
    for number in range(30):
        values = values_of(searcher.suggest(str(number)))
        assert ("train.learning_rate" in values) == (values["train.adapter.method"] == "dora")
        searcher.on_trial_complete(str(number), result(9, 1.0 + number % 7, 1.0))
