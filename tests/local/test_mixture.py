"""Training on several sources: their weights, and the loss of each, in the history and on the scorecard."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import sums

from workflows.scorecard.records import Scorecard

LETTERS = "abcdefghij"


def spelled(number: int) -> dict[str, Any]:
    word = "".join(LETTERS[int(digit)] for digit in f"{number:03d}")
    return {
        "messages": [{"role": "user", "content": f"Spell {word}"}, {"role": "assistant", "content": " ".join(word)}]
    }


def test_each_source_has_its_weight_and_its_loss(
    run: Callable[..., Any], tiny: dict[str, Any], tmp_path: Path
) -> None:
    files = {"sums": sums(100), "letters": [spelled(number) for number in range(200)]}
    for name, records in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    tiny["data"]["sources"] = [
        {"path": str(tmp_path / "sums.jsonl"), "weight": 0},
        {"path": str(tmp_path / "letters.jsonl"), "weight": 1, "name": "the letters"},
    ]
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
