"""Ray Train's checkpoint record, truncated by a full disk."""

import json

import pytest

from workflows.store import Store
from workflows.training.recovery import checkpoint_note, clear_unfinished


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


@pytest.fixture
def run_folder(store, tmp_path):
    folder = tmp_path / "train" / "k" / "run"
    for number in (3, 6, 9):
        (folder / f"checkpoint_{number}").mkdir(parents=True)
    return folder


def note_of(*numbers):
    return {"checkpoint_results": [{"checkpoint_dir_name": f"checkpoint_{number}"} for number in numbers]}


def left(folder):
    return sorted(path.name for path in folder.glob("checkpoint_*") if path.is_dir())


def test_checkpoints_without_a_record_are_deleted(store, run_folder):
    (run_folder / "checkpoint_manager_snapshot.json").write_text(json.dumps(note_of(3, 6)))
    clear_unfinished(store, "k")
    assert left(run_folder) == ["checkpoint_3", "checkpoint_6"]


@pytest.mark.parametrize("half", ["", '{"checkpoint_results": ['])
def test_a_truncated_record_is_replaced_by_the_copy_of_the_previous_one(store, run_folder, half):
    (run_folder / "checkpoint_manager_snapshot.json").write_text(half)
    (run_folder / "checkpoints.json").write_text(json.dumps(note_of(6)))
    clear_unfinished(store, "k")
    assert checkpoint_note(store, str(run_folder)) == note_of(6)
    assert left(run_folder) == ["checkpoint_6"]


def test_a_truncated_record_without_a_copy_is_removed(store, run_folder):
    (run_folder / "checkpoint_manager_snapshot.json").write_text("")
    clear_unfinished(store, "k")
    assert left(run_folder) == []
    assert not (run_folder / "checkpoint_manager_snapshot.json").exists()
