"""tune.warm_start: what TPE is told of other searches and of Optuna's studies."""

import math

import optuna
import pytest
from stored import run_record

from models.training.report import Report
from workflows.search.records import Search, Trial, write_search
from workflows.search.studies import StudyError, distribution_of, read_study
from workflows.search.tpe import TpeSearch
from workflows.search.trial import RESULT, TrialEvent, values_of
from workflows.search.warm_start import Prior, best_settings, read_priors, tune_fields
from workflows.spec import PipelineSpec, TpeSpec, TuneSpec
from workflows.spec.paths import local_paths, with_paths
from workflows.spec.space import dimensions_of
from workflows.stage import StageFailed
from workflows.store import Store

RATE, RANK, METHOD = "train.learning_rate", "train.adapter.rank", "train.adapter.method"
SPACE = {RATE: {"loguniform": [1e-5, 1e-3]}, RANK: {"int": [8, 32], "step": 8}, METHOD: ["lora", "dora"]}
DIMENSIONS = dimensions_of(SPACE)
GOOD = 3e-4


def loss_at(rate):
    return 2.0 + abs(math.log10(rate / GOOD))


def other_search(store, trials, *, key="0123456789abcdef", measure="same", metrics=("held_out_loss",)):
    """Another search on the store: (settings, loss) of each trial."""
    found = [
        Trial(number, f"key-{number}", values, "finished", [Report(1, 1, {"held_out_loss": loss, "seconds": 1.0})])
        for number, (values, loss) in enumerate(trials)
    ]
    search = Search("p", key, list(metrics), SPACE, "random", "none", 9, found, measure=measure)
    write_search(store, search)
    return search


def this_search(measure="same", metrics=("held_out_loss",)):
    return Search("p", "ffff", list(metrics), SPACE, "tpe", "none", 9, measure=measure)


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


def study(place, values=(3.0, 1.0, 2.0), direction="minimize", name="mine"):
    """A study whose trials have these values, at rates from 1e-5 on, ten times as large each."""
    made = optuna.create_study(study_name=name, storage=place, direction=direction)
    rate = optuna.distributions.FloatDistribution(1e-6, 1.0, log=True)
    for number, value in enumerate(values):
        kept = {"learning_rate": 10.0 ** (number - 5)}
        made.add_trial(optuna.trial.create_trial(value=value, params=kept, distributions={"learning_rate": rate}))
    return made


def test_trials_in_the_space_are_told_and_others_are_counted(store):
    trials = [
        ({RATE: 1e-4, RANK: 8, METHOD: "lora"}, 2.0),
        ({RATE: 1e-4}, 2.5),
        ({RATE: 1e-1, RANK: 8}, 1.0),
        ({RATE: 1e-4, METHOD: "rslora"}, 1.0),
        ({RATE: 1e-4, RANK: 8, METHOD: "lora"}, math.nan),
        ({"train.seed": 1}, 1.0),
        ({RANK: 17}, 3.0),
    ]
    other_search(store, trials)
    [prior], [note] = read_priors(["0123456789abcdef"], store, this_search(), DIMENSIONS)
    assert prior.trials == [
        ({RATE: 1e-4, RANK: 8, METHOD: "lora"}, [2.0]), ({RATE: 1e-4}, [2.5]), ({RANK: 16}, [3.0]),
    ]  # fmt: skip
    assert prior.is_comparable
    assert note == "warm start: 3 trials of 0123456789abcdef; 3 out of this space are left out"


def test_a_search_is_named_by_its_run_too(store):
    other_search(store, [({RATE: 1e-4}, 2.0)])
    store.write_run(run_record(run="shop-1", stages={"tune": {"key": "0123456789abcdef", "seconds": 1.0}}))
    store.write_run(run_record(run="shop-2", stages={}))
    [prior], _ = read_priors(["shop-1"], store, this_search(), DIMENSIONS)
    assert len(prior.trials) == 1
    with pytest.raises(StageFailed, match=r"tune\.warm_start\.0: run shop-2 did not complete a search; name the se"):
        read_priors(["shop-2"], store, this_search(), DIMENSIONS)
    with pytest.raises(StageFailed, match=r"start\.1: the store .* has no search 'shop-9'.*\(shop-1\), a search"):
        read_priors(["shop-1", "shop-9"], store, this_search(), DIMENSIONS)


def test_a_search_of_another_space_is_refused(store):
    other_search(store, [({"train.seed": 1}, 2.0)])
    with pytest.raises(StageFailed, match=r"none of the 1 trials .* lies in tune\.space: it searched train\.seed"):
        read_priors(["0123456789abcdef"], store, this_search(), DIMENSIONS)


