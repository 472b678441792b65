"""The recorder of a search writes records, and deletes checkpoints that can neither win nor be continued."""

import errno
import itertools
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from models.training.report import Report
from workflows.cluster.errors import ClusterError
from workflows.pace import Pace
from workflows.progress import Progress
from workflows.search.checkpoints import Needs, needs_of
from workflows.search.recorder import SearchRecorder
from workflows.search.records import Origin, Search, read_search, read_trial, trial_folder, write_search
from workflows.search.trial import RESULT, TrialEvent
from workflows.store import Store, StoreError


class Told:
    """A search's recorder, called with results as Tune calls it."""

    def __init__(self, folder, is_population=False, metrics=("held_out_loss",), key="search"):
        self.store = Store(str(folder))
        self.search = Search("p", key, list(metrics), {"train.seed": [0]}, "random", "none", 3)
        write_search(self.store, self.search)
        self.recorder = SearchRecorder(self.search, self.store, Progress(), is_population)

    def report(self, number, step, loss, key=None, done=False, **more):
        key = key or f"key{number}"
        name = f"checkpoint_{step}"
        if not more.get("was_known"):
            Path(trial_folder(self.store, key), name).mkdir(parents=True, exist_ok=True)
        line = TrialEvent(key, {"train.seed": number}, None, Report(step, 30, {"held_out_loss": loss}, name))
        self.tell(number, replace(line, **more), done)

    def replay(self, number, steps=99):
        """The first of a trial's recorded reports, as a trial's process replays them."""
        known = read_trial(self.store, f"key{number}").reports
        for report in known[:steps]:
            line = TrialEvent(f"key{number}", {}, None, replace(report), was_known=True, known=known)
            self.tell(number, line, report.step == 30 or report is known[:steps][-1])

    def finish(self):
        self.recorder.close()
        Needs(self.store, self.search.key).write(needs_of(self.search), is_over=True)
        write_search(self.store, self.search)

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
    (ClusterError("cluster: it is gone"), "cluster: it is gone"),
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


def checkpoints(folder):
    return {f"{path.parent.name}/{path.name}" for path in Path(folder, "trials").glob("*/checkpoint_*")}


def test_a_second_search_keeps_the_winner_of_a_finished_one(told, tmp_path):
    told.report(0, 10, 1.5)
    told.report(0, 20, 1.8, done=True)
    told.finish()
    assert checkpoints(tmp_path) == {"key0/checkpoint_10"}
    second = Told(tmp_path, key="second")
    second.replay(0)
    second.report(1, 10, 1.2, done=True)
    assert second.on_disk == {"key0/checkpoint_10", "key1/checkpoint_10"}
    second.finish()
    Needs(second.store, "second").sweep(["key0", "key1"])
    assert checkpoints(tmp_path) == {"key0/checkpoint_10", "key1/checkpoint_10"}


def test_a_checkpoint_that_another_running_search_wins_by_stays_until_that_does_not_need_it(told, tmp_path):
    told.report(0, 10, 1.5)
    second = Told(tmp_path, key="second")
    second.replay(0)
    told.report(1, 10, 1.2)
    told.report(0, 20, 1.6, done=True)
    assert "key0/checkpoint_10" in told.on_disk, "the second search leads by it"
    second.report(2, 10, 1.0)
    assert second.on_disk == {"key1/checkpoint_10", "key2/checkpoint_10"}, "now none needs it"


def test_an_interrupted_search_keeps_what_it_goes_on_from_also_while_it_is_replayed(told, tmp_path):
    told.report(0, 10, 1.5)
    told.report(1, 10, 2.0)
    needed = {"key0/checkpoint_10", "key1/checkpoint_10"}
    assert told.on_disk == needed
    second = Told(tmp_path, key="second")
    second.replay(0)
    second.replay(1)
    second.report(2, 10, 1.0, done=True)
    assert second.on_disk == {*needed, "key2/checkpoint_10"}
    again = Told(tmp_path)
    again.replay(1, 1)
    second.report(2, 20, 0.9, done=True)
    assert second.on_disk >= needed
    again.finish()
    assert "key0/checkpoint_10" in checkpoints(tmp_path), "the second search deletes only what it has seen as useless"


