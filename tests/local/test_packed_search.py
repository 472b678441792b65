"""Searches whose trials share worker groups, on a real Ray cluster."""

import json

import pytest
import yaml

from workflows.search.records import read_search


@pytest.fixture
def searched(tiny):
    """A grid over the settings of an adapter with dropout."""
    tiny["train"] |= {
        "adapter": {"rank": 4, "dropout": 0.1}, "batch_tokens": 256, "max_steps": 9, "checkpoint_every_steps": 3,
        "epochs": 9, "num_workers": 2, "zero": {"stage": 2}, "max_skipped_steps": 0, "precision": "fp32",
    }  # fmt: skip
    tiny["tune"] = {
        "space": {"train.adapter.rank": [2, 8], "train.learning_rate": [1e-3, 1e-2], "train.adapter.alpha": [8, 32]},
        "searcher": "grid",
    }
    tiny["cluster"] = {"num_cpus": 2}
    return tiny


def losses(search):
    return {
        json.dumps(trial.values): [report.figures["held_out_loss"] for report in trial.reports]
        for trial in search.trials
    }


def test_packed_trials_have_the_losses_of_trials_on_their_own(run, searched, tmp_path):
    found = {}
    for pack in (4, 1):
        searched["store"] = str(tmp_path / f"store-{pack}")
        if pack == 1:  # one half is enough
            searched["tune"]["space"]["train.adapter.rank"] = [8]
        searched["tune"]["pack"] = pack
        done, store = run("tune", searched)
        search = read_search(store, done["tune"].key)
        found[pack] = losses(search)
        assert search.winner.remeasured == pytest.approx(search.winner.reported, rel=1e-5)
    assert len(found[4]) == 8
    for values, alone in found[1].items():
        assert found[4][values] == pytest.approx(alone, rel=1e-4), values
        assert len(alone) == 3


@pytest.mark.slow
def test_a_killed_search_with_packs_trains_nothing_twice(command, searched, tmp_path):
    searched["store"] = str(tmp_path / "store")
    searched["train"] |= {"num_workers": 1, "max_steps": 60, "epochs": 60}
    searched["tune"]["pack"] = 4
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump(searched))
    before = command.killed_search(file, after=4)
    ended = {trial["key"]: trial for trial in before if trial["state"] == "finished"}
    begun = {trial["key"]: trial for trial in before if trial["state"] == "running" and trial["reports"]}
    assert ended
    command.finished("tune", file)
    [search] = [json.loads(path.read_text()) for path in (tmp_path / "store").glob("tune/*/search.json")]
    trials = {trial["key"]: trial for trial in search["trials"]}
    assert all(trial["state"] == "finished" for trial in trials.values())
    for key, trial in ended.items():
        assert trials[key]["reused"] == len(trial["reports"]) == 20
    for key, trial in begun.items():
        assert trials[key]["reused"] == len(trial["reports"])
