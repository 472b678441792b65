"""The section `tune` and its space: what can be searched, and the errors for mistakes."""

import pytest

from workflows.cluster.capacity import trainings_at_once, why_none_fits
from workflows.runs.state import examine
from workflows.search.trial import key_of
from workflows.spec import PipelineSpec, TrainSpec, TuneSpec
from workflows.spec.read import read_spec
from workflows.spec.space import Choice, Range, combinations, parse, trials_wanted, with_values
from workflows.spec.space_problems import problems_of
from workflows.store import Store

SPACE = {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}, "train.adapter.rank": [8, 16]}


def test_entries_of_the_space():
    assert parse([8, 16]) == Choice((8, 16))
    assert parse({"loguniform": [1e-5, 1e-3]}) == Range(1e-5, 1e-3, is_log=True, is_whole=False)
    assert parse({"int": [1, 8]}) == Range(1, 8, is_log=False, is_whole=True)
    assert parse({"logint": [1, 8]}).nearest(11.3) == 8
    assert parse({"uniform": [0, 1]}).nearest(-1) == 0


@pytest.mark.parametrize(("entry", "words"), [
    ([], "one or more"),
    ([[1, 2]], "plain values"),
    ([8, 8], "twice"),
    ({"loguniform": [0, 1]}, "above 0"),
    ({"uniform": [2, 1]}, "low must be below high"),
    ({"uniform": [1]}, "two numbers"),
    ({"int": [1, 2.5]}, "two integers"),
    ({"loguniforn": [1e-5, 1]}, "did you mean loguniform?"),
    ({"uniform": [0, 1], "int": [0, 1]}, "must be a list"),
    (3e-4, "must be a list"),
])  # fmt: skip
def test_an_invalid_entry_is_reported(entry, words):
    with pytest.raises(ValueError, match=words):
        parse(entry)


@pytest.mark.parametrize(("field", "entry", "words"), [
    ("train.lerning_rate", [1e-4], "did you mean train.learning_rate?"),
    ("train.learning_rate", {"loguniform": [1e-5, 2]}, "the value 2: got 2; must be less than or equal to 1"),
    ("train.max_steps", {"uniform": [3, 5]}, "takes integers; use int or logint"),
    ("train.num_workers", [1, 2], "is the same for all trials"),
    ("train.cpus_per_worker", [1, 2], "is the same for all trials"),
    ("data.max_length", [64, 128], "decides what all trials share"),
    ("train.adapter", [None], "is a section"),
    ("train.zero.stage.x", [1], "train.zero.stage is not a section"),
    ("train.adapter.rank", [8, 2000], "the value 2000"),
    ("data.sources.0.weight", {"uniform": [0, 1]}, "give every source a weight in data.sources first"),
    ("data.sources.3.weight", {"uniform": [0, 1]}, "there is no source 3; data.sources has 0 to 0"),
    ("data.sources.0.path", ["a"], "decides what all trials share"),
])  # fmt: skip
def test_a_field_that_cannot_be_searched_is_named_with_its_line(problems, field, entry, words):
    text = problems({"space": {field: entry}, "trials": 2})
    assert words in text
    assert f": tune.space.{field}: " in text
    assert text.split(":")[1].isdigit()


FORMS = {
    "train.adapter.rank": [8, 16], "train.adapter.method": ["lora", "dora"],
    "train.adapter.target_modules": ["all-linear"],
    "train.frozen": ["a"], "train.zero.stage": [0, 2], "train.zero.offload": [None, "cpu"],
}  # fmt: skip


@pytest.mark.parametrize("field", FORMS)
def test_members_of_a_population_have_weights_of_one_form(problems, field):
    text = problems({"space": {field: FORMS[field]}, "trials": 2, "scheduler": "population"})
    assert f"tune.space.{field}: must be the same for all members of a population" in text
    assert text.split(":")[1].isdigit()


def test_other_fields_may_differ_in_a_population(problems):
    space = {
        "train.learning_rate": [1e-4, 1e-3],
        "train.adapter.alpha": [8, 16],
        "train.gradient_accumulation": [1, 2],
    }
    assert problems({"space": space, "trials": 2, "scheduler": "population"}) == ""


LOSS = ["held_out_loss"]
PAIRS = "held_out_accuracy or suite_NAME (of evaluate.suites)"


