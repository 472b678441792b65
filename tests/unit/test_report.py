"""The HTML report of a run."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from stored import COMPARED, EVALUATED, run_record

from workflows.cli.commands import command
from workflows.runs.page import write_report
from workflows.store import Artifact, Store

HISTORY = [
    {"step": 1, "num_steps": 2, "loss": 3.0, "learning_rate": 1e-3, "time": 1.0, "held_out_loss": 2.75},
    {"step": 2, "num_steps": 2, "loss": 2.5, "learning_rate": 1e-4, "time": 2.0, "held_out_loss": 2.25},
]
FORMS = [
    {"form": "model", "weights": "bf16", "size_mb": 272.6, "load_s": 1.04, "tokens_per_second": 9.3, **COMPARED},
    {
        "form": "openvino bf16",
        "weights": "bf16",
        "size_mb": 277.2,
        "load_s": 2.1,
        "tokens_per_second": 21.0,
        **COMPARED,
    },
    {"form": "openvino", "weights": "int8", "size_mb": 141.5, "load_s": 1.9, "tokens_per_second": 31.5, **COMPARED},
    {"form": "gguf", "weights": "int8", "size_mb": 144.8, "load_s": 3.0, **COMPARED},
]
QUESTION = {"question": "What is <b>it</b>?", "facts": [["63"]], "base": "Who knows?", "tuned": "63 euros."}
FIGURES: dict[str, dict[str, Any]] = {
    "prepare": {"conversations": 284},
    "train": {"steps": 2, "held_out_loss": 2.25},
    "evaluate": EVALUATED,
    "optimize": {"openvino": "exported", "checkpoint_perplexity": 5.3239, "held_out_tokens": 624, "forms": FORMS},
}


class Page(HTMLParser):
    """Collects the text of every table row, and the URLs that the page loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.asks: list[str] = []
        self._cell: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.asks += [str(value) for name, value in attributes if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.rows[-1].append(" ".join("".join(self._cell or []).split()))
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A finished run of the pipeline `shop`, and a run of another pipeline."""
    store = Store(str(tmp_path / "store"))
    for stage, figures in FIGURES.items():
        store.finish(Artifact(stage, f"{stage}-key", "shop", {}, {}, figures, {"torch": "2.13.0"}, "2026", 61.0))
    card = {**FIGURES["evaluate"], "questions": [{**QUESTION, "base_facts": 0, "tuned_facts": 1}], "replies": []}
    store.write_json(store.path("evaluate", "evaluate-key", "scorecard.json"), card)
    Path(store.path("train", "train-key", "history.jsonl")).write_text("".join(json.dumps(h) + "\n" for h in HISTORY))
    store.finish(
        Artifact("deploy", "deploy-key", "shop", {"optimize": "optimize-key"}, {}, {"url": "http://127.0.0.1:1"})
    )
    for number, pipeline in enumerate(["shop", "other"]):
        stages = {stage: {"key": f"{stage}-key", "seconds": 61.0} for stage in FIGURES}
        record = run_record(
            run=f"run-{number}", pipeline=pipeline, started=f"2026-01-0{number + 1}", ended="2026-01-03",
            spec={"name": pipeline}, stages=stages,
        )  # fmt: skip
        store.write_run(record)
    return store


def test_the_page_has_the_forms_the_figures_and_the_curves(store: Store, tmp_path: Path) -> None:
    file, record = write_report(store, "shop", None, str(tmp_path / "page.html"))
    assert record.run == "run-0"
    text = file.read_text()
    page = Page(text)
    assert [row for row in page.rows if row[0] in ("checkpoint", "Hugging Face folder", "OpenVINO")] == [
        ["checkpoint", "fp32", "", "5.3239", "", "", "", ""],
        ["Hugging Face folder", "bf16", "272.6", "5.3321", "+0.16%", "97.3%", "1.0", "9.3"],
        ["OpenVINO", "int8", "141.5", "5.3321", "+0.16%", "97.3%", "1.9", "31.5"],
    ]
    stages = {row[0]: row[1:] for row in page.rows if row[0].endswith("key")}
    assert list(stages) == [f"{stage}{stage}-key" for stage in (*FIGURES, "deploy")]
    assert stages["traintrain-key"] == ["1m01s", "steps2held out loss2.25"]
    assert ["What is <b>it</b>?", "[0/1] Who knows?", "[1/1] 63 euros."] in page.rows
    assert "<b>it</b>" not in text, "what a person wrote is text, not markup"
    drawn = re.findall(r'"name":"(\w+)"', text)
    assert {"loss", "held_out_loss", "learning_rate"} <= set(drawn)
    assert page.asks == [], "the page needs no network"


def test_a_run_that_failed_early_has_a_page(store: Store, tmp_path: Path) -> None:
    stages = {"prepare": store.runs()[0].stages["prepare"]}
    store.write_run(
        replace(store.runs()[0], run="broken", started="2026-02", status="failed", error="train: no", stages=stages)
    )
    file, found = write_report(store, "shop", None, str(tmp_path / "page.html"))
    assert found.run == "broken"
    text = file.read_text()
    assert "train: no" in text
    assert "forms" not in text.partition("<body>")[2]
    assert len(text) < 20_000


def test_the_command_writes_it_and_names_what_is_missing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tmp_path / "shop.yaml"
    pipeline.write_text(
        f"name: shop\nbase_model: random:tiny-llama\nstore: {store.root}\ndata: {{sources: [{{path: talk.jsonl}}]}}\n"
    )
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command, ["report", str(pipeline)])
    assert done.output.strip() == str(tmp_path / "run-0.html")
    assert (tmp_path / "run-0.html").stat().st_size > 1_000_000, "plotly is in it"
    done = CliRunner().invoke(command, ["report", str(pipeline), "--run", "run-7"])
    assert done.exit_code == 1
    assert "there is no run 'run-7' of pipeline shop; the last ones are run-0" in done.output
    done = CliRunner().invoke(command, ["report", str(pipeline), "--set", "name=nobody"])
    assert "has no runs of pipeline nobody" in done.output
