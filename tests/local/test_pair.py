"""The adversarial pair on a real Ray cluster: both models learn, and resume after a kill; any number of workers."""

import json
from pathlib import Path

import psutil
import pytest
import torch
from disturbance import Disturbance
from safetensors.torch import load_file

from models.base.discriminator import Discriminator
from models.base.load import load_model
from models.kernels.attention import PACKED_ATTENTION
from workflows.search.records import read_search

TURNS = 8


@pytest.fixture
def pipeline(tiny):
    objective = {
        "name": "adversarial", "warmup_steps": 4, "turns": TURNS, "num_replies": 2, "max_reply_tokens": 10,
        "learning_rate": 1e-3, "discriminator_learning_rate": 3e-3, "min_accuracy": 0.0, "replay_steps": 2,
    }  # fmt: skip
    tiny["train"] |= {"objective": objective, "checkpoint_every_steps": 4, "batch_tokens": 256}
    return tiny


@pytest.fixture
def from_nothing(pipeline):
    pipeline |= {
        "base_model": "new",
        "new_model": {"hidden_size": 32, "vocabulary": 300, "noise_size": 0, "discriminator_hidden_size": 48},
    }
    return pipeline


def history(store, done):
    with store.filesystem.open_input_stream(store.path("train", done["train"].key, "history.jsonl")) as stream:
        return [json.loads(line) for line in stream.read().splitlines()]


def plays(store_folder):
    """A checkpoint of the alternating phase is complete and recorded."""
    for note in Path(store_folder).glob("train/*/run/checkpoint_manager_snapshot.json"):
        known = note.read_text()
        whole = [file for file in note.parent.glob("checkpoint_*/history.jsonl") if file.parent.name in known]
        return any('"gan"' in file.read_text() for file in whole)
    return False


def test_killed_in_the_alternating_phase_two_workers_resume_and_match_one(run, from_nothing, tmp_path):
    alone = {**from_nothing, "store": str(tmp_path / "alone")}
    alone["train"] = {**alone["train"], "num_workers": 1, "gradient_accumulation": 2}
    done, store = run("train", alone)
    expected = history(store, done)
    from_nothing["train"] |= {"zero": {"stage": 2}}
    with Disturbance(lambda: plays(from_nothing["store"]), psutil.Process.kill) as killing:
        done, store = run("train", from_nothing)
    assert killing.happened
    steps, figures = history(store, done), done["train"].figures
    assert figures["resumed_from_step"] > len(steps) - TURNS
    for name in ("loss", "discriminator_loss", "held_out_loss", "held_out_accuracy", "gan", "l1", "nll", "kl"):
        found, wanted = ([line[name] for line in lines if line.get(name) is not None] for lines in (steps, expected))
        assert found == pytest.approx(wanted, abs=1e-3), name
        assert len(found) >= TURNS or name.startswith("held_out")
    assert figures["steps"] == figures["best_step"] == len(steps)  # for a pair, the last checkpoint is the result
    folder = Path(store.path("train", done["train"].key))
    assert load_model(folder / "model", torch.float32).config.hidden_size == 32
    played, likely = (load_file(folder / name / "model.safetensors") for name in ("model", "continued"))
    assert played.keys() == likely.keys()
    assert any(not torch.equal(played[name], likely[name]) for name in played)
    # The control continued from the start of the alternating phase, and keeps its best weights.
    at_plateau = [line["held_out_loss"] for line in steps if line.get("held_out_loss") and "gan" not in line][-1]
    assert figures["held_out_continued_loss"] <= at_plateau + 1e-4
    reader = load_model(folder / "discriminator", torch.float32, PACKED_ATTENTION)
    assert reader.config.hidden_size == 48
    Discriminator(reader).load_score(folder / "discriminator")


@pytest.mark.slow
def test_both_models_adapters_share_one_frozen_base(run, pipeline):
    pipeline["train"] |= {"adapter": {"rank": 4}, "zero": {"stage": 1}}
    pipeline["data"]["held_out_share"] = 0.3
    pipeline["evaluate"]["pair"] = {"fresh_steps": 20, "candidates": 4, "temperatures": [1.0]}
    done, store = run("evaluate", pipeline)
    folder = Path(store.path("train", done["train"].key))
    generator, discriminator = (
        load_file(folder / name / "adapter_model.safetensors") for name in ("model", "discriminator")
    )
    assert generator.keys() == discriminator.keys()
    assert all(bool(weight.abs().sum() > 0) for both in (generator, discriminator) for weight in both.values())
    assert any(not torch.equal(generator[name], discriminator[name]) for name in generator)
    pair = store.read_json(store.path("evaluate", done["evaluate"].key, "scorecard.json"))["pair"]
    assert pair["histories"] >= 16
    assert pair["controls"]["random_tokens"] > pair["controls"]["real_against_real"]
    assert [row["model"] for row in pair["replies"]] == ["generator", "best of 4", "likelihood continued"]
    assert pair["verdict"].startswith("no gain" if pair["reranked_loss"] >= pair["loss"] else ("no gain", "the disc"))
    no_better = pair["loss"] >= pair["continued_loss"]
    assert pair["turns_verdict"].startswith("no gain" if no_better else ("no gain", "the turns"))
    assert "likelihood continued" in Path(store.path("evaluate", done["evaluate"].key, "pair.html")).read_text()


def test_a_discriminator_that_cannot_discriminate_ends_the_training(run, from_nothing, capfd):
    from_nothing["train"]["objective"] |= {"min_accuracy": 1.0, "discriminator_learning_rate": 1e-9}
    from_nothing["train"] |= {"num_workers": 1}
    done, store = run("train", from_nothing)
    assert not any("gan" in line for line in history(store, done))
    assert "the turns are skipped" in capfd.readouterr().out


@pytest.mark.slow
def test_soft_replies_change_only_the_generator(run, from_nothing):
    from_nothing["train"]["objective"] |= {"gradient": "gumbel"}
    from_nothing["train"] |= {"zero": {"stage": 2}}
    done, store = run("train", from_nothing)
    turns = [line for line in history(store, done) if "gan" in line]
    assert len(turns) == TURNS
    assert len({round(line["gan"], 6) for line in turns}) == TURNS
    assert len({round(line["discriminator_loss"], 6) for line in turns}) == TURNS


@pytest.mark.slow
def test_a_search_weighs_the_losses_and_keeps_both_players_of_the_best_end(run, from_nothing):
    from_nothing["train"] |= {"num_workers": 1, "max_steps": 8}
    from_nothing["train"]["objective"] |= {"learning_rate": 3e-2}  # the alternating phase makes it worse
    from_nothing["tune"] = {"space": {"train.objective.l1_weight": [0.0, 3.0]}, "trials": 2, "searcher": "grid"}
    done, store = run("train", from_nothing)
    search = read_search(store, done["tune"].key)
    assert {trial.values["train.objective.l1_weight"] for trial in search.trials} == {0.0, 3.0}
    ends = [trial.last for trial in search.trials]
    assert search.winner.reported == min(report.figures["held_out_loss"] for report in ends)
    assert search.winner.remeasured == pytest.approx(search.winner.reported, abs=1e-6)
    assert search.winner.step == search.trials[search.winner.trial].last.step
    for name in ("model", "discriminator", "continued"):
        assert store.is_folder(store.path("train", done["train"].key, name))