@pytest.mark.parametrize(("objective", "field", "metric", "instead"), [
    ("orpo", "objective.weight", LOSS, "held_out_accuracy, held_out_margin or suite_NAME (of evaluate.suites)"),
    ("orpo", "objective.weight", ["held_out_accuracy", "held_out_loss"], ""),
    ("dpo", "objective.beta", LOSS, PAIRS),
    ("dpo", "objective.beta", ["held_out_margin"], PAIRS),
    ("simpo", "objective.gamma", LOSS, "held_out_accuracy, held_out_margin or"),
    ("kto", "objective.desirable_weight", LOSS, "held_out_accuracy, held_out_margin or"),
    ("kto", "batch_tokens", ["held_out_accuracy"], "or compare by suite_NAME"),
    ("spin", "objective.beta", LOSS, PAIRS),
    ({"name": "distill", "teacher": "random:tiny-llama"}, "objective.temperature", LOSS, "held_out_plain_loss or"),
    ("sft", "held_out_tokens", LOSS, "or compare by suite_NAME"),
    ("adversarial", "held_out_tokens", LOSS, "leave it out"),
])  # fmt: skip
def test_a_field_that_enters_the_metric_is_refused_with_metrics_that_it_does_not_enter(
    problems, objective, field, metric, instead
):
    space = {f"train.{field}": {"int": [16, 99]} if field.endswith("tokens") else [0.1, 0.2]}
    text = problems({"space": space, "trials": 2, "metric": metric}, {"objective": objective})
    assert f": tune.space.train.{field}: enters held_out_{metric[-1].removeprefix('held_out_')} itself" in text
    assert instead in text
    assert text.split(":")[1].isdigit()


@pytest.mark.parametrize(("objective", "space", "metric"), [
    ("orpo", {"objective.weight": [0.0, 1.0]}, ["held_out_margin", "held_out_accuracy"]),
    ("dpo", {"objective.beta": [0.1, 1.0]}, ["held_out_accuracy"]),
    ("dpo", {"objective.label_smoothing": [0, 0.1]}, ["held_out_margin", "seconds"]),
    ("kto", {"gradient_accumulation": [1, 2]}, LOSS),
    ({"name": "distill", "teacher": "random:tiny-llama"}, {"objective.plain_share": [0, 1]}, ["held_out_plain_loss"]),
    ("sft", {"batch_tokens": [64, 128]}, LOSS),
    ("adversarial", {"objective.l1_weight": [0, 1]}, LOSS),
])  # fmt: skip
def test_a_field_that_does_not_enter_the_metric_is_searched(problems, objective, space, metric):
    tune = {"space": {f"train.{field}": entry for field, entry in space.items()}, "trials": 2, "metric": metric}
    assert problems(tune, {"objective": objective}) == ""


def test_passes_decide_the_size_of_a_micro_batch_where_batch_tokens_is_auto(problems):
    tune = {"space": {"train.gradient_accumulation": [1, 2]}, "trials": 2}
    text = problems(tune, {"objective": "kto", "batch_tokens": "auto"})
    assert "tune.space.train.gradient_accumulation: enters held_out_loss itself" in text


@pytest.mark.parametrize(("objective", "metric", "there"), [
    ("sft", "held_out_accuracy", "sft does not report; it reports held_out_loss and suite_NAME"),
    ("sft", "held_out_margin", "it reports held_out_loss and suite_NAME"),
    ("simpo", "held_out_plain_loss", "simpo does not report"),
    ({"name": "distill_replies", "teacher": "x"}, "held_out_plain_loss", "it reports held_out_loss and suite_NAME"),
    ("orpo", "held_out_divergence", "it reports held_out_loss, held_out_accuracy, held_out_margin and suite_NAME"),
    ("adversarial", "held_out_accuracy", "it reports held_out_loss; a second metric may also be seconds or"),
    ("dpo", "held_out_perplexity", "held_out_accuracy"),
])  # fmt: skip
def test_a_metric_that_no_trial_reports_is_refused_with_those_that_they_do(problems, objective, metric, there):
    text = problems({"space": SPACE, "trials": 2, "metric": metric}, {"objective": objective})
    assert ": tune.metric" in text
    assert there in text
    assert text.split(":")[1].isdigit()


@pytest.mark.parametrize("metric", ["seconds", "peak_memory_gb", ["seconds", "held_out_loss"]])
def test_a_cost_cannot_decide_the_winner(problems, metric):
    text = problems({"space": SPACE, "trials": 2, "metric": metric})
    first = metric if isinstance(metric, str) else metric[0]
    assert f": tune.metric: got {first} first; it only grows while a trial trains" in text
    assert f"as in [held_out_loss, {first}]" in text


@pytest.mark.parametrize(("tune", "wanted"), [
    ({"trials": 3}, 3),
    ({"trials": 100}, 6),
    ({"time_minutes": 1.5}, 6),
    ({"trials": 100, "searcher": "tpe"}, 6),
    ({"searcher": "grid"}, 6),
    ({"trials": 4, "searcher": "grid"}, 4),
    ({"trials": 100, "scheduler": "population"}, 100),
])  # fmt: skip
def test_a_search_has_at_most_as_many_trials_as_its_space_has_settings(tune, wanted):
    space = {"train.seed": [0, 1], "train.learning_rate": [1e-4, 2e-4, 3e-4]}
    assert trials_wanted(TuneSpec.model_validate({"space": space, **tune})) == wanted


def test_the_number_of_settings_of_a_space():
    assert trials_wanted(TuneSpec(space={"train.seed": {"int": [3, 9]}}, trials=100)) == 7
    assert trials_wanted(TuneSpec(space={"train.seed": {"logint": [1, 10**9]}}, time_minutes=1)) is None
    assert trials_wanted(TuneSpec(space={"train.learning_rate": {"uniform": [0.1, 0.2]}}, time_minutes=1)) is None
    assert trials_wanted(TuneSpec(space={"train.learning_rate": {"uniform": [0.1, 0.2]}}, trials=7)) == 7


