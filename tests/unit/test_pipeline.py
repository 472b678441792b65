"""Which stages are up to date, which run and why, and what they need; all without Ray."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from stored import EVALUATED, OPTIMIZED, PREPARED

from models.base.sizes import describe
from models.packing import StepPlan
from models.training.memory import estimate_training_memory
from workflows.corpus.files.sources import source_files
from workflows.endpoint import status
from workflows.progress import Progress
from workflows.runs.order import STAGES
from workflows.runs.plan import SearchAsks, TrainingPlan, plan_of, plan_text
from workflows.runs.run import run_stages
from workflows.runs.state import StageState, examine
from workflows.spec import PipelineSpec
from workflows.stage import GateFailed, StageFailed
from workflows.store import Artifact, Store

NAMES = ["prepare", "train", "evaluate", "optimize"]
FIGURES = {**PREPARED, **EVALUATED, **OPTIMIZED}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def spec_with(tmp_path: Path) -> Callable[..., PipelineSpec]:
    """A pipeline with one small data file and these sections."""
    file = tmp_path / "talk.jsonl"
    file.write_text('{"messages": []}\n')

    def make(**sections: Any) -> PipelineSpec:
        values = {"name": "tiny", "base_model": "random:tiny-llama", "data": {"sources": [{"path": str(file)}]}}
        return PipelineSpec.model_validate({**values, **sections})

    return make


def finish_all(spec: PipelineSpec, store: Store, **figures: Any) -> list[StageState]:
    """Write the manifests of all stages, as a run would."""
    for state, minute in zip(examine(spec, store, "optimize"), range(60), strict=False):
        if state.artifact is None:
            keys = {done.stage.name: done.key for done in examine(spec, store, "optimize")}
            inputs = {name: keys[name] for name in state.stage.inputs if name in keys}
            started = f"2026-01-01T00:{minute:02d}:00+00:00"
            artifact = Artifact(
                state.stage.name, state.key, spec.name, inputs, state.settings, {**FIGURES, **figures}, {}, started
            )
            store.finish(artifact)
    return examine(spec, store, "optimize")


def reasons(spec: PipelineSpec, store: Store) -> dict[str, str]:
    return {state.stage.name: state.reason for state in examine(spec, store, "optimize")}


def test_the_stages_come_after_what_they_read() -> None:
    order = [stage.name for stage in STAGES]
    assert order == ["prepare", "reference", "tune", *NAMES[1:], "deploy"]
    for index, stage in enumerate(STAGES):
        assert {*stage.inputs, *stage.also_reads} <= set(order[:index])


@pytest.mark.parametrize(("objective", "has_it"), [
    ("sft", False), ("orpo", False), ("simpo", False), ("dpo", True), ("kto", True),
    ({"name": "distill", "teacher": "random:tiny-llama"}, True),
    ({"name": "distill_replies", "teacher": "random:tiny-llama"}, True),
])  # fmt: skip
def test_only_some_objectives_have_a_reference(
    spec_with: Callable[..., PipelineSpec], store: Store, objective: Any, has_it: bool
) -> None:
    spec = spec_with(train={"objective": objective})
    names = [state.stage.name for state in examine(spec, store, "optimize")]
    assert names == (["prepare", "reference", *NAMES[1:]] if has_it else NAMES)
    plan = plan_of(spec, store, examine(spec, store))
    assert [row.stage for row in plan.stages] == [*names, "deploy"]
    assert plan.resources is not None
    assert ("reference" in plan.resources.asked) == has_it
    assert ("reference will run: " in plan_text(plan)) == has_it
    with Progress() as progress:
        if not has_it:
            with pytest.raises(StageFailed, match=r"^train\.objective: .* needs no reference values"):
                run_stages(spec, store, progress, "reference", connected)
        finish_all(spec, store)
        assert list(run_stages(spec, store, progress, "train", connected)) == names[: names.index("train") + 1]


def test_the_reference_values_depend_on_what_they_are(spec_with: Callable[..., PipelineSpec], store: Store) -> None:
    def found(objective: Any, **train: Any) -> dict[str, str]:
        return reasons(spec_with(train={"objective": objective, **train}), store)

    finish_all(spec_with(train={"objective": "dpo"}), store)
    changed = found({"name": "dpo", "beta": 0.3}, learning_rate=1e-3, seed=3)
    assert (changed["reference"], changed["train"]) == (
        "",
        "changed: train.learning_rate, train.objective.beta, train.seed",
    )
    assert found("dpo", precision="fp32")["reference"] == "changed: precision"
    # Another kind of example needs another corpus; the same kind shares it.
    assert found("simpo")["prepare"] == ""
    assert found("kto")["prepare"] == "changed: examples"
    taught = {"name": "distill", "teacher": "random:tiny-llama", "top_k": 8}
    finish_all(spec_with(train={"objective": taught}), store)
    assert found({**taught, "temperature": 2, "plain_share": 0})["reference"] == ""
    assert found({**taught, "top_k": 4})["reference"] == "changed: top_k"
    assert found({**taught, "teacher": "random:tiny-gpt2"})["reference"] == "changed: model"
    written = {"name": "distill_replies", "teacher": "random:tiny-llama", "max_reply_tokens": 9}
    finish_all(spec_with(train={"objective": written}), store)
    assert found({**written, "max_reply_tokens": 9})["reference"] == ""
    assert "max_reply_tokens" in found({**written, "max_reply_tokens": 8})["reference"]
    assert "model" in found({**written, "teacher": "random:tiny-gpt2"})["reference"]


def test_at_first_nothing_is_up_to_date_and_examining_changes_nothing(
    spec_with: Callable[..., PipelineSpec], store: Store
) -> None:
    states = examine(spec_with(), store)
    assert [state.artifact for state in states] == [None] * 5
    assert states[0].reason == "not done yet"
    assert states[1].reason == "prepare will run"
    assert states[2].reason == "prepare and train will run"
    assert states[4].reason == "no endpoint of this release answers"
    assert list(Path(store.root).iterdir()) == []


def test_finished_stages_are_up_to_date(spec_with: Callable[..., PipelineSpec], store: Store) -> None:
    states = finish_all(spec_with(), store)
    assert all(state.artifact is not None for state in states)
    assert {state.reason for state in states} == {""}


@pytest.mark.parametrize(("sections", "expected"), [
    ({"train": {"learning_rate": 1e-3}},
     ["", "changed: train.learning_rate", "train will run", "train will run"]),
    ({"train": {"learning_rate": 1e-3, "adapter": {"rank": 2}, "zero": {"stage": 1}}},
     ["", "changed: train.adapter.rank, train.learning_rate, train.zero.stage", "train will run", "train will run"]),
    ({"train": {"adapter": None}}, ["", "changed: train.adapter", "train will run", "train will run"]),
    ({"evaluate": {"num_replies": 5}}, ["", "", "changed: evaluate.num_replies", ""]),
    ({"optimize": {"weights": "fp32"}}, ["", "", "", "changed: optimize.weights"]),
    ({"serve": {"port": 9000}, "cluster": {"num_cpus": 8}}, [""] * 4),
    ({"train": {"cpus_per_worker": 2, "max_failures": 0, "gpus_per_worker": 1}}, [""] * 4),
    ({"evaluate": {"num_workers": 2, "cpus_per_worker": 2, "gpus_per_worker": 1}}, [""] * 4),
    ({"base_model": "random:tiny-gpt2"}, ["changed: base_model", *["prepare will run"] * 3]),
])  # fmt: skip
def test_a_change_reaches_its_stage_and_those_after_it(
    spec_with: Callable[..., PipelineSpec], store: Store, sections: dict[str, Any], expected: list[str]
) -> None:
    finish_all(spec_with(), store)
    found = reasons(spec_with(**sections), store)
    if "base_model" in sections:
        expected = ["changed: base_model", "prepare will run", "prepare and train will run", "train will run"]
    assert list(found.values()) == expected


def test_data_are_identified_by_content(spec_with: Callable[..., PipelineSpec], store: Store, tmp_path: Path) -> None:
    finish_all(spec_with(), store)
    copy = tmp_path / "elsewhere.jsonl"
    copy.write_bytes((tmp_path / "talk.jsonl").read_bytes())
    moved = spec_with(data={"sources": [{"path": str(copy)}]})
    assert reasons(moved, store)["prepare"] == ""
    copy.write_text('{"messages": [1]}\n')
    assert reasons(moved, store)["prepare"].startswith("changed: ")
    assert reasons(moved, store)["train"] == "prepare will run"
    limited = spec_with(data={"sources": [{"path": str(tmp_path / "talk.jsonl"), "limit": 3}]})
    assert reasons(limited, store)["prepare"].startswith("changed: ")


def test_going_back_to_earlier_settings_finds_the_earlier_artifacts(
    spec_with: Callable[..., PipelineSpec], store: Store
) -> None:
    finish_all(spec_with(), store)
    finish_all(spec_with(train={"seed": 1}), store)
    assert set(reasons(spec_with(), store).values()) == {""}
    assert len(store.all_of("train")) == 2
    assert len(store.all_of("prepare")) == 1


def test_an_artifact_of_another_pipeline_is_used_but_is_no_reason(
    spec_with: Callable[..., PipelineSpec], store: Store
) -> None:
    finish_all(spec_with(), store)
    assert reasons(spec_with(name="other"), store)["prepare"] == ""
    assert reasons(spec_with(name="other", train={"seed": 1}), store)["train"] == "not done yet"


def test_sources_are_files_folders_and_globs(spec_with: Callable[..., PipelineSpec], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "inner").mkdir(parents=True)
    for name in ("b.jsonl", "a.json", "inner/c.jsonl.gz", "notes.txt"):
        (folder / name).write_text("{}\n")

    def found(path: str, **options: Any) -> list[str]:
        files = source_files(spec_with(data={"sources": [{"path": f"{folder}{path}", **options}]}))
        assert {file.limit for file in files} == {options.get("limit")}
        return [file.path.removeprefix(f"{folder}/") for file in files]

    assert found("") == ["a.json", "b.jsonl", "inner/c.jsonl.gz"]
    assert found("/*.jsonl") == ["b.jsonl"]
    assert found("/b.jsonl", limit=5) == ["b.jsonl"]
    assert found("/notes.txt") == ["notes.txt"]


@pytest.mark.parametrize("path", ["none.jsonl", "*.parquet", "empty"])
def test_a_source_without_files_is_named(spec_with: Callable[..., PipelineSpec], tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    good, bad = str(tmp_path / "talk.jsonl"), str(tmp_path / path)
    spec = spec_with(data={"sources": [{"path": good}, {"path": bad}]})
    with pytest.raises(StageFailed, match=r"^data\.sources\.1\.path: nothing found at ") as raised:
        source_files(spec)
    assert bad in str(raised.value)


def test_a_missing_file_stops_the_plan(spec_with: Callable[..., PipelineSpec], store: Store, tmp_path: Path) -> None:
    (tmp_path / "talk.jsonl").unlink()
    with pytest.raises(StageFailed, match=r"^data\.sources\.0\.path: "):
        examine(spec_with(), store)


def test_questions_are_identified_by_content(
    spec_with: Callable[..., PipelineSpec], store: Store, tmp_path: Path
) -> None:
    file = tmp_path / "questions.jsonl"
    asking = spec_with(evaluate={"questions": str(file)})
    with pytest.raises(StageFailed, match=r"^evaluate\.questions: cannot read "):
        examine(asking, store)
    file.write_text('{"question": "How long?", "facts": [["45 days"]]}\n')
    finish_all(asking, store)
    assert set(reasons(asking, store).values()) == {""}
    file.write_text('{"question": "How much?", "facts": [["45 days"]]}\n')
    assert list(reasons(asking, store).values()) == ["", "", "changed: evaluate.questions", ""]


def connected(stages: Sequence[str]) -> None:
    pytest.fail("nothing has to run, and yet a cluster was asked for")


def test_an_up_to_date_run_asks_for_no_cluster_and_writes_nothing(
    spec_with: Callable[..., PipelineSpec], store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_all(spec_with(), store)
    with Progress(json_lines=True) as progress:
        done = run_stages(spec_with(), store, progress, "optimize", connected)
        assert list(done) == NAMES
        assert list(run_stages(spec_with(), store, progress, "train", connected)) == NAMES[:2]
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(event["event"], event["stage"]) for event in events] == [
        ("up_to_date", stage) for stage in NAMES + NAMES[:2]
    ]
    assert store.runs() == []


def endpoint_of(spec: PipelineSpec, store: Store, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """A deployment of the finished pipeline; its endpoint answers."""
    release = examine(spec, store, "optimize")[-1].key
    figures = {"url": "http://127.0.0.1:8000", "model": "tiny"}
    deployed = Artifact("deploy", status.deployment_key(spec, release), spec.name, {"optimize": release}, {}, figures)
    store.finish(deployed)
    monkeypatch.setattr(status, "_served_release", lambda url, serve: release)
    return deployed


def test_a_deployment_is_up_to_date_while_its_endpoint_answers(
    spec_with: Callable[..., PipelineSpec], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_all(spec_with(), store)
    deployed = endpoint_of(spec_with(), store, monkeypatch)
    state = examine(spec_with(), store)[-1]
    assert (state.artifact, state.key, state.reason) == (deployed, deployed.key, "")
    assert (state.settings, [*state.inputs]) == (
        {"serve": spec_with().serve.result_fields()},
        ["evaluate", "optimize"],
    )
    with Progress(json_lines=True) as progress:
        assert run_stages(spec_with(), store, progress, "deploy", connected)["deploy"] == deployed
    assert store.runs() == []
    assert examine(spec_with(serve={"max_replicas": 7}), store)[-1].artifact is None
    monkeypatch.setattr(status, "_served_release", lambda url, serve: None)
    gone = examine(spec_with(), store)[-1]
    assert (gone.artifact, gone.key) == (None, deployed.key)


def test_a_failed_gate_stops_what_comes_after_it(
    spec_with: Callable[..., PipelineSpec], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_all(spec_with(), store, passed=False, verdict="failed: not better")
    endpoint_of(spec_with(), store, monkeypatch)
    with Progress(json_lines=True) as progress:
        for last in ("optimize", "deploy"):
            with pytest.raises(GateFailed, match="evaluate: failed: not better; use --force"):
                run_stages(spec_with(), store, progress, last, connected)
        assert list(run_stages(spec_with(), store, progress, "evaluate", connected)) == NAMES[:3]
        forced = run_stages(spec_with(), store, progress, "deploy", connected, force=True)
        assert list(forced) == [*NAMES, "deploy"]
    assert sorted((record.to, record.status) for record in store.runs()) == [
        ("deploy", "failed"),
        ("optimize", "failed"),
    ]
    assert all("not better" in (record.error or "") and record.ended for record in store.runs())


def test_a_cluster_that_cannot_be_reached_is_a_failed_run(
    spec_with: Callable[..., PipelineSpec], store: Store
) -> None:
    def connect(stages: Sequence[str]) -> None:
        [record] = store.runs()
        assert (record.status, record.ended) == ("running", None)
        raise StageFailed("cluster.address: nobody there")

    with Progress(json_lines=True) as progress, pytest.raises(StageFailed, match="nobody there"):
        run_stages(spec_with(), store, progress, "train", connect)
    [record] = store.runs()
    assert (record.status, record.error) == ("failed", "cluster.address: nobody there")


def test_the_plan_in_numbers(
    spec_with: Callable[..., PipelineSpec], store: Store, tmp_path: Path, tiny_llama: Path
) -> None:
    (tmp_path / "talk.jsonl").write_bytes(b"x" * 46_000)  # 10,000 tokens of 4.6 bytes
    train = {"batch_tokens": 500, "gradient_accumulation": 2, "num_workers": 2, "epochs": 3, "adapter": None}
    spec = spec_with(
        train=train, evaluate={"num_workers": 4, "cpus_per_worker": 1.5}, cluster={"num_cpus": 4},
        serve={"min_replicas": 0, "gpus_per_replica": 64},
    )  # fmt: skip
    plan = plan_of(spec, store, examine(spec, store))
    assert [(row.stage, row.up_to_date) for row in plan.stages] == [(name, False) for name in [*NAMES, "deploy"]]
    training = plan.training
    assert training.tokens_are_estimated is True
    assert training.tokens_per_epoch == pytest.approx(9500, abs=1)
    assert training.steps == 5 * 3  # 9,500 tokens at 500 x 2 x 2 per step
    assert training.tokens == pytest.approx(3 * 9500, abs=3)
    memory = estimate_training_memory(
        describe(tiny_llama), micro_batch_tokens=500, precision="bf16", adapter_rank=None, zero_stage=0, num_workers=2
    )
    assert training.memory_gb_per_worker == round(memory.total_gb, 1)
    assert plan.resources is not None
    assert plan.resources.there.cpus == 4
    asked = plan.resources.to_json()["asked"]
    assert [row.pop("why_not", None) for row in asked.values()] == [  # type: ignore[attr-defined]
        None,
        "evaluate.num_workers: needs 4 workers of 1.5 CPUs each, the nodes hold 2: 1 node of 4 CPUs; request less "
        "or add nodes",
        "serve.gpus_per_replica: needs 64 workers of 1 GPU each, and no node is large enough for one: 1 node of 0 "
        "GPUs; request less per worker or add a larger node",
    ]
    assert plan.will_fail
    assert asked == {
        "train": {"workers": 2, "cpus": 2.0, "gpus": 0.0, "fits": True},
        "evaluate": {"workers": 4, "cpus": 6.0, "gpus": 0.0, "fits": False},
        "deploy": {"workers": 1, "cpus": 1.0, "gpus": 64.0, "fits": False},
    }
    text = plan_text(plan)
    assert "prepare   will run: not done yet" in text
    assert "evaluate  needs 4 x worker: 6 CPUs: DOES NOT FIT" in text
    assert "about 15 steps" in text


def test_the_plan_has_the_search_on_the_proxy_first(
    spec_with: Callable[..., PipelineSpec], store: Store, tmp_path: Path, tiny_llama: Path, tiny_gpt2: Path
) -> None:
    (tmp_path / "talk.jsonl").write_bytes(b"x" * 46_000)
    space = {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}}
    tune = {"space": space, "trials": 4, "proxy": {"base_model": "random:tiny-gpt2", "trials": 20}}
    spec = spec_with(tune=tune, cluster={"num_cpus": 2})
    plan = plan_of(spec, store, examine(spec, store))
    assert plan.proxy is not None
    assert plan.proxy.resources is not None
    assert plan.resources is not None
    on_proxy, on_base = plan.proxy.resources.asked, plan.resources.asked
    assert isinstance(on_proxy["tune"], SearchAsks)
    assert isinstance(on_base["tune"], SearchAsks)
    assert [*on_proxy] == ["tune"]
    assert (on_proxy["tune"].trials, on_base["tune"].trials) == (20, 4)
    assert [row.stage for row in plan.proxy.stages] == ["prepare", "tune"]
    text = plan_text(plan)
    assert "first, the search on the proxy (tune.proxy):\n  pipeline" in text
    assert text.index("20 trials") < text.index("\nthen:") < text.index("4 trials, ")
    assert plan.to_json()["proxy"]["training"]["is_of_a_trial"] is True  # type: ignore[index]
    data = {"sources": [{"path": str(tmp_path / "talk.jsonl")}], "max_length": 2000}
    spec = spec_with(tune=tune, data=data)
    found = plan_of(spec, store, examine(spec, store)).troubles
    assert found == (
        "tune.proxy: data.max_length: 2000 exceeds the 1024 positions of random:tiny-gpt2; lower it, or give a base "
        "model whose config.json allows more (max_position_embeddings, rope_scaling)",
    )


def test_the_plan_of_a_finished_corpus_counts_the_steps_of_training(
    spec_with: Callable[..., PipelineSpec], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"batch_tokens": 500, "gradient_accumulation": 2, "num_workers": 2, "epochs": 3}
    states = finish_all(spec_with(train=train), store)
    endpoint_of(spec_with(train=train), store, monkeypatch)
    lengths = [100] * 70 + [200] * 5
    shard = Path(store.path("prepare", states[0].key, "corpus", "split=train", "part.parquet"))
    shard.parent.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"num_tokens": lengths, "source": [0] * len(lengths)}), shard)

    def training(**changes: Any) -> TrainingPlan:
        spec = spec_with(train={**train, **changes})
        plan = plan_of(spec, store, examine(spec, store))
        assert [row.up_to_date for row in plan.stages] == [True, *[not changes] * 4]
        assert f"training: {plan.training.tokens:,} tokens in" in plan_text(plan)
        return plan.training

    packed = StepPlan(lengths, lengths, 500, num_workers=2, gradient_accumulation=2, seed=0)
    whole = training()
    assert whole.tokens_are_estimated is False
    assert (whole.tokens_per_epoch, whole.steps) == (8000, 3 * packed.steps_per_epoch)
    assert whole.tokens == 3 * 8000
    short = training(max_steps=2, checkpoint_every_steps=2)
    assert (short.steps, short.tokens) == (2, 8000 * 2 // packed.steps_per_epoch)


def test_the_plan_computes_a_size_without_making_the_model(
    spec_with: Callable[..., PipelineSpec], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYCONTEUR_CACHE", str(tmp_path / "cache"))
    plan = plan_of(spec_with(), store, examine(spec_with(), store))
    assert plan.training.memory_gb_per_worker is None
    assert "memory unknown until the base model is here" in plan_text(plan)
    assert not (tmp_path / "cache").exists()
