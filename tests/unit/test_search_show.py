"""The table of a search on a terminal, and the command that prints it."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.table import Table
from rich.text import Text
from stored import run_record

from models.training.report import Report
from workflows.cli.trials import trials as command
from workflows.progress import Progress, table_text
from workflows.search.records import Origin, Search, Trial, Winner, content_of, write_search
from workflows.search.steering_requests import Listener, SteeringRequest, answered, refused
from workflows.search.table import (
    headline,
    search_summary,
    search_table,
    search_text,
    short_names,
    time_left,
    trial_rows,
)
from workflows.spec.read import read_spec
from workflows.store import Artifact, Store

LEARNING_RATE, RANK = "train.learning_rate", "train.lora.rank"


def trial(number: int, state: str, losses: list[float], **more: Any) -> Trial:
    """A trial that reported these held-out losses, one every ten of forty steps and every five seconds."""
    reports = [
        Report(10 * place, 40, {"held_out_loss": loss, "peak_memory_gb": 9.0 - loss, "seconds": 5.0 * place}, None)
        for place, loss in enumerate(losses, 1)
    ]
    values = {LEARNING_RATE: 1e-4 * (number + 1), RANK: 8}
    return Trial(number, f"key-{number}", values, state, reports, **more)


@pytest.fixture
def search() -> Search:
    """Trial 1 leads; 0 is running, 2 was stopped, 3 failed before its first report, 4 copied 1."""
    trials = [
        trial(0, "running", [2.5, 2.25]),
        trial(1, "finished", [2.0, 1.5, 1.25, 1.375]),
        trial(2, "stopped", [3.0]),
        trial(3, "failed", [], error="out of memory:\n  [wanted] 9 GB"),
        trial(4, "finished", [2.0, 1.75], origin=Origin("key-1", 1, 20), failures=2),
    ]
    space = {LEARNING_RATE: {"loguniform": [1e-5, 1e-3]}, RANK: [8, 16]}
    return Search(
        "shop", "0123456789abcdef", ["held_out_loss"], space, "random", "asha", 8, trials, 65.0, None, at_once=2
    )


def printed(search: Search, width: int, max_rows: int = 20) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(search_table(search, width, max_rows))
    return console.export_text()


def test_a_field_has_the_shortest_unique_name() -> None:
    fields = ["train.learning_rate", "train.lora.rank", "train.other.rank", "rank"]
    assert list(short_names(fields).values()) == ["learning_rate", "lora.rank", "other.rank", "rank"]


def test_a_row_shows_a_trials_progress_and_origin(search: Search) -> None:
    rows = trial_rows(search, search.trials)
    assert rows[0] == ["0", "0.0001", "8", "running", "20/40", "2.25", "2.25", ""]
    assert rows[1] == ["1", "0.0002", "8", "finished", "40/40", "1.375", "1.25", "leads"]
    assert rows[3] == ["3", "0.0004", "8", "failed", "", "", "", "out of memory: [wanted] 9 GB"]
    assert rows[4][-1] == "copy of 1 at step 20, workers lost 2 times"


def test_the_headline_counts_by_state(search: Search) -> None:
    counts = "5 of 8 trials, 1 running, 2 finished, 1 stopped, 1 failed, 1 copied another trial"
    assert headline(search).startswith(f"{counts}, 1m05s, ")
    assert headline(search).endswith("best held out loss 1.25 (trial 1)")
    assert search_summary(search) == {
        "trials_done": 4, "running": 1, "stopped": 1, "failed": 1, "best_held_out_loss": 1.25,
    }  # fmt: skip


def test_time_left_is_what_the_trials_need_or_what_is_allowed(search: Search) -> None:
    # Trial 0 needs 10 s for its last 20 steps; three more take 35/3 s each, like the finished ones; two run at once.
    assert time_left(search) == pytest.approx((10 + 35) / 2)
    search.seconds_allowed = 75.0
    assert time_left(search) == 10.0
    search.wanted = None
    assert time_left(search) == 10.0
    search.seconds_allowed = None
    assert time_left(search) is None


def test_a_single_trial_at_work_cannot_be_split(search: Search) -> None:
    search.wanted = 5
    assert time_left(search) == 10.0
    search.trials[0].origin = Origin("key-1", 1, 10)
    assert time_left(search) == 20.0, "a copy has trained ten of its twenty steps itself, in 10 s"
    search.trials = [trial(0, "running", [])]
    assert time_left(search) is None, "nothing has ended, so nobody knows how long a trial takes"


def test_the_live_table_has_running_trials_then_the_best(search: Search) -> None:
    text = printed(search, 120, max_rows=3)
    numbers = [line.split()[0] for line in text.splitlines() if "/40" in line]
    assert numbers == ["0", "1", "4"]
    assert "and 2 more: 1 stopped, 1 failed" in text
    assert "more" not in printed(search, 120)
    assert "[wanted]" in printed(search, 160), "an error's text is no markup"
    assert max(map(len, printed(search, 80).splitlines())) <= 80


def test_a_search_that_has_just_begun_is_shown(search: Search) -> None:
    search.trials = []
    assert "0 of 8 trials" in printed(search, 80)
    assert search_text(search).endswith("no trial has reported yet")


def test_the_text_has_every_trial_the_best_first_and_the_winner_in_full(search: Search) -> None:
    search.trials[1].values[LEARNING_RATE] = 0.000123456789
    search.winner = Winner(1, "key-1", 30, "checkpoint_30_ab", 1.25, 1.251)
    text = search_text(search)
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("trial"))
    assert [line.split()[0] for line in lines[first + 1 : first + 6]] == ["1", "4", "0", "2", "3"]
    assert lines[first + 5].endswith("out of memory: [wanted] 9 GB")
    assert "winner: trial 1 at step 30, held out loss reported 1.2500, measured again 1.2510" in text
    assert "\n  train.learning_rate: 0.000123456789\n  train.lora.rank: 8" in text
    assert " left" not in text


def test_with_two_metrics_the_front_is_marked(search: Search) -> None:
    search.metrics.append("peak_memory_gb")
    # Trial 1 needs 7.75 GB, 4 7.25, 0 6.75, 2 6.0: a better loss needs more memory.
    search.trials[4].reports[1].figures["peak_memory_gb"] = 8.0
    text = search_text(search)
    assert text.endswith("Pareto front of held out loss and peak memory gb: trials 1, 0, 2")
    marked = {line.split()[0]: "Pareto front" in line for line in text.splitlines()[4:9]}
    assert marked == {"1": True, "4": False, "0": True, "2": True, "3": False}


def test_show_renders_below_the_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress()
    progress.console = Console(force_terminal=True, width=60, file=open("/dev/null", "w"), record=True)  # noqa: SIM115
    with progress:
        progress.start("tune")
        progress.show(lambda: Text("a table"))
        progress.update(1, 4, "trials")
        progress.console.print(progress._live_view())
        progress.finish("tune", {"trials": 4})
        progress.start("train")
        progress.console.print(progress._live_view())
    text = progress.console.export_text()
    assert text.index("tune 0s: 1/4 trials") < text.index("a table") < text.index("train 0s: starting")
    assert "a table" not in text[text.index("train 0s: starting") :], "the next stage has no table"


def test_without_a_terminal_show_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress.start("tune")
        progress.show(lambda: Text("a table"))
        progress.update(1, 4, "trials")
        progress.finish("tune", {})
    out = capsys.readouterr().out
    assert "tune: 1/4 trials, 25%" in out
    assert "a table" not in out


@pytest.fixture
def pipeline(tmp_path: Path, search: Search) -> Path:
    """A pipeline file; its store has a run that completed the search, and a run that was stopped during another
    search.
    """
    store = Store(str(tmp_path / "store"))
    file = tmp_path / "shop.yaml"
    data = f"store: {store.root}\ndata: {{sources: [{{path: talk.jsonl}}]}}\n"
    file.write_text(f"name: shop\nbase_model: random:tiny-llama\n{data}")
    write_search(store, search)
    spec = json.loads(read_spec(str(file)).model_dump_json())
    for number, stages in enumerate([{"tune": {"key": search.key, "seconds": 1.0}}, {}]):
        store.write_run(run_record(run=f"run-{number}", started=f"2026-0{number + 1}", stages=stages, spec=spec))
    return file


def test_the_command_prints_a_search_for_people_and_for_machines(pipeline: Path, search: Search) -> None:
    done = CliRunner().invoke(command, [str(pipeline), "--run", "run-0"])
    assert done.output == search_text(search) + "\n"
    done = CliRunner().invoke(command, [str(pipeline), "--run", "run-0", "--json"])
    events = [json.loads(line) for line in done.output.splitlines()]
    assert [event["event"] for event in events] == ["trial"] * 5 + ["search"]
    assert events[4]["origin"] == {"key": "key-1", "number": 1, "step": 20}
    assert events[5]["metrics"] == ["held_out_loss"]
    assert "trials" not in events[5]


def test_the_pipeline_file_identifies_the_search_of_a_stopped_run(
    pipeline: Path, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stage:
        name = "tune"

    class State:
        stage = Stage()
        key = "in-progress"

    done = CliRunner().invoke(command, [str(pipeline)])
    assert "data.sources.0.path: nothing found" in done.output or "no section tune" in done.output
    monkeypatch.setattr("workflows.runs.state.examine", lambda spec, store, last: [State()])
    done = CliRunner().invoke(command, [str(pipeline)])
    assert done.exit_code == 1
    assert "the search of run run-1 has not begun" in done.output
    search.key = "in-progress"
    write_search(Store(str(pipeline.parent / "store")), search)
    done = CliRunner().invoke(command, [str(pipeline)])
    assert "search in-progress of shop" in done.output
    done = CliRunner().invoke(command, [str(pipeline), "--set", "train.learning_rate=1e-3"])
    assert done.exit_code == 1
    assert "run run-1 did not complete a search, and train of the pipeline file differs" in done.output


def test_the_command_says_what_is_missing(pipeline: Path) -> None:
    done = CliRunner().invoke(command, [str(pipeline), "--run", "run-7"])
    assert done.exit_code == 1
    assert "trials: there is no run 'run-7' of pipeline shop; the last ones are run-0, run-1" in done.output


@pytest.fixture
def steered(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[SteeringRequest]]:
    """The last run works on its search; its driver refuses trial 9 and does the rest. What it was asked."""
    store, asked = Store(str(pipeline.parent / "store")), list[SteeringRequest]()
    store.write_run(replace(store.runs()[-1], begun={"tune": "in-progress"}))

    def decide(request: SteeringRequest) -> SteeringRequest:
        asked.append(request)
        return refused(request, "there is no trial 9") if request.trial == 9 else answered(request, "done", number=5)

    with store.lock("tune", "in-progress", print), Listener(store, "in-progress", decide):
        yield asked


def test_the_command_asks_a_running_search(pipeline: Path, steered: list[SteeringRequest]) -> None:
    options = ["--stop", "7", "--stop", "8", "--add", "train.learning_rate=3e-4, train.adapter.method=lora"]
    done = CliRunner().invoke(command, [str(pipeline), *options, "--add", "train.seed=1"])
    assert (done.exit_code, done.output) == (0, "done\n" * 4)
    assert [(each.does, each.trial, each.values) for each in steered] == [
        ("stop", 7, {}), ("stop", 8, {}),
        ("add", None, {"train.learning_rate": 3e-4, "train.adapter.method": "lora"}),
        ("add", None, {"train.seed": 1}),
    ]  # fmt: skip


def test_with_clone_set_changes_the_clone(pipeline: Path, steered: list[SteeringRequest]) -> None:
    changes = ["--set", "train.learning_rate=3e-4", "--set", f"store={pipeline.parent / 'store'}"]
    options = ["--clone", "7", *changes, "--json"]
    done = CliRunner().invoke(command, [str(pipeline), *options])
    assert done.exit_code == 0
    event = json.loads(done.output)
    assert (event["event"], event["trial"], event["number"]) == ("steered", 7, 5)
    assert steered[0].values == {"train.learning_rate": 3e-4}


def test_a_refusal_is_printed_and_the_exit_code_is_1(pipeline: Path, steered: list[SteeringRequest]) -> None:
    done = CliRunner().invoke(command, [str(pipeline), "--stop", "7", "--stop", "9"])
    assert (done.exit_code, done.stdout, done.stderr) == (1, "done\n", "refused: --stop 9: there is no trial 9\n")
    done = CliRunner().invoke(command, [str(pipeline), "--stop", "9", "--json"])
    assert done.exit_code == 1
    assert json.loads(done.output)["event"] == "refused"


@pytest.mark.parametrize(("options", "words"), [
    (["--add", "train.learning_rate"], "--add train.learning_rate: must be field=value"),
    (["--add", "train.seed=["], "--add train.seed=[: train.seed: the value is not YAML"),
    (["--stop", "-1"], "-1 is not in the range"),
])  # fmt: skip
def test_a_mistake_in_the_command_line_is_one(
    pipeline: Path, steered: list[SteeringRequest], options: list[str], words: str
) -> None:
    done = CliRunner().invoke(command, [str(pipeline), *options])
    assert done.exit_code == 2
    assert words in done.output
    assert not steered


def test_a_request_and_an_export_are_two_commands(pipeline: Path, steered: list[SteeringRequest]) -> None:
    done = CliRunner().invoke(command, [str(pipeline), "--stop", "7", "--csv", "trials.csv"])
    assert done.exit_code == 1
    assert "trials: --stop, --add and --clone write no files" in done.output
    assert not steered


def test_a_search_that_does_not_run_is_not_steered(pipeline: Path, search: Search) -> None:
    done = CliRunner().invoke(command, [str(pipeline), "--run", "run-0", "--stop", "1"])
    assert done.exit_code == 1
    assert f"no run is working on search {search.key}" in done.output
    Store(str(pipeline.parent / "store")).finish(Artifact("tune", search.key, "shop", {}, {}, {}))
    done = CliRunner().invoke(command, [str(pipeline), "--run", "run-0", "--add", "train.seed=1"])
    assert done.exit_code == 1
    assert f"search {search.key} is complete" in done.output


def test_the_command_reads_as_many_files_for_a_thousand_trials_as_for_five(
    pipeline: Path, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read = Store._read
    monkeypatch.setattr(Store, "_read", lambda store, path: reads.append(path) or read(store, path))
    counts = []
    for count in (5, 1000):
        search.trials = [trial(number, "stopped", [2.0 + number]) for number in range(count)]
        write_search(Store(str(pipeline.parent / "store")), search)
        for more in ([], ["--json"]):
            reads.clear()
            done = CliRunner().invoke(command, [str(pipeline), "--run", "run-0", *more])
            assert len(done.output.splitlines()) >= count
            counts.append(len(reads))
    assert counts == [counts[0]] * 4


def test_a_table_as_text_is_that_of_rich() -> None:
    headings = ("number", "名", "remark")
    rows = [("1", "漢字 é", ""), ("12,345", "", "[b]no markup[/b]"), ("", "x", " y ")]
    table = Table(box=None, pad_edge=False, header_style="")
    for number, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if number == 0 else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    assert table_text(headings, rows, right=[0]).splitlines() == [
        line.rstrip() for line in console.export_text().splitlines()
    ]
    assert table_text(("a",), [("two\nlines\x1b",)]) == "a\ntwo lines"


def test_the_content_of_a_record_is_that_of_its_fields(search: Search) -> None:
    search.winner = Winner(1, "key-1", 30, "checkpoint_30_ab", 1.25, 1.251)
    search.trials[0].reports[0].figures |= {"held_out_loss": float("nan"), "num_tokens": 5}
    assert json.dumps(content_of(search)) == json.dumps(asdict(search))
