"""The recorder of a search writes records, and deletes checkpoints that can neither win nor be continued."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from models.training.report import Report
from workflows.progress import Progress
from workflows.search.recorder import SearchRecorder
from workflows.search.records import Origin, Search, read_search, read_trial, trial_folder
from workflows.search.trial import RESULT, TrialEvent
from workflows.store import Store, StoreError


class Told:
    """A search's recorder, called with results as Tune calls it."""

    def __init__(self, folder, is_population=False, metrics=("held_out_loss",)):
        self.store = Store(str(folder))
        self.search = Search("p", "search", list(metrics), {"train.seed": [0]}, "random", "none", 3)
        self.recorder = SearchRecorder(self.search, self.store, Progress(), is_population)

    def report(self, number, step, loss, key=None, done=False, **more):
        key = key or f"key{number}"
        name = f"checkpoint_{step}"
        Path(trial_folder(self.store, key), name).mkdir(parents=True, exist_ok=True)
        line = TrialEvent(key, {"train.seed": number}, None, Report(step, 30, {"held_out_loss": loss}, name))
        self.tell(number, replace(line, **more), done)

    def tell(self, number, line, done):
        self.recorder.on_trial_result(0, [], number, {RESULT: line, "done": done})

    @property
    def on_disk(self):
        self.recorder._write()
        self.recorder._deleting.submit(lambda: None).result()
        return {f"{path.parent.name}/{path.name}" for path in Path(self.store.root, "trials").glob("*/checkpoint_*")}


@pytest.fixture
def told(tmp_path):
    return Told(tmp_path)


def test_only_checkpoints_that_can_win_or_be_resumed_stay(told):
    told.report(0, 10, 2.0)
    told.report(0, 20, 2.5)
    assert told.on_disk == {"key0/checkpoint_10", "key0/checkpoint_20"}  # the best one, and the latest
    told.report(1, 10, 1.5)
    assert told.on_disk == {"key0/checkpoint_20", "key1/checkpoint_10"}
    told.report(0, 30, 1.9, done=True)
    told.report(1, 20, 1.7, done=True)
    assert told.on_disk == {"key1/checkpoint_10"}
    told.recorder.close()
    assert [trial.state for trial in told.search.trials] == ["finished", "stopped"]
    assert [report.checkpoint for report in read_trial(told.store, "key1").reports] == ["checkpoint_10", None]
    assert told.search.leader()[1].step == 10


def test_a_trials_end_is_written_at_once_and_a_failure_with_its_reason(told):
    told.report(0, 30, 2.0, done=True)
    assert read_trial(told.store, "key0").state == "finished"
    told.tell(1, TrialEvent("key1", {"train.seed": 1}, None, None, failures=2, failed="no such layer"), True)
    kept = read_trial(told.store, "key1")
    assert (kept.state, kept.error, kept.failures) == ("failed", "no such layer", 2)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The traceback files and their contents."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return lambda: {path.read_text(): str(path) for path in folder.iterdir()}


def failing(number, traceback, failed="worker 0: KeyError: 'planted'"):
    return TrialEvent(f"key{number}", {}, None, None, failures=1, failed=failed, traceback=traceback)


def test_equal_bugs_in_trials_leave_one_named_file(told, files, capsys):
    for number, traceback in enumerate(("one", "one", "another", "")):
        told.tell(number, failing(number, traceback), True)
    kept = files()
    assert set(kept) == {"one", "another"}
    assert [trial.error for trial in told.search.trials] == [
        *(f"worker 0: KeyError: 'planted' (details in {kept[text]})" for text in ("one", "one", "another")),
        "worker 0: KeyError: 'planted'",
    ]
    assert read_trial(told.store, "key1").error == told.search.trials[1].error
    lines = [line for line in capsys.readouterr().out.splitlines() if "details in" in line]
    assert lines == [
        f"tune: trial {number}: worker 0: KeyError: 'planted' (details in {kept[text]})"
        for number, text in ((0, "one"), (2, "another"))
    ]


