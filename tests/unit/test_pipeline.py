"""What is up to date, what will run, and why; without Ray."""

import json

import pytest

from workflows.pipeline import STAGES, StageFailed, examine
from workflows.plan import plan_of, plan_text
from workflows.spec import PipelineSpec
from workflows.store import Artifact, Store

TALK = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


@pytest.fixture
def values(tmp_path):
    (tmp_path / "talk.jsonl").write_text(json.dumps(TALK) + "\n")
    return {
        "name": "p",
        "store": str(tmp_path / "store"),
        "base_model": "random:tiny-llama",
        "data": {"sources": [{"path": str(tmp_path / "talk.jsonl")}]},
    }


def states_of(values):
    spec = PipelineSpec.model_validate(values)
    return {state.stage.name: state for state in examine(spec, Store(spec.store))}


def finish_all(values):
    """Manifests as a run would have left them."""
    store = Store(values["store"])
    states = states_of(values)
    figures = {"tokens": 100_000, "passed": True}
    for name, state in states.items():
        inputs = {given: states[given].key for given in state.stage.inputs}
        store.finish(Artifact(name, state.key, "p", inputs, state.settings, figures, started=f"{len(inputs)}"))
    return states


def test_nothing_is_done_at_first(values):
    states = states_of(values)
    assert list(states) == [stage.name for stage in STAGES]
    assert states["prepare"].reason == "not done yet"
    assert states["train"].reason == "prepare will run"
    assert states["evaluate"].reason == "prepare and train will run"
    assert not any(state.artifact for state in states.values())


def test_finished_stages_are_up_to_date(values):
    finish_all(values)
    assert all(state.artifact for state in states_of(values).values())


def test_a_changed_knob_runs_from_the_stage_that_it_touches(values):
    finish_all(values)
    values["train"] = {"learning_rate": 1e-3}
    states = states_of(values)
    assert states["prepare"].artifact
    assert states["train"].reason == "changed: train.learning_rate"
    assert states["evaluate"].reason == "train will run"
    values["train"] = {}
    values["evaluate"] = {"num_replies": 0}
    states = states_of(values)
    assert [name for name, state in states.items() if not state.artifact] == ["evaluate"]


def test_how_it_runs_changes_nothing(values):
    finish_all(values)
    values |= {
        "train": {"cpus_per_worker": 2, "max_failures": 0},
        "cluster": {"num_cpus": 7},
        "serve": {"port": 9999},
    }
    assert all(state.artifact for state in states_of(values).values())


def test_changed_data_is_noticed(values, tmp_path):
    finish_all(values)
    (tmp_path / "talk.jsonl").write_text(json.dumps(TALK) + "\n" + json.dumps(TALK) + "\n")
    states = states_of(values)
    assert states["prepare"].reason == "changed: files"
    assert states["optimize"].reason == "train will run"


def test_missing_data_is_located(values):
    values["data"]["sources"].append({"path": "/no/such/file.jsonl"})
    with pytest.raises(StageFailed, match=r"data\.sources\.1\.path: nothing found at /no/such/file\.jsonl"):
        states_of(values)


def test_folders_and_globs_are_files_in_order(values, tmp_path):
    (tmp_path / "more").mkdir()
    for name in ("b.jsonl", "a.jsonl.gz", "notes.txt"):
        (tmp_path / "more" / name).write_text("x")
    from workflows.pipeline import source_files

    for path, names in ((tmp_path / "more", ["a.jsonl.gz", "b.jsonl"]), (tmp_path / "more" / "*.jsonl", ["b.jsonl"])):
        values["data"]["sources"] = [{"path": str(path)}]
        files = source_files(PipelineSpec.model_validate(values))
        assert [file.uri.rpartition("/")[2] for file in files] == names


def test_the_plan_estimates_steps_and_says_what_does_not_fit(values, tmp_path):
    (tmp_path / "talk.jsonl").write_text((json.dumps(TALK) + "\n") * 1000)
    values |= {"train": {"num_workers": 2, "epochs": 2, "micro_batch_tokens": 1000, "cpus_per_worker": 4096}}
    values["cluster"] = {"num_cpus": 4}
    spec = PipelineSpec.model_validate(values)
    store = Store(spec.store)
    plan = plan_of(spec, store, examine(spec, store), endpoint_lives=False)
    training = plan["training"]
    assert training["tokens_are_estimated"]
    assert training["tokens"] == pytest.approx(2 * 1000 * len(json.dumps(TALK)) / 4.6, rel=0.1)
    assert training["steps"] == pytest.approx(training["tokens"] / 2000, abs=2)
    assert not plan["resources"]["asked"]["train"]["fits"]
    assert plan["resources"]["asked"]["evaluate"]["fits"]
    text = plan_text(plan)
    assert "DOES NOT FIT" in text
    assert "prepare   will run: not done yet" in text
    assert not (tmp_path / "store" / "prepare").exists()
