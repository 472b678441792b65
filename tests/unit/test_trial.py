"""A trial's process: what it replays of records, what it tries again, and the checkpoint that it goes on from."""

import asyncio
import errno
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models.training.report import Report
from workflows.search import trial as trial_module
from workflows.search.checkpoints import is_whole, note_files, write_checkpoint
from workflows.search.job_queue import JobQueue, JobUpdate, TrainingJob
from workflows.search.records import Origin, Trial, trial_folder, write_trial
from workflows.search.trial import TOGETHER, Shared, TrialEvent, TrialRunner, event_of, key_of
from workflows.search.worker_group import failure_of_store
from workflows.spec import PipelineSpec
from workflows.spec.space import with_values
from workflows.store import Store, StoreError
from workflows.training.inputs import TrainingInputs

VALUES = {"train.learning_rate": 1e-3}


class Runner(TrialRunner):
    """Without Ray: its worker group trains nothing, and reports every tenth step of 30."""

    def __init__(self, store: Store, is_population: bool = False) -> None:
        spec = PipelineSpec.model_validate(
            {"name": "p", "base_model": "random:tiny-llama", "data": {"sources": [{"path": "x"}]}}
        )
        shared = Shared(
            spec, store.uri, TrainingInputs({"prepare": "x"}), "search", store.path("tune", "search"),
            ["held_out_loss"], is_population, max_failures=0,
        )  # fmt: skip
        self.key = key_of(with_values(spec, VALUES), shared.inputs.keys)
        self.jobs: list[TrainingJob] = []
        self.updates: list[JobUpdate] = []
        self._trial_info = SimpleNamespace(trial_name="0")  # type: ignore[assignment]
        self.setup({TOGETHER: VALUES}, shared)
        self._seat = SimpleNamespace(begin=self.begin, next_update=lambda: self.updates.pop(0))  # type: ignore[assignment]

    def begin(self, job: TrainingJob) -> None:
        self.jobs.append(job)
        step = int(job.checkpoint.split("checkpoint_")[1][:6]) if job.checkpoint else 0
        self.updates = [JobUpdate(Report(at, 30, {"held_out_loss": 1.0})) for at in range(step + 10, 31, 10)]

    def events(self) -> Iterator[TrialEvent]:
        while True:
            result = self.step()
            yield event_of(result)
            if result["done"]:
                return


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def recorded(store: Store, steps: int = 2, **changes: Any) -> Trial:
    """A trial in the store with a checkpoint at each tenth step."""
    key = Runner(store).key
    reports = []
    for step in range(10, 10 * steps + 1, 10):
        name = f"checkpoint_{step:06}_search-abcdefgh0"
        path = f"{trial_folder(store, key)}/{name}"
        write_checkpoint(store, path, lambda folder: (folder / "weights").write_bytes(b"12345") and None)
        note_files(store, path)
        reports.append(Report(step, 30, {"held_out_loss": 1.0}, name))
    trial = Trial(0, key, VALUES, reports=reports, **changes)
    write_trial(store, "other", trial)
    return trial


@pytest.mark.parametrize(("changes", "is_tried"), [
    ({"state": "failed", "error": "too large", "retry": True}, True),
    ({"state": "failed", "error": "it diverged", "retry": False}, False),
    ({"state": "running"}, True),
])  # fmt: skip
def test_a_failure_that_more_resources_may_heal_is_tried_again(
    store: Store, changes: dict[str, Any], is_tried: bool
) -> None:
    recorded(store, **changes)
    runner = Runner(store)
    events = [*runner.events()]
    assert [event.report.step for event in events if event.report] == ([10, 20, 30] if is_tried else [10, 20])
    assert [event.was_known for event in events] == [True, True, not is_tried]
    assert [event.failed for event in events if event.failed] == ([] if is_tried else ["it diverged"])
    assert len(runner.jobs) == is_tried


def test_a_failure_that_an_earlier_version_has_recorded_is_tried_again(store: Store) -> None:
    trial = recorded(store, state="failed", error="too large")
    path = store.path("trials", trial.key, "trial_other.json")
    content = store.read_json(path)
    del content["retry"]
    store.remove(path)
    store.write_json(store.path("trials", trial.key, "trial.json"), content)
    assert not any(event.failed for event in Runner(store).events())


def test_a_worker_says_which_failures_more_resources_may_heal() -> None:
    async def updates() -> list[JobUpdate]:
        queue = JobQueue.__ray_metadata__.modified_class(0)  # type: ignore[attr-defined]
        found = []
        for retry in (True, False):
            await queue.give(0, TrainingJob({}, "folder"))
            await queue.fail(0, queue._seats[0].number, "too large", retry)
            found.append(await queue.next_update(0))
        await queue.give(0, TrainingJob({}, "folder"))
        await queue.lose("store: cannot write", "", store_failed=True)
        found.append(await queue.next_update(0))
        await queue.give(0, TrainingJob({}, "folder"))
        await queue.break_off("store: cannot write", "", store_failed=True)
        return [*found, await queue.next_update(0)]

    assert [(update.retry, update.store_failed) for update in asyncio.run(updates())] == [
        (True, False), (False, False), (False, True), (False, True)
    ]  # fmt: skip


