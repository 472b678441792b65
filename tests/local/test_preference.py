"""Preference data and distillation on a real Ray cluster, from raw lines to a scorecard."""

import json
import math
import random
import re

import pyarrow.dataset
import pytest

from workflows.scorecard.gate import gate_verdict
from workflows.scorecard.records import Scorecard
from workflows.spec import GateSpec
from workflows.stage import StageFailed


def pairs(count: int, seed: int = 0) -> list[dict]:
    """Chosen replies in lower case, rejected ones in capitals, which a tiny model learns in a few steps."""
    draw = random.Random(seed)
    records = []
    for _ in range(count):
        word = "".join(draw.choice("abcdefgh") for _ in range(8))
        records.append({"prompt": f"Say {word}!", "chosen": f"{word}.", "rejected": f"{word.upper()}."})
    return records


@pytest.fixture
def paired(tmp_path, tiny):
    """The pipeline `tiny` with preference pairs."""
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in pairs(200)))
    tiny["data"] = {"sources": [{"path": str(file)}], "held_out_share": 0.2}
    tiny["train"] |= {"objective": "dpo", "epochs": 4, "batch_tokens": 768, "learning_rate": 1e-3}
    return tiny


def rows_of(store, stage, key, name):
    path = store.path(stage, key, name)
    parts = pyarrow.dataset.dataset(path, filesystem=store.filesystem, format="parquet", partitioning="hive")
    return sorted(parts.to_table().to_pylist(), key=lambda row: (row["source"], row["line"]))


def history(store, artifact):
    with store.filesystem.open_input_stream(store.path("train", artifact.key, "history.jsonl")) as stream:
        return [json.loads(line) for line in stream.read().splitlines()]