def test_a_trial_counts_with_its_best_report_that_keeps_the_constraints(store):
    other = other_search(store, [({RATE: 1e-4}, 2.0), ({RATE: 2e-4}, 2.0)])
    other.trials[0].reports += [Report(2, 3, {"held_out_loss": 1.5, "seconds": 2.0}), Report(3, 3, {"seconds": 9.0})]
    other.trials[1].reports = [Report(1, 1, {"held_out_loss": 1.0, "seconds": 9.0})]
    write_search(store, other)
    this = this_search()
    assert [told for _, told in read_priors([other.key], store, this, DIMENSIONS)[0][0].trials] == [[1.5], [1.0]]
    this.constraints = ["seconds <= 5"]
    assert read_priors([other.key], store, this, DIMENSIONS)[0][0].trials == [({RATE: 1e-4}, [1.5])]


def test_the_best_settings_of_each_source_are_tried_first():
    dimensions = dimensions_of({**SPACE, RANK: {"when": {METHOD: ["dora"]}, "int": [8, 32]}})
    first = Prior([({RATE: 1e-4, METHOD: "lora"}, [2.0]), ({RATE: 2e-4, METHOD: "lora"}, [1.0])], is_comparable=True)
    second = Prior([({RATE: 3e-4, METHOD: "dora", RANK: 8}, [9.0]), ({RATE: 1e-4, METHOD: "dora"}, [1.0])], False)
    third = Prior([({RATE: 1e-4}, [1.0])], is_comparable=True)
    found = best_settings([first, second, third], dimensions)
    assert found == [{RATE: 2e-4, METHOD: "lora"}, {RATE: 3e-4, METHOD: "dora", RANK: 8}]


def test_what_was_measured_on_other_data_is_not_comparable(store):
    other_search(store, [({RATE: 1e-4}, 2.0)], measure="other")
    [prior], [note] = read_priors(["0123456789abcdef"], store, this_search(), DIMENSIONS)
    assert not prior.is_comparable
    assert note.endswith("not comparable with values of this search, so only their order counts")
    other_search(store, [({RATE: 1e-4}, 2.0)], measure="")  # of an earlier version
    assert not read_priors(["0123456789abcdef"], store, this_search(""), DIMENSIONS)[0][0].is_comparable


@pytest.mark.parametrize("form", ["sqlite:///{}/s.db", "{}/s.db", "{}/journal.log"])
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_study_of_optuna_is_told(store, tmp_path, form, direction):
    place = form.format(tmp_path)
    kept = place if "://" in place else f"sqlite:///{place}"
    if place.endswith(".log"):
        kept = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(place))
    made = study(kept, direction=direction)
    cut = made.ask()
    cut.suggest_float("learning_rate", 1e-6, 1.0, log=True)
    cut.report(5.0, 1)
    cut.report(4.0, 2)
    made.tell(cut, state=optuna.trial.TrialState.PRUNED)
    made.tell(made.ask(), state=optuna.trial.TrialState.FAIL)
    found = read_study(f"{place}#mine")
    assert found == read_study(place)
    values = [3.0, 1.0, 2.0, 4.0] if direction == "minimize" else [-3.0, -1.0, -2.0, -5.0]
    assert [trial.badness for trial in found] == values
    [prior], _ = read_priors([f"optuna:{place}#mine"], store, this_search(), DIMENSIONS)
    assert [told[0][RATE] for told in prior.trials][:3] == pytest.approx([1e-5, 1e-4, 1e-3])
    assert not prior.is_comparable


def test_what_is_wrong_with_a_study_is_named(store, tmp_path):
    place = f"sqlite:///{tmp_path}/s.db"
    for name, words in {
        "optuna:sqlite:///nowhere/s.db": "nowhere/s.db: there is no such file",
        "optuna:nosuch://user:secret@host/db": "Optuna cannot use this storage",
    }.items():
        with pytest.raises(StageFailed, match=words) as error:
            read_priors([name], store, this_search(), DIMENSIONS)
        assert "secret" not in str(error.value)
    study(place)
    with pytest.raises(StudyError, match="there is no study 'other'; there are mine"):
        read_study(f"{place}#other")
    study(place, name="second")
    with pytest.raises(StudyError, match="has 2 studies; name one"):
        read_study(place)
    with pytest.raises(StageFailed, match=r"tune\.metric names several"):
        read_priors([f"optuna:{place}#mine"], store, this_search(metrics=("held_out_loss", "seconds")), DIMENSIONS)
    (tmp_path / "x.db").write_text("no database\nat all\n")
    with pytest.raises(StudyError, match="Optuna cannot use this storage"):
        read_study(str(tmp_path / "x.db"))


def result(loss):
    return {RESULT: TrialEvent("key", {}, None, Report(1, 1, {"held_out_loss": loss}))}


def chosen_by(priors, trials, loss=loss_at, startup=10):
    searcher = TpeSearch(TpeSpec(startup_trials=startup), 0, DIMENSIONS, ["held_out_loss"], {}, priors=priors)
    found = []
    for number in range(trials):
        found.append(values_of(searcher.suggest(str(number))))
        searcher.on_trial_complete(str(number), result(loss(found[-1][RATE])))
    return found, searcher


