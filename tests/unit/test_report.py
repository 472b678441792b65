"""The HTML report of a run."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from stored import COMPARED, EVALUATED, run_record, unpacked

from models.errors import RayconteurError
from workflows.cli.commands import command
from workflows.judge.records import JudgedItem, JudgeFigures
from workflows.runs.page.compared_replies import Evaluated, compared_replies_json
from workflows.runs.page.forest import forest_of
from workflows.runs.page.report import write_comparison, write_report
from workflows.runs.page.verdict import verdict_of
from workflows.scorecard.records import Compared, Scorecard, ScoredItem, SuiteFigures
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
JUDGE = JudgeFigures(
    judge="Fair-1", mode="pairwise", items=1, wins=0, ties=0, losses=1, no_answers=0, identical=0, requests=2,
    cached=0, input_tokens=90, output_tokens=9, refused="it always names the first place",
)  # fmt: skip
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
        self.ids: set[str] = set()
        self._cell: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.ids |= {str(value) for name, value in attributes if name == "id"}
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


def compared(measure: str, against: str, **fields: Any) -> Compared:
    """A comparison that shows nothing, with these fields."""
    plain = {
        "measure": measure, "slice": None, "against": against, "unit": "share", "lower_is_better": False,
        "golden": False, "items": 8, "clusters": 8, "other": 0.5, "tuned": 0.5, "difference": 0.0, "low": -0.1,
        "high": 0.1, "p_value": 1.0, "smallest": 0.2, "confidence": 0.95,
    }  # fmt: skip
    return Compared.from_json({**plain, **fields})


def scored(suite: str, place: int, scores: dict[str, float]) -> str:
    item = ScoredItem(
        suite=suite, id=f"item-{place}", place=f"{suite}.jsonl:{place}", group=str(place), tags={"topic": "tents"},
        asked=["How much?"], replies={model: ["63 <i>euros</i>"] for model in scores}, scores=scores, failed=[],
    )  # fmt: skip
    return json.dumps(item.to_json()) + "\n"


@pytest.fixture
def suites_store(store: Store) -> Store:
    """`store` with suites in its run, and the run `run-2` with another training, whose checkpoint replies better."""
    worse = {"other": 0.9, "tuned": 0.4, "difference": -0.5, "low": -0.8, "high": -0.2, "p_value": 0.01}
    lower = {"unit": "nats", "lower_is_better": True, "other": 2.0, "tuned": 1.5}
    comparisons = [
        compared("prices", "base", golden=True),
        compared("prices", "base", golden=True, slice="topic=tents"),
        compared("prices", "service", golden=True, **worse),
        compared("prices", "service", golden=True, slice="topic=tents", **worse),
        compared("wording", "base", **lower),
        compared("wording", "service", **lower, difference=-0.5, low=-0.9, high=-0.1, p_value=0.01, clusters=4),
    ]
    suites = [
        SuiteFigures(name=name, scorer="facts", golden=name == "prices", unit=unit, items=8, scores=())
        for name, unit in (("prices", "share"), ("wording", "nats"))
    ]
    for key, tuned in (("evaluate-key", 0.0), ("evaluate-new", 1.0)):
        card = {**FIGURES["evaluate"], "questions": [{**QUESTION, "base_facts": 0, "tuned_facts": 1}], "replies": []}
        card |= {
            "comparisons": [each.to_json() for each in comparisons],
            "suites": [each.to_json() for each in suites],
        }
        card["judge"] = JUDGE.to_json()
        store.write_json(store.path("evaluate", key, "scorecard.json"), card)
        points = {"base": 1.0, "service": 1.0, "tuned": tuned}
        lines = [scored("prices", place, points) for place in range(8)] + [scored("wording", 1, points)]
        store.write_file(store.path("evaluate", key, "items.jsonl"), "".join(lines).encode())
        judged = JudgedItem(id="prices/item-1", group="", tags={}, outcome="loss", reasons=("Too <b>short</b>.",))
        store.write_file(store.path("evaluate", key, "judged.jsonl"), f"{json.dumps(judged.to_json())}\n".encode())
    keys = {"prepare": "prepare-key", "train": "train-new", "evaluate": "evaluate-new"}
    for stage in ("train", "evaluate"):
        figures = {**FIGURES[stage], **({"held_out_loss": 2.0} if stage == "train" else {})}
        store.finish(Artifact(stage, keys[stage], "shop", {}, {}, figures, {}, "2026", 61.0))
    history = Path(store.path("train", "train-key", "history.jsonl")).read_bytes()
    store.write_file(store.path("train", "train-new", "history.jsonl"), history)
    stages = {stage: {"key": key, "seconds": 61.0} for stage, key in keys.items()}
    for run, started, spec in (
        ("run-0", "2026-01-01", {"train": {"epochs": 1}, "data": {"filter": None}}),
        (
            "run-2",
            "2026-01-03",
            {"train": {"epochs": 2}, "data": {"filter": None, "sources": [{"path": "talk.jsonl"}]}},
        ),
    ):
        own = {**stages} if run == "run-2" else {stage: {"key": f"{stage}-key", "seconds": 61.0} for stage in FIGURES}
        store.write_run(run_record(run=run, started=started, ended="2026-01-03", spec=spec, stages=own))
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
    drawn = {trace["name"] for figure in json.loads(unpacked(text, "plots")) for trace in figure["data"]}
    assert {"loss", "held_out_loss", "learning_rate"} <= drawn
    assert all(address.startswith("#") for address in page.asks), "the page needs no network"
    assert {address[1:] for address in page.asks} <= page.ids, "every section that is named is there"


def test_replies_are_text_and_have_the_scores_of_each_model(suites_store: Store, tmp_path: Path) -> None:
    text = write_report(suites_store, "shop", "run-0", str(tmp_path / "page.html"))[0].read_text()
    found = json.loads(unpacked(text, "items"))
    assert found["models"] == {"base": "base", "service": "in service", "tuned": "checkpoint"}
    assert found["suites"] == {
        "prices": {"unit": "share", "lower": False},
        "wording": {"unit": "nats", "lower": True},
        "facts": {"unit": "share", "lower": False},
    }
    first, question = found["items"][0], found["items"][-1]
    assert (first["tags"], first["scores"]) == (["topic=tents"], {"base": 1.0, "service": 1.0, "tuned": 0.0})
    assert (question["asked"], question["scores"]) == (["What is <b>it</b>?"], {"base": 0.0, "tuned": 1.0})
    assert question["expected"] == "63"
    assert "judge Fair-1 (pairwise): 1 items, tuned wins 0, ties 0, loses 1" in text
    assert "refused, its answers do not count: it always names the first place" in text
    outcomes = [item["judged"] for item in found["items"] if "judged" in item]
    assert outcomes == [{"outcome": "loss", "reasons": ["Too <b>short</b>."]}]
    assert "<b>it</b>" not in text, "what a person wrote is text, not markup"


def test_every_comparison_has_a_row_with_its_interval(suites_store: Store, tmp_path: Path) -> None:
    page = Page(write_report(suites_store, "shop", "run-0", str(tmp_path / "page.html"))[0].read_text())
    rows = [row for row in page.rows if row[-1] in ("8 items", "8 items in 4 groups")]
    shown = [(row[0], row[1], row[2], row[4], row[5]) for row in rows]
    service, base = shown[:3], shown[3:]
    assert service == [
        ("prices ★ golden 1 slice", "90.0 %", "40.0 %", "-50.0 points-80.0 to -20.0", "worse"),
        ("topic=tents", "90.0 %", "40.0 %", "-50.0 points-80.0 to -20.0", "worse"),
        (
            "wording lower is better; plot to +0.9000 nats",
            "2.0000",
            "1.5000",
            "-0.5000 nats-0.9000 to -0.1000",
            "better",
        ),
    ]
    assert [row[-1] for row in base] == ["not shown", "not shown", "not shown"]


def test_the_plot_shows_better_on_the_right() -> None:
    lower = compared("wording", "base", unit="nats", lower_is_better=True, difference=-1.0, low=-2.0, high=0.0)
    higher = compared("prices", "base", difference=-0.25, low=-0.5, high=None)
    forest = forest_of([lower, higher], "base")
    assert forest is not None
    first, second = (group.whole for group in forest.groups)
    assert first is not None
    assert second is not None
    assert (first.point, first.low, first.high, first.width) == (74.0, 50.0, 98.0, 48.0)
    assert (second.point, second.low, second.interval) == (26.0, None, "")
    assert forest_of([lower], "service") is None


@pytest.mark.parametrize(("words", "sentence", "figures"), [
    ("passed: lower by 0.5", "lower by 0.5", []),
    (
        "passed: better than the base model: facts: 81.8 % instead of 0.0 % (+81.8 points; 30 items); held-out loss: "
        "1.4 instead of 3.8 (-2.4 nats a token; 13 conversations)",
        "better than the base model",
        [("facts", "81.8 % instead of 0.0 % (+81.8 points; 30 items)"),
         ("held-out loss", "1.4 instead of 3.8 (-2.4 nats a token; 13 conversations)")],
    ),
    (
        "failed: not shown to be better than the base model; the clearest difference is in facts: 2.0 % instead of "
        "1.0 % (+1.0 points; 3 items), which chance can explain; 3 items show nothing (evaluate.gate.rule: better)",
        "not shown to be better than the base model",
        [("the clearest difference is in facts",
          "2.0 % instead of 1.0 % (+1.0 points; 3 items), which chance can explain"),
         ("", "3 items show nothing (evaluate.gate.rule: better)")],
    ),
])  # fmt: skip
def test_a_verdict_in_parts(words: str, sentence: str, figures: list[tuple[str, str]]) -> None:
    found = verdict_of(True, words)
    assert (found.sentence, found.figures) == (sentence, figures)


def test_settings_and_figures_that_differ_from_the_run_before(suites_store: Store, tmp_path: Path) -> None:
    page = Page(write_report(suites_store, "shop", "run-2", str(tmp_path / "page.html"))[0].read_text())
    changes = page.rows[next(place for place, row in enumerate(page.rows) if row[0] == "setting") :]
    assert changes == [
        ["setting", "before", "now"],
        ["train.epochs", "1", "2"],
        ["data.sources.0.path", "none", "talk.jsonl"],
        ["figure", "before", "now"],
        ["train: held out loss", "2.25", "2"],
    ]
    first = write_report(suites_store, "shop", "run-0", str(tmp_path / "first.html"))[0].read_text()
    assert 'id="changes"' not in first


def test_runs_side_by_side(suites_store: Store, tmp_path: Path) -> None:
    file, records = write_comparison(suites_store, "shop", ["run-0"], "run-2", str(tmp_path / "page.html"))
    assert [record.run for record in records] == ["run-0", "run-2"]
    text = file.read_text()
    page = Page(text)
    stages = {row[0]: row[1:] for row in page.rows if row[1:2] in (["prepare-key"], ["train-key"], ["evaluate-key"])}
    assert stages == {
        "prepare": ["prepare-key", "prepare-key"],
        "train ≠": ["train-key", "train-new"],
        "evaluate ≠": ["evaluate-key", "evaluate-new"],
    }
    assert ["train.epochs", "1", "2"] in page.rows
    [same_items] = [row for row in page.rows if row[-1] == "8 items in 8 groups" or row[-1] == "8 items"][:1]
    assert same_items[0].startswith("prices")
    assert (same_items[1], same_items[2], same_items[5]) == ("0.0 %", "100.0 %", "better")
    replies = json.loads(unpacked(text, "items"))
    assert (replies["models"], replies["before"], replies["now"], replies["left_out"]) == (
        {"run-0": "run-0", "run-2": "run-2"}, ["run-0"], ["run-2"], 0,
    )  # fmt: skip
    first = replies["items"][0]
    assert (first["suite"], first["scores"]) == ("prices", {"run-0": 0.0, "run-2": 1.0})
    assert first["replies"] == {"run-0": ["63 <i>euros</i>"], "run-2": ["63 <i>euros</i>"]}
    assert [item["asked"] for item in replies["items"] if item["suite"] == "facts"] == [[QUESTION["question"]]]
    assert len(replies["items"]) == 8 + 1 + 1
    drawn = {trace["name"] for figure in json.loads(unpacked(text, "plots")) for trace in figure["data"]}
    assert {"run-0 loss", "run-2 loss", "run-0 held_out_loss", "run-2 held_out_loss"} <= drawn
    assert all(address.startswith("#") for address in page.asks)
    with pytest.raises(RayconteurError, match="run run-2 is compared with itself"):
        write_comparison(suites_store, "shop", ["run-2"], None, None)


def evaluated(run: str, tuned: list[float], **suite: Any) -> Evaluated:
    """A run's evaluation of a suite with these points."""
    values = {
        "name": "prices",
        "scorer": "facts",
        "golden": False,
        "unit": "share",
        "items": 8,
        "scores": (),
        **suite,
    }
    items = [
        json.loads(scored("prices", place, {"base": 1.0, "tuned": points})) for place, points in enumerate(tuned)
    ]
    card = Scorecard.from_json({**EVALUATED, "suites": [SuiteFigures(**values).to_json()]})
    return Evaluated(run, card, [ScoredItem.from_json(item) for item in items])


