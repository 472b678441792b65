"""A search over serve.sampling: the trained model replies once for each setting; the winner reaches the endpoint."""

import json
from pathlib import Path

import pytest

from workflows.endpoint.application import with_winner
from workflows.search.records import read_search
from workflows.spec import PipelineSpec


@pytest.mark.slow
def test_a_search_over_sampling_trains_nothing_and_repeats_no_reply(run, tiny, tmp_path):
    tiny["train"] |= {"max_steps": 2, "checkpoint_every_steps": 2, "batch_tokens": 256}
    done, store = run("train", tiny)
    trained = done["train"].key
    (tmp_path / "letters.jsonl").write_text("".join(
        json.dumps({"id": str(number), "question": f"Say {number}", "regex": "[a-z]"}) + "\n" for number in range(6)
    ))  # fmt: skip
    tiny["evaluate"] = {**tiny.get("evaluate", {}), "suites": [{"path": str(tmp_path / "letters.jsonl")}],
                        "max_new_tokens": 8}  # fmt: skip
    tiny["tune"] = {
        "space": {"serve.sampling.temperature": {"uniform": [0.0, 1.5]}, "serve.sampling.top_k": [5, 50]},
        "trials": 4, "metric": "suite_letters",
    }  # fmt: skip
    done, store = run("tune", tiny)
    assert done["train"].key == trained
    search = read_search(store, done["tune"].key)
    assert [trial.state for trial in search.trials] == ["finished"] * 4
    assert [*Path(store.root, "replies").rglob("*.parquet")]
    tiny["tune"]["trials"] = 5
    wider, _ = run("tune", tiny)
    found = read_search(store, wider["tune"].key)
    assert [trial.values for trial in found.trials[:4]] == [trial.values for trial in search.trials]
    assert [trial.last.figures for trial in found.trials[:4]] == [trial.last.figures for trial in search.trials]
    sampling = with_winner(PipelineSpec.model_validate(tiny), wider["tune"]).serve.sampling
    won = next(trial for trial in found.trials if trial.number == found.winner.trial)
    assert sampling.temperature == won.values["serve.sampling.temperature"]