def test_values_are_checked_together(problems):
    space = {"train.adapter.quantize": ["nf4"]}
    assert "is the same for all trials" in problems({"space": space, "trials": 2})
    together = {"train.max_steps": [5, 100], "train.checkpoint_every_steps": [1, 60]}
    text = problems({"space": together, "trials": 2})
    assert "tune.space: with train.checkpoint_every_steps=60, train.max_steps=5: checkpoint_every_steps (60)" in text


@pytest.mark.parametrize(("tune", "words"), [
    ({"space": SPACE}, "neither trials nor time_minutes"),
    ({"space": SPACE, "searcher": "grid"}, "searcher grid needs a list of choices"),
    ({"space": SPACE, "trials": 1, "scheduler": "population"}, "of 2 or more"),
    ({"space": SPACE, "trials": 4, "scheduler": "population", "searcher": "tpe"}, "leave out tpe"),
    ({"space": SPACE, "trials": 4, "scheduler": "population", "metric": ["held_out_loss", "seconds"]}, "name one"),
    ({"space": SPACE, "trials": 4, "metric": ["seconds", "seconds"]}, "several different ones"),
    ({"space": SPACE, "trials": 4, "scheduler": "asah"}, "did you mean asha?"),
    ({"space": {}, "trials": 4}, "tune.space"),
])  # fmt: skip
def test_impossible_searches_are_refused(problems, tune, words):
    assert words in problems(tune)


def test_a_valid_space_has_no_problems_and_can_be_set_on_the_command_line(problems, tmp_path):
    assert problems({"space": SPACE, "trials": 4, "scheduler": {"name": "asha", "reduction_factor": 4}}) == ""
    several = ["held_out_loss", "seconds", "peak_memory_gb"]
    assert problems({"space": SPACE, "trials": 4, "scheduler": "hyperband", "metric": several}) == ""
    override = "tune.space.train.learning_rate=[1e-3, 2e-3]"
    spec = read_spec(tmp_path / "pipeline.yaml", [override])
    assert spec.tune.space["train.learning_rate"] == [1e-3, 2e-3]
    assert sorted(values["train.learning_rate"] for values in combinations(spec)) == [1e-3, 1e-3, 2e-3, 2e-3]


def test_a_trial_is_the_pipeline_with_its_values(tiny):
    spec = PipelineSpec.model_validate(tiny | {"tune": {"space": {"train.zero.stage": [0, 2]}, "trials": 2}})
    trial = with_values(spec, {"train.zero.stage": 2})
    assert (trial.train.zero.stage, trial.tune, spec.train.zero.stage) == (2, None, 0)


def test_weights_of_sources_are_searched_on_one_corpus(tiny):
    tiny["data"]["sources"] = [{"path": "a.jsonl", "weight": 1}, {"path": "b.jsonl", "weight": 1}]
    tiny["tune"] = {"space": {"data.sources.1.weight": {"uniform": [0, 3]}}, "trials": 2}
    spec = PipelineSpec.model_validate(tiny)
    assert problems_of(spec) == []
    trial = with_values(spec, {"data.sources.1.weight": 2.5})
    assert [source.weight for source in trial.data.sources] == [1, 2.5]
    assert trial.data.result_fields() == spec.data.result_fields()
    assert key_of(trial, {"prepare": "x"}) != key_of(with_values(spec, {}), {"prepare": "x"})


def test_a_search_precedes_training_and_a_changed_budget_is_shown(tiny, tmp_path):
    plain = PipelineSpec.model_validate(tiny)
    tuned = PipelineSpec.model_validate(tiny | {"tune": {"space": {"train.seed": [0, 1]}, "trials": 2}})
    store = Store(tiny["store"])
    assert [state.stage.name for state in examine(tuned, store)][:3] == ["prepare", "tune", "train"]
    assert "tune" not in [state.stage.name for state in examine(plain, store)]


def test_capacity_for_trainings():
    train = TrainSpec(num_workers=2, cpus_per_worker=1.0)
    assert trainings_at_once([{"CPU": 2.0}], train) == 1
    assert trainings_at_once([{"CPU": 3.0}, {"CPU": 3.0}], train) == 3  # one of them on both nodes
    assert trainings_at_once([{"CPU": 0.9}] * 10, train) == 0
    on_gpus = TrainSpec(num_workers=4, gpus_per_worker=1, memory_gb_per_worker=10.0)
    node = {"CPU": 64.0, "GPU": 8.0, "memory": 45e9}
    assert trainings_at_once([node, node], on_gpus) == 2
    why = why_none_fits([{"CPU": 64.0, "memory": 64e9}], on_gpus)
    assert "4 workers of 1 CPU, 1 GPU, 10 GB each" in why
    assert "64 CPUs, 0 GPUs, 64 GB" in why
    assert why_none_fits([node], on_gpus) == ""