@pytest.mark.parametrize(("lost", "start", "words"), [
    ([], 20, ""),
    ([20], 10, "its checkpoint at step 20 is gone or incomplete, so it goes on from step 10"),
    ([10, 20], 0, "its checkpoint at step 20 is gone or incomplete, so it is trained again"),
])  # fmt: skip
@pytest.mark.parametrize("how", ["gone", "incomplete", "in deletion"])
def test_a_trial_goes_on_from_its_last_whole_checkpoint(
    store: Store, lost: list[int], start: int, words: str, how: str
) -> None:
    trial = recorded(store)
    folders = {report.step: Path(trial_folder(store, trial.key), str(report.checkpoint)) for report in trial.reports}
    for step in lost:
        if how == "gone":
            shutil.rmtree(folders[step])
        else:
            (folders[step] / ("weights" if how == "incomplete" else "files.json")).unlink()
    runner = Runner(store)
    events = [*runner.events()]
    assert [event.report.step for event in events if event.report] == [10, 20, 30]
    [job] = runner.jobs
    assert job.checkpoint == (str(folders[start]) if start else None)
    assert job.mark.startswith("search-")
    assert [event.note for event in events if event.note] == ([words] if words else [])
    assert [len(event.known) for event in events] == [2, 0, 0]


def test_a_member_whose_copied_checkpoint_is_gone_fails_with_the_reason(store: Store) -> None:
    trial = recorded(store)
    runner = Runner(store, is_population=True)
    path = f"{trial_folder(store, trial.key)}/{trial.reports[0].checkpoint}"
    saved = trial_module._Saved(trial.key, 7, None, 10, path)
    runner.load_checkpoint({trial_module._SAVED: saved})
    shutil.rmtree(path)
    [event] = runner.events()
    assert event.origin == Origin(trial.key, 7, 10)
    assert (
        event.failed == "cannot go on: the checkpoint of trial 7 at step 10, which it copied, is gone or incomplete"
    )
    assert event.retry


def test_a_population_trains_again_from_the_first_checkpoint_that_is_gone(store: Store) -> None:
    trial = recorded(store, steps=3)
    shutil.rmtree(Path(trial_folder(store, trial.key), str(trial.reports[1].checkpoint)))
    runner = Runner(store, is_population=True)
    events = [*runner.events()]
    assert [(event.report.step, event.was_known) for event in events if event.report] == [
        (10, True), (20, False), (30, False)
    ]  # fmt: skip
    assert [len(event.known) for event in events] == [3, 0, 0], "the record keeps what it had"


@pytest.mark.parametrize("error", [
    OSError(28, "No space left on device"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 128 vs 0"),
    Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
])  # fmt: skip
def test_a_checkpoint_that_cannot_be_written_leaves_nothing(store: Store, error: Exception) -> None:
    path = f"{trial_folder(store, 'key')}/checkpoint_000010_search-abcdefgh0"

    def write(folder: Path) -> None:
        (folder / "weights").write_bytes(b"1")
        raise error

    with pytest.raises(
        StoreError, match=r"^store: cannot write .*abcdefgh0: No space left on device, .* are free; free"
    ):
        write_checkpoint(store, path, write)
    assert not Path(path).exists()
    with pytest.raises(KeyError):
        write_checkpoint(store, path, lambda folder: {}["a bug"])


@pytest.mark.parametrize(("error", "is_of_store"), [
    (StoreError("store: cannot write"), True),
    (OSError(errno.ENOSPC, "No space left on device"), True),
    (PermissionError(errno.EACCES, "Permission denied"), True),
    (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), False),
    (KeyError("a bug"), False),
])  # fmt: skip
def test_failures_of_the_store_are_told_from_others(error: Exception, is_of_store: bool) -> None:
    wrapped = RuntimeError("the workers failed")
    wrapped.__cause__ = error
    assert failure_of_store(error) == failure_of_store(wrapped) == (error if is_of_store else None)


def test_checkpoints_of_earlier_versions_count_as_whole(store: Store) -> None:
    path = Path(trial_folder(store, "key"), "checkpoint_000010_abcdefgh0")
    assert not is_whole(store, str(path))
    path.mkdir(parents=True)
    (path / "history.jsonl").touch()
    assert is_whole(store, str(path))


def test_a_report_of_equal_figures_lends_its_checkpoint(store: Store) -> None:
    """Where the longer record's own is gone, and another search has kept its."""
    trial = recorded(store)
    shutil.rmtree(Path(trial_folder(store, trial.key), str(trial.reports[1].checkpoint)))
    mine = replace(trial.reports[1], checkpoint="checkpoint_000020_mine-abcdefgh0")
    path = f"{trial_folder(store, trial.key)}/{mine.checkpoint}"
    write_checkpoint(store, path, lambda folder: (folder / "weights").touch())
    note_files(store, path)
    write_trial(store, "mine", replace(trial, reports=[mine], state="finished"))
    runner = Runner(store)
    assert not any(event.note for event in runner.events())
    assert runner.jobs[0].checkpoint == path