def test_dpo_from_raw_pairs_to_a_scorecard(run, paired):
    done, store = run("evaluate", paired)
    assert list(done) == ["prepare", "reference", "train", "evaluate"]
    values = rows_of(store, "reference", done["reference"].key, "values")
    assert len(values) == 200 == done["reference"].figures["conversations"]
    for row in rows_of(store, "prepare", done["prepare"].key, "corpus"):
        replies = sum(row["supervised"]) + sum(row["other_supervised"])
        assert row["num_tokens"] == row["supervised"].index(True) + replies  # the prompt is counted once
    assert all(row["reference_log_probability"] < 0 for row in values)
    steps = history(store, done["train"])
    assert steps[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert steps[0]["margin"] == pytest.approx(0.0, abs=1e-3)
    assert steps[-1]["loss"] < 0.5
    assert done["evaluate"].figures["preference_accuracy"] > 0.9
    assert done["evaluate"].figures["reward_margin"] > 1.0
    assert done["evaluate"].figures["passed"]


@pytest.mark.slow
def test_kto_learns_from_judged_replies(run, tiny, tmp_path):
    file = tmp_path / "judged.jsonl"
    lines = []
    for index, pair in enumerate(pairs(200)):
        name = "chosen" if index % 2 else "rejected"
        lines.append(json.dumps({"prompt": pair["prompt"], "completion": pair[name], "label": name == "chosen"}))
    lines.insert(3, json.dumps({"prompt": "x", "completion": "y", "label": "yes"}))
    file.write_text("\n".join(lines))
    tiny["data"] = {"sources": [{"path": str(file)}], "held_out_share": 0.2}
    tiny["train"] |= {"objective": {"name": "kto", "beta": 0.2}, "epochs": 4, "learning_rate": 1e-3}
    tiny["train"]["batch_tokens"] = 768
    done, store = run("evaluate", tiny)
    corpus = [row for row in rows_of(store, "prepare", done["prepare"].key, "corpus") if row["split"] != "quarantine"]
    assert len(corpus) == 200
    assert all(row["input_ids"] != row["other_input_ids"] for row in corpus)
    steps = history(store, done["train"])
    assert steps[0]["loss"] == pytest.approx(0.5, abs=1e-3)
    assert steps[-1]["accuracy"] > 0.9
    assert done["evaluate"].figures["scored_tokens"] < sum(
        row["num_targets"] for row in corpus if row["split"] == "held_out"
    )


@pytest.fixture(scope="module")
def kept():
    """Results that tests share."""
    return {}


@pytest.fixture
def teacher(run, tiny, kept):
    """The folder of a trained model; `tiny` trains its student for as long."""
    tiny["train"] |= {"epochs": 3}
    if "teacher" not in kept:
        taught, store = run("train", tiny)
        kept["teacher"] = store.path("train", taught["train"].key, "model")
    return kept["teacher"]


@pytest.mark.slow
def test_a_student_learns_its_teachers_distribution(run, tiny, teacher):
    tiny["train"]["objective"] = {"name": "distill", "teacher": teacher, "top_k": 8, "plain_share": 0.0}
    done, store = run("evaluate", tiny)
    values = rows_of(store, "reference", done["reference"].key, "values")
    corpus = rows_of(store, "prepare", done["prepare"].key, "corpus")
    assert [len(row["teacher_tokens"]) for row in values] == [8 * row["num_targets"] for row in corpus]
    steps = history(store, done["train"])
    assert steps[-1]["divergence"] < 0.3 * steps[0]["divergence"]
    assert done["evaluate"].figures["loss_reduction"] > 1.0


def test_a_teacher_that_cannot_teach_is_named(run, tiny):
    tiny["train"]["objective"] = {"name": "distill", "teacher": "random:tiny-gpt2"}
    with pytest.raises(
        StageFailed, match=r"^train\.objective\.teacher: the tokens of random:tiny-gpt2 are not those"
    ):
        run("train", tiny)
    tiny["train"]["objective"] |= {"teacher": "./nowhere"}
    with pytest.raises(StageFailed, match=r"^train\.objective\.teacher: .* is not a folder"):
        run("train", tiny)


@pytest.mark.slow
def test_a_student_learns_its_teachers_replies(run, tiny, teacher):
    tiny["train"]["objective"] = {"name": "distill_replies", "teacher": teacher, "max_reply_tokens": 9}
    done, store = run("train", tiny)
    corpus = rows_of(store, "prepare", done["prepare"].key, "corpus")
    written = rows_of(store, "reference", done["reference"].key, "values")
    assert len(written) == len(corpus)
    for before, row in zip(corpus, written, strict=True):
        reply = row["num_targets"]
        assert 1 <= reply <= 9
        assert row["supervised"] == [False] * (row["num_tokens"] - reply) + [True] * reply
        prompt = row["input_ids"][:-reply]
        assert prompt == before["input_ids"][: len(prompt)]
        assert not before["supervised"][len(prompt) - 1]
    steps = history(store, done["train"])
    assert steps[0]["num_tokens"] < sum(row["num_tokens"] for row in written)
    assert steps[-1]["loss"] < 0.5 * steps[0]["loss"]


@pytest.mark.slow
def test_a_model_learns_from_its_own_replies(run, tiny):
    tiny["train"] |= {
        "objective": {"name": "spin", "max_reply_tokens": 9},
        "learning_rate": 1e-3,
        "batch_tokens": 1024,
    }
    done, store = run("train", tiny)
    pairs = rows_of(store, "reference", done["reference"].key, "values")
    assert all(row["input_ids"] != row["other_input_ids"] for row in pairs)
    assert all(row["num_tokens"] == row["supervised"].index(True) + row["num_targets"] for row in pairs)
    steps = history(store, done["train"])
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert steps[-1]["accuracy"] > 0.95


def test_workers_that_take_every_cpu_do_not_starve_the_reading(run, paired):
    paired["train"]["cpus_per_worker"] = 2
    done, _ = run("reference", paired)
    assert done["reference"].figures["conversations"] == 200


@pytest.mark.parametrize(("gate", "verdict"), [
    ({}, "passed: the chosen reply favoured in 60.0%"),
    ({"min_preference_accuracy": 0.6}, "failed: the chosen reply favoured in 60.0% .*min_preference_accuracy"),
    ({"min_loss_reduction": 0.0}, r"failed: the tuned held-out loss .*min_loss_reduction"),
])  # fmt: skip
def test_the_gate_of_pairs_is_their_accuracy(gate, verdict):
    scorecard = Scorecard(
        loss_reduction=-0.5, base_loss=2.0, tuned_loss=2.5, preference_accuracy=0.6, base_perplexity=7.39,
        tuned_perplexity=12.18, scored_tokens=100, passed=False, verdict="",
    )  # fmt: skip
    passed, said = gate_verdict(scorecard, [], GateSpec(**gate))
    assert re.match(verdict, said)
    assert passed == said.startswith("passed")


def test_data_that_do_not_fit_the_objective_are_named(run, tiny, paired, sums_file):
    paired["data"]["sources"] = [{"path": str(sums_file)}]
    with pytest.raises(StageFailed, match=r"none of 120 lines can be used[^$]*120 x .*sums\.jsonl\.gz:1: not a pref"):
        run("evaluate", paired)
    paired["train"]["objective"] = "sft"
    with pytest.raises(StageFailed, match=r"^train\.objective: sft needs no reference values"):
        run("reference", paired)


def test_a_prompt_that_leaves_no_reply_is_set_aside(run, paired, tmp_path):
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "a" * 300, "chosen": "yes", "rejected": "no"}))
    paired["data"] |= {"max_length": 200, "sources": [*paired["data"]["sources"], {"path": str(long)}]}
    done, store = run("prepare", paired)
    assert done["prepare"].figures["quarantined"] == 1
    with store.filesystem.open_input_stream(store.path("prepare", done["prepare"].key, "quarantine.jsonl")) as stream:
        record = json.loads(stream.read())
    assert record["file"] == str(long)
    assert record["reason"] == "nothing to learn: no last reply within the first 200 tokens (data.max_length)"