def test_a_deleted_search_needs_nothing(told, tmp_path):
    told.report(0, 10, 1.5, done=True)
    told.recorder.close()
    shutil.rmtree(told.store.path("tune", "search"))
    second = Told(tmp_path, key="second")
    second.replay(0)
    second.report(1, 10, 1.0, done=True)
    assert second.on_disk == {"key1/checkpoint_10"}


def test_the_winner_of_a_search_that_an_earlier_version_has_run_stays(told, tmp_path):
    told.report(0, 10, 1.5, done=True)
    told.finish()
    shutil.rmtree(told.store.path("trials", "needs"))
    told.store.filesystem.move(told.store.path("trials", "key0", "trial_search.json"),
                               told.store.path("trials", "key0", "trial.json"))  # fmt: skip
    second = Told(tmp_path, key="second")
    second.replay(0)
    second.report(1, 10, 1.0, done=True)
    assert second.on_disk == {"key0/checkpoint_10", "key1/checkpoint_10"}


def test_a_record_is_never_shortened(told, tmp_path):
    """`scheduler: none`, then `asha`, then `none` again; and two trials of the same settings in one search."""
    for step in (10, 20, 30):
        told.report(0, step, 2.0, done=step == 30)
    told.finish()
    steps = lambda: [report.step for report in read_trial(told.store, "key0").reports]  # noqa: E731
    asha = Told(tmp_path, key="asha")
    asha.replay(0, 1)
    asha.report(1, 10, 1.0, key="key0", done=True)
    asha.finish()
    assert [len(trial.reports) for trial in asha.search.trials] == [1, 1]
    assert steps() == [10, 20, 30]
    again = Told(tmp_path)
    again.replay(0, 2)
    again.finish()
    assert steps() == [10, 20, 30]


def test_two_searches_at_once_do_not_shorten_each_others_records(told, tmp_path):
    second = Told(tmp_path, key="second")
    for step in (10, 20):
        told.report(0, step, 2.0)
        told.recorder._write()
    second.report(0, 10, 2.0, done=True)
    assert [report.step for report in read_trial(told.store, "key0").reports] == [10, 20]


def test_a_checkpoint_that_is_gone_is_not_in_the_record(told):
    told.report(0, 10, 2.0)
    told.report(0, 20, 1.0, done=True)
    told.recorder.close()
    assert [report.checkpoint for report in read_trial(told.store, "key0").reports] == [None, "checkpoint_20"]
    shutil.rmtree(Path(trial_folder(told.store, "key0"), "checkpoint_20"))
    assert [report.checkpoint for report in read_trial(told.store, "key0").reports] == [None, None]


def test_a_failure_for_want_of_resources_is_kept_as_one_to_try_again(told):
    for number, retry in enumerate((True, False)):
        told.tell(number, TrialEvent(f"key{number}", {}, None, None, failed="too large", retry=retry), True)
    assert [read_trial(told.store, f"key{number}").retry for number in (0, 1)] == [True, False]


