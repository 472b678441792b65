"""Which search needs which checkpoint, in a local folder and on a real S3 server."""

from pathlib import Path

import pytest

from models.training.report import Report
from workflows.search.checkpoints import Named, Needs, is_whole, note_files, write_checkpoint
from workflows.search.records import Search, Trial, read_trial, trial_folder, write_search, write_trial
from workflows.store import Store


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("s3_uri"))


def begin(store: Store, key: str) -> Needs:
    write_search(store, Search("p", key, ["held_out_loss"], {}, "random", "none", 3))
    return Needs(store, key)


def make(store: Store, key: str, search: str) -> Named:
    name = f"checkpoint_000010_{search[:8]}-abcdefgh0"
    path = f"{trial_folder(store, key)}/{name}"
    write_checkpoint(store, path, lambda folder: (folder / "weights").write_bytes(b"12345") and None)
    note_files(store, path)
    assert is_whole(store, path)
    return key, name


def there(store: Store) -> set[Named]:
    return {(key.base_name, info.base_name) for key in store.folders("trials")
            for info in store.folders("trials", key.base_name)}  # fmt: skip


def test_a_checkpoint_goes_with_the_last_search_that_needs_it(store: Store) -> None:
    one, two = begin(store, "one"), begin(store, "two")
    first, second = make(store, "a", "one"), make(store, "b", "two")
    one.write({first})
    two.write({first, second})
    one.write(set(), is_over=True)
    one.delete([first])
    assert there(store) == {first, second}
    two.write({second}, is_over=True)
    two.delete([first])
    assert there(store) == {second}
    assert not is_whole(store, f"{trial_folder(store, 'a')}/{first[1]}")
    third = make(store, "c", "one")
    one = Needs(store, "one")
    one.delete([second, third])
    assert there(store) == {second}, "the other search is over and needs it"


def test_a_search_that_is_run_again_needs_what_it_needed_until_it_is_over(store: Store) -> None:
    first, second = make(store, "a", "one"), make(store, "longer", "one")  # times on S3 are whole seconds
    begin(store, "one").write({first})
    again = Needs(store, "one")
    again.write({second})
    other = begin(store, "other")
    assert other.of_others() == {first, second}
    again.write({second}, is_over=True)
    assert other.of_others() == {second}
    again.write({first}, is_over=True)
    assert other.of_others() == {first}


def test_a_sweep_leaves_what_others_need_or_are_writing(store: Store) -> None:
    mine, others, unfinished = make(store, "a", "mine"), make(store, "a", "other"), make(store, "b", "other")
    deleted, of_earlier_version = make(store, "a", "deleted"), ("b", "checkpoint_000010_abcdefgh0")
    write_checkpoint(store, "/".join([trial_folder(store, "b"), of_earlier_version[1]]),
                     lambda folder: (folder / "weights").touch())  # fmt: skip
    begin(store, "other").write({others})
    needs = begin(store, "mine")
    needs.write(set(), is_over=True)
    assert there(store) == {mine, others, unfinished, deleted, of_earlier_version}
    needs.sweep(["a", "b"])
    assert there(store) == {others, unfinished}


def test_the_longest_record_counts_and_names_only_what_is_there(store: Store) -> None:
    named = make(store, "a", "one")
    reports = [Report(step, 30, {"held_out_loss": float("nan")}, named[1]) for step in (10, 20, 30)]
    reports[1].checkpoint = "checkpoint_000020_gone"
    write_trial(store, "one", Trial(0, "a", {}, reports=reports))
    write_trial(store, "two/proxies", Trial(0, "a", {}, reports=reports[:1], state="stopped"))
    store.write_json(f"{trial_folder(store, 'a')}/settled.json", {"cut": 2})
    known = read_trial(store, "a")
    assert known is not None
    assert [report.checkpoint for report in known.reports] == [named[1], None, named[1]]
    assert read_trial(store, "never") is None
