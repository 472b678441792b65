"""Training on several sources: their weights, the loss of each, and a search for the best weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import sums

from workflows.scorecard.records import Scorecard
from workflows.search.mixture import CANDIDATES
from workflows.search.records import read_search

LETTERS = "abcdefghij"


def spelled(number: int) -> dict[str, Any]:
    word = "".join(LETTERS[int(digit)] for digit in f"{number:03d}")
    return {
        "messages": [{"role": "user", "content": f"Spell {word}"}, {"role": "assistant", "content": " ".join(word)}]
    }


def written(folder: Path, sources: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The entries of `data.sources` for these conversations, each in a file of its name."""
    for name, records in sources.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return [{"path": str(folder / f"{name}.jsonl")} for name in sources]


def test_each_source_has_its_weight_and_its_loss(
    run: Callable[..., Any], tiny: dict[str, Any], tmp_path: Path
) -> None:
    first, second = written(tmp_path, {"sums": sums(100), "letters": [spelled(number) for number in range(200)]})
    tiny["data"]["sources"] = [{**first, "weight": 0}, {**second, "weight": 1, "name": "the letters"}]
    tiny["train"] |= {"num_workers": 1, "checkpoint_every_steps": 100}
    done, store = run("evaluate", tiny)
    lines = Path(store.path("train", done["train"].key, "history.jsonl")).read_text().splitlines()
    last = json.loads(lines[-1])
    found = {name: value for name, value in last.items() if name.startswith("held_out_loss")}
    assert set(found) == {"held_out_loss", "held_out_loss_sums.jsonl", "held_out_loss_the_letters"}
    assert found["held_out_loss_the_letters"] < found["held_out_loss"] < found["held_out_loss_sums.jsonl"]
    card = Scorecard.from_json(store.read_json(store.path("evaluate", done["evaluate"].key, "scorecard.json")))
    gains = {each.part: each.base_loss - each.tuned_loss for each in card.parts}
    assert set(gains) == {"sums.jsonl", "the letters"}
    assert gains["the letters"] > gains["sums.jsonl"] + 0.3, "only the letters were trained on"
    changed = {
        **tiny,
        "data": {**tiny["data"], "sources": [{**each, "weight": 1} for each in tiny["data"]["sources"]]},
    }
    other, _ = run("prepare", changed)
    assert other["prepare"].key == done["prepare"].key


@pytest.mark.slow
def test_small_models_find_a_mixture_and_a_wider_search_trains_what_is_new(
    run: Callable[..., Any], tiny: dict[str, Any], tmp_path: Path
) -> None:
    letters = [spelled(number) for number in range(150)]
    tiny["data"]["sources"] = written(tmp_path, {"sums": sums(150), "letters": letters})
    tiny["train"] |= {"num_workers": 1, "max_steps": 6, "checkpoint_every_steps": 6}
    searcher = {"name": "mixture", "proxies": 10, "proxy": {"hidden_size": 32, "num_layers": 1, "max_steps": 8}}
    tiny["tune"] = {"searcher": searcher, "max_concurrent": 2}
    done, store = run("train", tiny)
    key = done["tune"].key
    search, proxies = read_search(store, key), read_search(store, f"{key}/proxies")
    assert len(proxies.trials) == len({trial.key for trial in proxies.trials}) == 10
    assert all(trial.last.step == 8 for trial in proxies.trials)
    by_number = sorted(search.trials, key=lambda trial: trial.number)
    weights = [list(trial.values.values()) for trial in by_number]
    assert len(weights) == 3
    assert weights[2] == [0.5, 0.5]
    assert all(sum(each) == pytest.approx(1, abs=1e-3) for each in weights)
    assert search.forecast.candidates == list(CANDIDATES)
    assert search.forecast.sources == ["sums.jsonl", "letters.jsonl"]
    assert len(search.forecast.predicted) == 3
    assert search.forecast.predicted[0] <= min(search.forecast.predicted) + 1e-3
    assert search.winner.reported == min(trial.last.figures["held_out_loss"] for trial in search.trials)
    assert not list(Path(store.path("tune", key)).glob("**/run"))
    checkpoints = list(Path(store.root, "trials").glob("*/checkpoint_*"))
    assert len(checkpoints) == 2, "the winner's, and that of the best small model"

    searcher["proxies"] = 12
    wider, _ = run("tune", tiny)
    wider = read_search(store, f"{wider['tune'].key}/proxies")
    assert {trial.number for trial in wider.trials if len(trial.reports) > trial.reused} == {10, 11}