@pytest.fixture
def full(monkeypatch):
    """A disk that is full for files with this in their name."""
    names = []

    def write_bytes(path, data, write=Path.write_bytes):
        if any(path.name.startswith(name) for name in names):
            write(path, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    return names


@pytest.mark.parametrize("name", ["trial_search.json", "search.json"])
def test_a_full_disk_ends_the_search_with_one_sentence_and_nothing_half_written(told, full, tmp_path, name):
    told.report(0, 10, 2.0)
    full.append(name)
    told.recorder._whole_search = Pace(0.0, 0.02)
    begun = Path(trial_folder(told.store, "key0"), "checkpoint_000020_search-abc0")
    begun.mkdir()
    with pytest.raises(
        StoreError, match=rf"^store: cannot write .*{name}: No space left on device, .* are free; free"
    ):
        told.report(1, 30, 1.0, done=True)
    with pytest.raises(StoreError):
        told.report(0, 20, 1.0)
    told.recorder.abandon()
    assert not begun.exists()
    assert not list(tmp_path.rglob("*.unfinished"))
    assert Path(trial_folder(told.store, "key0"), "checkpoint_10").is_dir()
    full.clear()
    again = Told(tmp_path)
    again.replay(0)
    assert again.search.trials[0].reused >= 1


def test_a_store_that_fails_in_a_worker_ends_the_search(told):
    line = TrialEvent("key0", {}, None, None, failed="store: cannot write /x: Input/output error", store_failed=True)
    with pytest.raises(StoreError, match=r"^store: cannot write /x"):
        told.tell(0, line, True)
    assert str(told.recorder.failure) == line.failed


def test_a_store_that_fails_in_a_trials_process_ends_the_search(told):
    with pytest.raises(StoreError, match=r"^store: it is gone$"):
        told.recorder.on_trial_error(0, [], Failed(StoreError("store: it is gone")))


def test_the_cost_of_a_report_does_not_grow_with_the_trials(tmp_path, monkeypatch):
    """With two metrics, of which the second is worse where the first is better: all trials are on the front."""
    told = Told(tmp_path, metrics=("held_out_loss", "seconds"))

    def report(count):
        for _ in range(count):
            number = len(told.search.trials)
            figures = {"held_out_loss": 1 / (number + 1), "seconds": number % 97}
            told.tell(number, TrialEvent(f"key{number}", {}, None, Report(30, 30, figures, None)), True)

    def calls(count):
        """The function calls that so many reports take, without what is bounded by its share of the time."""
        made = itertools.count()
        with monkeypatch.context() as patched:
            patched.setattr(Pace, "is_due", False)
            sys.setprofile(lambda *_: next(made))
            report(count)
            sys.setprofile(None)
        return next(made)

    first = calls(150)
    calls(1200)
    assert calls(150) < 2 * first
    assert read_search(told.store, "search").trials == []
    report(2)  # the first one is written with all before it, the next one is due later
    told.recorder.close()
    content = json.loads(Path(told.store.path("tune", "search", "search.json")).read_text())
    write_search(told.store, told.search)
    assert len(read_search(told.store, "search").trials) == 1502 > len(content["trials"]) > 0


def test_a_loss_that_is_not_a_number_never_leads(told):
    told.report(0, 10, float("nan"))
    told.report(1, 10, 5.0)
    assert told.search.leader()[0].number == 1
    assert told.recorder._standing.best([])[0][0].number == 1
    assert "key0/checkpoint_10" in told.on_disk


def test_records_of_another_build_are_read(told):
    told.report(0, 10, 2.0, done=True)
    told.recorder.close()
    for path in ("trials/key0/trial_search.json", "tune/search/search.json"):
        content = told.store.read_json(f"{told.store.root}/{path}")
        for trial in content.get("trials", [content]):
            del trial["reused"]
            trial["of a newer build"] = 1
        told.store.write_json(f"{told.store.root}/{path}", content)
    assert read_trial(told.store, "key0") == told.search.trials[0]
    assert read_search(told.store, "search").trials == told.search.trials


class ByHand:
    """A steering: trial 0 was stopped, trial 1 added."""

    def was_stopped(self, values, step):
        return values["train.seed"] == 0 and step > 10

    def words_of(self, number):
        return "added by hand" if number == 1 else ""


def test_what_was_done_by_hand_is_in_the_record(told):
    told.recorder._steering = ByHand()
    told.report(0, 10, 1.0)
    told.report(0, 20, 2.0, done=True)
    told.report(1, 20, 3.0, done=True)
    told.report(2, 30, 3.0, done=True)
    told.finish()
    kept = read_search(told.store, "search").trials
    assert [(trial.state, trial.is_stopped_by_hand, trial.added) for trial in kept] == [
        ("stopped", True, ""), ("stopped", False, "added by hand"), ("finished", False, ""),
    ]  # fmt: skip
    assert read_trial(told.store, "key0").is_stopped_by_hand
    assert told.search.leader()[0].number == 0, "a stopped trial can win"


def test_a_report_that_breaks_a_constraint_is_excluded_before_another_thread_can_see_it(tmp_path):
    told = Told(tmp_path)
    told.search.constraints = ["held_out_loss >= 2"]

    class Watched(list):
        def append(self, report):
            super().append(report)
            seen.append(told.search.trials[0].best("held_out_loss"))

    seen = []
    told.report(0, 10, 3.0)
    told.search.trials[0].reports = Watched(told.search.trials[0].reports)
    told.report(0, 20, 1.5, done=True)
    assert [report.step for report in seen] == [10]
