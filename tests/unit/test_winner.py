"""The winner of a search, when checkpoints are there, gone, incomplete or cannot be read."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models.training.report import Report
from workflows.progress import Progress
from workflows.search import winner
from workflows.search.checkpoints import Needs, needs_of, note_files, write_checkpoint
from workflows.search.job_queue import JobUpdate, TrainingJob
from workflows.search.records import Search, Trial, Winner, read_trial, trial_folder, write_trial
from workflows.spec import PipelineSpec
from workflows.stage import StageFailed
from workflows.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@pytest.fixture
def search(store: Store) -> Search:
    """Three trials, whose best reports are their second ones: 1.1 of trial 1, 1.2 of trial 2, 1.3 of trial 0."""
    found = Search("p", "search", ["held_out_loss"], {"train.seed": [0]}, "random", "none", 3)
    for number, best in enumerate((1.3, 1.1, 1.2)):
        trial = Trial(number, f"key{number}", {"train.seed": number}, state="finished")
        for step, loss in ((10, best + 1), (20, best), (30, best + 0.5)):
            trial.reports.append(Report(step, 30, {"held_out_loss": loss}))
        found.trials.append(trial)
        make(store, trial, 20)
        write_trial(store, "search", trial)
    return found


def make(store: Store, trial: Trial, step: int) -> str:
    report = trial.reports[step // 10 - 1]
    report.checkpoint = f"checkpoint_{step:06}_search-abcdefgh0"
    path = f"{trial_folder(store, trial.key)}/{report.checkpoint}"
    write_checkpoint(store, path, lambda folder: (folder / "weights").touch())
    note_files(store, path)
    return path


class Group:
    """Stands for a worker group: `answers` has what each job gives, by the trial's number and what the job does."""

    answers: dict[tuple[int, str], str | float]
    jobs: list[TrainingJob]

    def __init__(self, *_: object) -> None:
        self._updates: list[JobUpdate] = []
        self.seats = [self]

    def begin(self, job: TrainingJob) -> None:
        self.jobs.append(job)
        number = int(job.folder[-1])
        answer = self.answers[number, "measure" if job.only_measure else "train"]
        if isinstance(answer, str):
            self._updates = [JobUpdate(failed=answer)]
            return
        first = int(job.checkpoint.split("checkpoint_")[1][:6]) if job.checkpoint else 0
        self._updates = [
            JobUpdate(Report(step, 30, {"held_out_loss": answer}, f"checkpoint_{step:06}_again"))
            for step in ([20] if job.only_measure else range(first + 10, 31, 10))
        ]

    def next_update(self) -> JobUpdate:
        return self._updates.pop(0)

    def close(self) -> None:
        pass


Find = Callable[[dict[tuple[int, str], str | float]], Winner]


@pytest.fixture
def find(store: Store, search: Search, monkeypatch: pytest.MonkeyPatch) -> Find:
    spec = PipelineSpec.model_validate(
        {"name": "p", "base_model": "random:tiny-llama", "data": {"sources": [{"path": "x"}]}}
    )
    shared: Any = SimpleNamespace(inputs=None, folder="", max_failures=0, suites=(), search="search")
    monkeypatch.setattr(winner, "WorkerGroup", Group)

    def found(answers: dict[tuple[int, str], str | float]) -> Winner:
        Group.answers, Group.jobs = answers, []
        search.winner = winner.find_winner(spec, store, search, shared, Progress())
        return search.winner

    return found


def test_the_best_report_wins_and_is_measured_again(find: Find, search: Search) -> None:
    assert find({(1, "measure"): 1.1}) == Winner(1, "key1", 20, "checkpoint_000020_search-abcdefgh0", 1.1, 1.1)
    assert search.leader() == (search.trials[1], search.trials[1].reports[1])
    with pytest.raises(
        StageFailed, match=r"trial 1 reported .* 1.1 at step 20, and its checkpoint gives 1.2; there is no"
    ):
        find({(1, "measure"): 1.2})


