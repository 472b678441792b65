"""A search over serve.sampling: what it asks, scores and tells the endpoint; and that it trains nothing."""

import json

import pytest

from serve.api.settings import SamplingDefaults
from serve.protocol.requests import ChatRequest
from workflows.cluster.capacity import workers_of
from workflows.endpoint.application import with_winner
from workflows.endpoint.status import deployment_key
from workflows.progress import Progress
from workflows.runs.order import STAGES, stages_of
from workflows.search.records import Search, read_search
from workflows.search.sampling import Scoring, run_scorings
from workflows.spec import PipelineSpec
from workflows.stage import STAGE_NAMES, StageFailed
from workflows.store import Artifact, Store
from workflows.suites.answering import Answer
from workflows.suites.read import metric_suites

TEMPERATURE, TOP_P, TOP_K = "serve.sampling.temperature", "serve.sampling.top_p", "serve.sampling.top_k"
SPACE = {TEMPERATURE: {"uniform": [0.0, 1.5]}, TOP_P: [0.8, 1.0]}
ITEMS = [{"id": f"item {number}", "question": f"Question {number}?", "facts": [["yes"]]} for number in range(20)]


@pytest.fixture
def spec(tmp_path):
    """A pipeline whose replies are good at a temperature of 0.6."""
    (tmp_path / "rules.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))

    def made(tune=None, **more):
        content = {
            "name": "shop", "base_model": "random:tiny-llama", "data": {"sources": [{"path": "x.jsonl"}]},
            "evaluate": {"suites": [{"path": str(tmp_path / "rules.jsonl")}]},
            "tune": {"space": SPACE, "trials": 30, "metric": "suite_rules", **(tune or {})}, **more,
        }  # fmt: skip
        return PipelineSpec.model_validate(content)

    return made


class Model:
    """Replies right to more items the nearer the temperature is to 0.6; keeps what it was asked."""

    def __init__(self, error=""):
        self.asked, self._error = [], error

    def __call__(self, asked):
        self.asked += asked
        return [[self._reply(each.sampling)] for each in asked]

    def _reply(self, sampling):
        if self._error:
            return Answer(None, self._error)
        is_right = (sampling["seed"] % 1000) / 1000 > abs(sampling["temperature"] - 0.6)
        return Answer({"role": "assistant", "content": "yes" if is_right else "no"})


def run(spec, store, model=None):
    tune, model = spec.tune, model or Model()
    search = Search("shop", "key", tune.metric, tune.space, tune.searcher.name, "none", tune.trials, at_once=4)
    scoring = Scoring(spec, "checkpoint", metric_suites(spec), search, model)
    run_scorings(tune, store, Progress(), search, scoring)
    search.winner = scoring.winner()
    return search, model


@pytest.mark.parametrize("searcher", ["random", "tpe", "grid"])
def test_the_best_settings_win_and_are_measured_again_with_other_random_numbers(spec, tmp_path, searcher):
    space = {TEMPERATURE: [0.0, 0.3, 0.6, 0.9, 1.2], TOP_P: [0.8, 1.0]} if searcher == "grid" else SPACE
    store = Store(str(tmp_path / "store"))
    search, model = run(spec({"searcher": searcher, "space": space}), store)
    won = next(trial for trial in search.trials if trial.number == search.winner.trial)
    assert abs(won.values[TEMPERATURE] - 0.6) < 0.2
    assert len(search.trials) == (10 if searcher == "grid" else 30)
    assert len(model.asked) == (len(search.trials) + 1) * len(ITEMS)
    assert {each.sampling["seed"] for each in model.asked[-20:]}.isdisjoint(
        each.sampling["seed"] for each in model.asked[:-20]
    )
    assert search.winner.reported == won.reports[0].figures["suite_rules"]
    assert 0 < search.winner.remeasured <= 1
    assert [trial.state for trial in read_search(store, "key").trials] == ["finished"] * len(search.trials)


def test_all_trials_reply_to_an_item_with_the_same_random_numbers_and_settings_of_serve(spec, tmp_path):
    _, model = run(spec({"trials": 3}, serve={"sampling": {"top_k": 5, "top_p": 0.1}}), Store(str(tmp_path)))
    seeds = {}
    for each in model.asked[:60]:
        seeds.setdefault(each.turns[0].messages[0]["content"], set()).add(each.sampling["seed"])
        assert each.sampling["top_k"] == 5
        assert each.sampling["top_p"] in (0.8, 1.0)
    assert [len(found) for found in seeds.values()] == [1] * 20


def test_settings_that_the_endpoint_refuses_fail_and_the_search_says_why(spec, tmp_path):
    with pytest.raises(StageFailed, match="tune: no trial has a score: temperature: not here"):
        run(spec({"trials": 3}), Store(str(tmp_path)), Model("temperature: not here"))


def test_it_follows_the_training_whose_key_it_leaves_alone(spec):
    searching = stages_of(spec())
    assert [stage.name for stage in searching] == [
        "prepare", "reference", "train", "tune", "evaluate", "optimize", "deploy",
    ]  # fmt: skip
    by_name = {stage.name: stage for stage in searching}
    assert by_name["train"].inputs == ("prepare", "reference")
    assert by_name["tune"].inputs == ("train",)
    assert by_name["deploy"].inputs == ("evaluate", "optimize", "tune")
    other = spec({"space": {"train.learning_rate": [1e-4, 1e-3]}})
    assert stages_of(other) == STAGES
    assert tuple(stage.name for stage in STAGES) == STAGE_NAMES
    assert workers_of(spec())["tune"] == workers_of(spec())["evaluate"]
    assert workers_of(other)["tune"] == workers_of(other)["train"]


def test_the_winners_settings_reach_the_endpoint(spec):
    figures = {"trials": 3, TEMPERATURE: 0.55, TOP_P: 0.8, "suite_rules": 0.7}
    search = Artifact("tune", "search", "shop", {}, {}, figures)
    served = with_winner(spec(serve={"sampling": {"top_p": 0.5, "min_p": 0.1}}), search).serve.sampling
    assert (served.temperature, served.top_p, served.min_p) == (0.55, 0.8, 0.1)
    assert with_winner(spec(), None) == spec()
    ordinary = Artifact("tune", "search", "shop", {}, {}, {"train.learning_rate": 1e-4})
    assert with_winner(spec(), ordinary) == spec()
    assert deployment_key(spec(), "release", "search") != deployment_key(spec(), "release")


def test_a_request_is_filled_with_the_defaults_of_the_endpoint():
    messages = [{"role": "user", "content": "Hi"}]
    defaults = SamplingDefaults(temperature=0.3, top_k=7)
    filled = defaults.filled(ChatRequest(model="m", messages=messages))
    assert (filled.temperature, filled.top_k, filled.top_p) == (0.3, 7, None)
    asked = ChatRequest(model="m", messages=messages, temperature=0.0)
    assert defaults.filled(asked).temperature == 0.0
    assert SamplingDefaults().filled(asked) is asked


@pytest.fixture
def mistakes(spec, tmp_path, monkeypatch):
    import yaml

    from workflows.spec.errors import SpecError
    from workflows.spec.read import read_spec

    def found(tune):
        (tmp_path / "x.jsonl").write_text("{}\n")
        content = json.loads(spec().model_dump_json(exclude_unset=True))
        content["tune"] |= tune
        content["data"]["sources"] = [{"path": str(tmp_path / "x.jsonl")}]
        (tmp_path / "shop.yaml").write_text(yaml.safe_dump(content))
        try:
            read_spec(tmp_path / "shop.yaml")
        except SpecError as error:
            return str(error)
        return ""

    return found


@pytest.mark.parametrize(("tune", "words"), [
    ({}, ""),
    ({"space": {TOP_K: {"int": [0, 50]}, TEMPERATURE: {"when": {TOP_P: 1.0}, "uniform": [0, 1]}, TOP_P: [0.9, 1.0]}},
     ""),
    ({"space": {**SPACE, "train.learning_rate": [1e-4, 1e-3]}}, "train.learning_rate: needs a training for each"),
    ({"space": {**SPACE, "data.sources.0.weight": [1, 2]}}, "data.sources.0.weight: needs a training for each trial"),
    ({"space": {"serve.sampling.temprature": [0.1, 0.2]}}, "did you mean serve.sampling.temperature?"),
    ({"space": {TEMPERATURE: {"uniform": [0, 3]}}}, "the value 3: got 3; must be less than or equal to 2"),
    ({"space": {TOP_K: {"uniform": [0, 50]}}}, "takes integers; use int or logint"),
    ({"space": {"serve.max_new_tokens": [64, 128]}}, "decides what all trials share"),
    ({"metric": "held_out_loss"}, "tune.metric: got held_out_loss, on which sampling has no effect"),
    ({"scheduler": "asha", "constraints": ["suite_rules >= 0.1"]}, "leave out tune.scheduler and tune.constraints"),
    ({"max_cost": 5}, "leave out tune.max_cost"),
    ({"proxy": {"base_model": "random:tiny-gpt2", "trials": 6}}, "leave out tune.proxy"),
])  # fmt: skip
def test_what_cannot_be_searched_is_named(mistakes, tune, words):
    text = mistakes(tune)
    assert words in text
    assert bool(text) == bool(words)