def rates(count):
    return [10 ** (-5 + 2 * index / (count - 1)) for index in range(count)]


def near(found):
    return sum(abs(math.log10(values[RATE] / GOOD)) < 0.2 for values in found) / len(found)


@pytest.mark.parametrize("is_comparable", [True, False])
@pytest.mark.parametrize("offset", [0.0, 100.0, -100.0])
def test_a_warm_start_goes_where_other_trials_were_good(is_comparable, offset):
    told = [({RATE: rate}, [loss_at(rate) + offset]) for rate in rates(40)]
    found, _ = chosen_by([Prior(told, is_comparable)], 10)
    cold, _ = chosen_by([], 10)
    assert near(found) > 2 * near(cold)


@pytest.mark.parametrize("offset", [100.0, -100.0])
def test_trials_that_are_not_comparable_do_not_outweigh_those_of_the_search(offset):
    """They were good elsewhere: the search finds where its own trials are."""
    told = [({RATE: rate}, [abs(math.log10(rate / 1.5e-5)) + offset]) for rate in rates(40)]
    found, searcher = chosen_by([Prior(told, is_comparable=False)], 60)
    assert near(found[30:]) > near(found[:10]) + 0.2
    kept = searcher._study.get_trials(deepcopy=False)
    assert [trial.params for trial in kept if trial.state.name == "COMPLETE"][40:] == found
    best = min(trial.values[0] for trial in kept[40:] if trial.values)
    assert min(trial.values[0] for trial in kept[:40]) == pytest.approx(best)


@pytest.mark.parametrize(("tune", "words"), [
    ({"searcher": "tpe", "warm_start": ["shop-1"]}, ""),
    ({"warm_start": ["shop-1"]}, "warm_start is for searcher tpe; random learns nothing"),
    ({"searcher": "tpe", "warm_start": [""]}, "at least 1 character"),
])  # fmt: skip
def test_the_field(problems, tune, words):
    text = problems({"space": SPACE, "trials": 3, **tune}, {"adapter": {"rank": 8}})
    assert words in text
    assert bool(text) == bool(words)


def test_the_files_of_studies_are_those_of_the_pipeline_file_and_travel_with_a_job():
    names = ["shop-1", "optuna:sqlite:///s.db#mine", "optuna:logs/j.log", "optuna:mysql://host/db#mine", "optuna:a"]
    content = {"name": "p", "base_model": "random:tiny-llama", "data": {"sources": [{"path": "/x.jsonl"}]}}
    tune = {"space": {"train.learning_rate": [1e-4]}, "trials": 1, "searcher": "tpe", "warm_start": names}
    spec = PipelineSpec.model_validate({**content, "tune": tune})
    found = {field: path for field, path in local_paths(spec).items() if field.startswith("tune")}
    assert found == {"tune.warm_start.1": "s.db", "tune.warm_start.2": "logs/j.log", "tune.warm_start.4": "a"}
    moved = with_paths(spec, {field: f"/there/{path}" for field, path in found.items()})
    assert moved.tune.warm_start == [
        "shop-1", "optuna:sqlite:////there/s.db#mine", "optuna:/there/logs/j.log", "optuna:mysql://host/db#mine",
        "optuna:/there/a",
    ]  # fmt: skip


def test_the_key_of_a_search_has_the_content_of_a_studys_file_and_no_password(tmp_path):
    (tmp_path / "one.log").write_text("one")
    (tmp_path / "two.log").write_text("one")
    tune = TuneSpec(space=SPACE, trials=1, searcher="tpe")

    def fields(name):
        return tune_fields(tune.model_copy(update={"warm_start": [name]}))["warm_start"]

    assert fields(f"optuna:{tmp_path}/one.log#mine") == fields(f"optuna:{tmp_path}/two.log#mine")
    assert fields(f"optuna:{tmp_path}/one.log#mine") != fields(f"optuna:{tmp_path}/one.log#other")
    (tmp_path / "two.log").write_text("two")
    assert fields(f"optuna:{tmp_path}/one.log#mine") != fields(f"optuna:{tmp_path}/two.log#mine")
    assert fields("optuna:mysql://user:secret@host/db#mine") == ["optuna:mysql://host/db#mine"]
    assert "warm_start" not in tune_fields(tune)
    with pytest.raises(StageFailed, match=r"tune\.warm_start\.0: cannot read /nowhere/s\.db"):
        fields("optuna:sqlite:////nowhere/s.db")


def test_a_dimension_has_the_same_values_as_optunas_distribution():
    assert distribution_of(DIMENSIONS[RANK]) == optuna.distributions.IntDistribution(8, 32, step=8)
    assert distribution_of(DIMENSIONS[METHOD]).choices == ("lora", "dora")