def test_runs_have_replies_side_by_side_where_both_were_asked_the_same() -> None:
    first, shorter, other = evaluated("a", [0, 1, 0]), evaluated("b", [1, 1]), evaluated("c", [1], scorer="exact")
    found: Any = compared_replies_json(first, [other, shorter])
    assert (list(found["models"]), found["now"]) == (["a", "b"], ["b"]), "points of another scorer say nothing"
    assert [(item["id"], item["scores"]) for item in found["items"]] == [
        ("item-0", {"a": 0, "b": 1}), ("item-1", {"a": 1, "b": 1}),
    ]  # fmt: skip
    assert compared_replies_json(first, [other]) is None
    assert compared_replies_json(first, []) is None


def test_of_many_replies_those_whose_points_differ_most_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.runs.page.compared_replies._MAX_REPLIES", 4)
    found: Any = compared_replies_json(evaluated("a", [0, 0.5, 1, 1]), [evaluated("b", [0, 1, 1, 0])])
    assert ([item["id"] for item in found["items"]], found["left_out"]) == (["item-3", "item-1"], 2)


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
    assert len(text) < 30_000


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
    done = CliRunner().invoke(command, ["report", str(pipeline), "--compare", "run-0"])
    assert done.exit_code == 1
    assert "run run-0 is compared with itself" in done.output
    store.write_run(replace(store.runs()[0], run="run-3", started="2026-03"))
    done = CliRunner().invoke(command, ["report", str(pipeline), "--compare", "run-0", "--json"])
    written = str(tmp_path / "run-3-compared.html")
    assert json.loads(done.output) == {"event": "report", "run": "run-3", "compared_with": ["run-0"], "file": written}
    Path(store.root, "runs", "run-3.json").unlink()
    done = CliRunner().invoke(command, ["report", str(pipeline), "--run", "run-7"])
    assert done.exit_code == 1
    assert "there is no run 'run-7' of pipeline shop; the last ones are run-0" in done.output
    done = CliRunner().invoke(command, ["report", str(pipeline), "--set", "name=nobody"])
    assert "has no runs of pipeline nobody" in done.output