@pytest.mark.parametrize("how", ["gone", "incomplete", "not readable"])
def test_a_winner_without_its_checkpoint_is_trained_again(
    find: Find, store: Store, search: Search, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(trial_folder(store, "key1"), "checkpoint_000020_search-abcdefgh0")
    answers: dict[tuple[int, str], str | float] = {(1, "train"): 1.1}
    if how == "gone":
        shutil.rmtree(folder)
    elif how == "incomplete":
        (folder / "weights").unlink()
    else:
        answers[1, "measure"] = "AssertionError (no message)"
    assert find(answers) == Winner(1, "key1", 20, "checkpoint_000020_again", 1.1, 1.1)
    why = "cannot be measured (AssertionError (no message))" if how == "not readable" else "is gone or incomplete"
    said = capsys.readouterr().out
    assert said == f"tune: the checkpoint of trial 1 at step 20 {why}; the trial is trained again\n"
    assert Group.jobs[-1].checkpoint is None
    assert Group.jobs[-1].mark.startswith("search-")
    Path(trial_folder(store, "key1"), "checkpoint_000020_again").mkdir()
    known = read_trial(store, "key1")
    assert known is not None
    assert [report.checkpoint for report in known.reports] == [None, "checkpoint_000020_again", None]
    assert needs_of(search) == {("key1", "checkpoint_000020_again")}


def test_it_is_trained_again_from_an_earlier_checkpoint(find: Find, store: Store, search: Search) -> None:
    earlier = make(store, search.trials[1], 10)
    shutil.rmtree(Path(trial_folder(store, "key1"), "checkpoint_000020_search-abcdefgh0"))
    assert find({(1, "train"): 1.1}).step == 20
    assert [job.checkpoint for job in Group.jobs] == [earlier]


@pytest.mark.parametrize(("again", "why"), [
    ("no space left", "no space left"),
    (1.4, "it now has a held_out_loss of 1.4 instead of 1.1"),
])  # fmt: skip
def test_otherwise_the_next_best_trial_wins(
    find: Find, store: Store, search: Search, again: str | float, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(Path(trial_folder(store, "key1"), "checkpoint_000020_search-abcdefgh0"))
    assert find({(1, "train"): again, (2, "measure"): 1.2}).trial == 2
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"tune: trial 1 cannot be trained again, so the next best one wins: {why}"
    )
    assert search.leader() == (search.trials[2], search.trials[2].reports[1])
    needs = Needs(store, "search")
    needs.write(needs_of(search), is_over=True)
    needs.sweep(["key0", "key1", "key2"])
    left = {path.parent.name for path in Path(store.root).glob("trials/*/checkpoint_*")}
    assert left == {"key2"}


def test_lost_checkpoints_of_the_front_are_named(
    store: Store, search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    search.metrics.append("seconds")
    for trial in search.trials:
        trial.reports[1].figures["seconds"] = float(10 - trial.number)
    assert [trial.number for trial, _ in search.front()] == [1, 2]
    winner.check_front(store, search, Progress())
    shutil.rmtree(Path(trial_folder(store, "key2"), "checkpoint_000020_search-abcdefgh0"))
    winner.check_front(store, search, Progress())
    assert capsys.readouterr().out == "tune: on the Pareto front, no checkpoint is left of trial 2\n"
    assert needs_of(search) == {("key1", "checkpoint_000020_search-abcdefgh0")}


def test_without_any_the_search_fails_with_the_reason(find: Find, store: Store) -> None:
    for number in range(3):
        shutil.rmtree(Path(trial_folder(store, f"key{number}"), "checkpoint_000020_search-abcdefgh0"))
    with pytest.raises(StageFailed, match=r"^tune: cannot measure the winner again: no space left$"):
        find({(number, "train"): "no space left" for number in range(3)})