class Failed:
    """A trial of Tune whose process raised an error."""

    def __init__(self, error):
        self.config = {"values": {"train.seed": 0}}
        self._error = error

    def __str__(self):
        return "7"

    def get_pickled_error(self):
        return self._error

    def get_error(self):
        return "Failure # 1\nKilled"


@pytest.mark.parametrize(("error", "words"), [
    (StoreError("store: it is gone"), "store: it is gone"),
    (KeyError("planted"), "KeyError: 'planted' (details in "),
    (None, "Killed"),
])  # fmt: skip
def test_an_error_in_a_trials_process_is_distinguished(told, files, error, words):
    told.recorder.on_trial_error(0, [], Failed(error))
    [trial] = told.search.trials
    assert trial.state == "failed"
    assert trial.error.startswith(words)
    assert len(files()) == ("details" in words)


def test_known_reports_are_counted_once(told):
    told.report(0, 10, 2.0, was_known=True)
    told.report(0, 10, 2.0, was_known=True)  # its process was restarted
    told.report(0, 20, 1.8)
    [trial] = told.search.trials
    assert ([report.step for report in trial.reports], trial.reused) == ([10, 20], 1)


def test_a_record_keeps_its_reports_while_they_are_replayed(told, tmp_path):
    told.report(0, 10, 2.0)
    told.report(0, 20, 1.5, done=True)
    again = Told(tmp_path)
    again.report(0, 10, 2.0, was_known=True)
    again.recorder._write()
    assert [report.step for report in read_trial(again.store, "key0").reports] == [10, 20]


def test_a_copying_member_is_its_own_trial_and_no_checkpoint_is_lost(tmp_path):
    told = Told(tmp_path, is_population=True)
    told.report(0, 10, 2.0)
    told.report(1, 10, 1.0)
    told.report(0, 20, 0.9, key="copy", origin=Origin("key1", 1, 10))
    assert [(trial.number, trial.key, trial.state) for trial in told.search.trials] == [
        (0, "key0", "stopped"), (1, "key1", "running"), (0, "copy", "running"),
    ]  # fmt: skip
    assert told.on_disk == {"key0/checkpoint_10", "key1/checkpoint_10", "copy/checkpoint_20"}
    told.recorder.close()
    assert {path.parent.name for path in Path(told.store.root).glob("trials/*/checkpoint_*")} == {"copy"}


def test_the_front_of_two_metrics_stays(tmp_path):
    told = Told(tmp_path, metrics=("held_out_loss", "seconds"))
    for number, (loss, seconds) in enumerate([(1.0, 9.0), (2.0, 1.0), (3.0, 2.0)]):
        name = "checkpoint_30"
        Path(trial_folder(told.store, f"key{number}"), name).mkdir(parents=True)
        report = Report(30, 30, {"held_out_loss": loss, "seconds": seconds}, name)
        told.tell(number, TrialEvent(f"key{number}", {}, None, report), True)
    assert told.on_disk == {"key0/checkpoint_30", "key1/checkpoint_30"}
    assert [trial.number for trial, _ in told.search.front()] == [0, 1]


def test_a_search_is_written_while_it_runs(told):
    told.report(0, 10, 2.0, done=True)
    assert [trial.key for trial in read_search(told.store, "search").trials] == ["key0"]


def test_a_loss_that_is_not_a_number_never_leads(told):
    told.report(0, 10, float("nan"))
    told.report(1, 10, 5.0)
    assert told.search.leader()[0].number == 1
    assert told.recorder._leader[0].number == 1
    assert "key0/checkpoint_10" in told.on_disk


def test_records_of_another_build_are_read(told):
    told.report(0, 10, 2.0, done=True)
    told.recorder.close()
    for path in ("trials/key0/trial.json", "tune/search/search.json"):
        content = told.store.read_json(f"{told.store.root}/{path}")
        for trial in content.get("trials", [content]):
            del trial["reused"]
            trial["of a newer build"] = 1
        told.store.write_json(f"{told.store.root}/{path}", content)
    assert read_trial(told.store, "key0") == told.search.trials[0]
    assert read_search(told.store, "search").trials == told.search.trials
