"""The files of `data.sources`: folders, folders saved by `datasets`, datasets of the Hub from its cache."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest

from workflows.corpus.files import hub as hub_files
from workflows.corpus.files.formats import records
from workflows.corpus.files.sources import SourceError, SourceFile, find_files, is_packed
from workflows.spec import PipelineSpec
from workflows.spec.paths import local_paths
from workflows.store import Store

ROWS = [{"messages": [{"role": "user", "content": str(number)}]} for number in range(10)]
COMMIT = "a" * 40


def spec_of(path: Any, **options: Any) -> PipelineSpec:
    source = {"path": str(path), **options}
    return PipelineSpec.model_validate({"name": "x", "base_model": "y", "data": {"sources": [source]}})


def found(path: Any, **options: Any) -> list[SourceFile]:
    return find_files(spec_of(path, **options))


def contents(files: list[SourceFile]) -> list[str]:
    return [json.loads(record.text)["messages"][0]["content"] for file in files for record in records(file)]


def test_data_files_of_a_folder_are_recognised_by_their_endings(tmp_path: Path) -> None:
    names = [
        "a.parquet", "b.csv.bz2", "c.json.xz", "d.jsonl.zst", "e.arrow", "inner/f.tsv", "inner/g.ndjson.gz",
        "README.md", "notes.txt", "dataset_infos.json", "inner/state.json", ".cache/h.json", "x.jsonl.part",
    ]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    there = [str(Path(file.path).relative_to(tmp_path)) for file in found(tmp_path)]
    assert there == names[:7]
    assert {file.size for file in found(tmp_path)} == {1}


def test_files_without_endings_are_named_by_a_glob_and_read_by_their_content(tmp_path: Path) -> None:
    """As in the Hub's cache: `blobs/` has the files, and links with endings point there."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (blobs / "a1").write_bytes(gzip.compress(lines))
    (blobs / "b2").write_bytes(lines)
    datasets.Dataset.from_list(ROWS).to_parquet(str(blobs / "c3"))
    (tmp_path / "talk.jsonl.gz").symlink_to(blobs / "a1")
    with pytest.raises(SourceError, match=rf"nothing found at {blobs}; in a folder, files count whose names end in .*"
                       rf"; name others by a glob, such as {blobs}/\*$"):  # fmt: skip
        found(blobs)
    files = found(f"{blobs}/*")
    assert contents(files) == [str(number) for number in range(10)] * 3
    assert [is_packed(file) for file in files] == [True, False, True]
    [linked] = found(tmp_path / "talk.jsonl.gz")
    assert is_packed(linked)
    assert len(contents([linked])) == 10


def test_a_saved_dataset_is_read_in_its_own_order(tmp_path: Path) -> None:
    saved = tmp_path / "more" / "saved"
    datasets.Dataset.from_list(ROWS).save_to_disk(saved, num_shards=3)
    (saved / "cache-1.arrow").write_bytes(b"of an earlier map")
    state = json.loads((saved / "state.json").read_text())
    state["_data_files"].reverse()
    (saved / "state.json").write_text(json.dumps(state))
    wanted = ["7", "8", "9", "4", "5", "6", "0", "1", "2", "3"]
    assert contents(found(saved)) == wanted
    assert contents(found(tmp_path)) == wanted  # also inside another folder
    assert [record.number for record in records(found(saved)[0])] == [1, 2, 3]


def test_a_saved_dataset_with_splits_requires_one(tmp_path: Path) -> None:
    one, other = (datasets.Dataset.from_list(rows) for rows in (ROWS[:3], ROWS[3:]))
    datasets.DatasetDict(train=one, test=other).save_to_disk(tmp_path / "saved")
    assert contents(found(tmp_path / "saved", split="test")) == [str(number) for number in range(3, 10)]
    for split, got in ((None, "none is named"), ("dev", "got 'dev'")):
        with pytest.raises(
            SourceError, match=rf"^data\.sources\.0\.split: .* the splits train, test, {got}; name one"
        ):
            found(tmp_path / "saved", split=split)
    with pytest.raises(
        SourceError, match=r"^data\.sources\.0\.path: .*saved is a dataset with the splits train, test"
    ):
        found(tmp_path)
    with pytest.raises(
        SourceError, match=r"^data\.sources\.0\.split: got 'test', but .* is one saved dataset; leave"
    ):
        found(tmp_path / "saved" / "train", split="test")


def test_splits_of_a_plain_folder_are_those_that_datasets_sees(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test.jsonl"):
        (tmp_path / name).write_text("{}\n")
    assert [Path(file.path).name for file in found(tmp_path, split="test")] == ["test.jsonl"]
    assert len(found(tmp_path, split="train")) == 2
    assert len(found(tmp_path)) == 3
    with pytest.raises(SourceError, match=r"^data\.sources\.0\.split: .*got 'dev'"):
        found(tmp_path, split="dev")
    for path in (tmp_path / "test.jsonl", tmp_path / "*.jsonl"):
        with pytest.raises(SourceError, match=r"^data\.sources\.0\.split: got 'test', but .* has no splits"):
            found(path, split="test")


def test_all_of_this_works_on_an_object_store(s3_uri: str, tmp_path: Path) -> None:
    saved = datasets.Dataset.from_list(ROWS)
    saved.to_parquet(tmp_path / "data" / "a.parquet")
    saved.save_to_disk(tmp_path / "data" / "b")
    (tmp_path / "data" / "c.json.gz").write_bytes(gzip.compress(json.dumps(ROWS, indent=1).encode()))
    store = Store(s3_uri)
    store.upload(tmp_path / "data", f"{store.root}/data")
    wanted = [str(number) for number in range(10)]
    for place, times in (("data", 3), ("data/b", 1), ("data/*.parquet", 1), ("data/c.json.gz", 1)):
        assert contents(found(s3_uri.replace("?", f"/{place}?"))) == wanted * times


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """A local Hub cache with one dataset, and no connection to the Hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub_files._listing.cache_clear()
    root = tmp_path / "hub" / "datasets--shop--talks"

    def fill(files: dict[str, str]) -> None:
        for name, text in files.items():
            file = root / "snapshots" / COMMIT / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        sizes = {name: {"size": len(text), "blob_id": "0"} for name, text in files.items()}
        for ref in ("main", "v1", "refs/convert/parquet"):
            (root / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
            (root / "refs" / ref).write_text(COMMIT)
        (root / "trees").mkdir()
        (root / "trees" / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": sizes}))

    return fill


LINES = ["".join(json.dumps(row) + "\n" for row in rows) for rows in (ROWS[:4], ROWS[4:])]


def test_a_dataset_of_the_hub_is_read_by_split_and_revision(hub: Callable[[dict[str, str]], None]) -> None:
    hub(
        {"data/train-0.jsonl": LINES[0], "data/test-0.jsonl": LINES[1], "extra/more.jsonl": LINES[1], "README.md": ""}
    )
    for address in ("hf:shop/talks", "hf:shop/talks@main", f"hf:shop/talks@{COMMIT}", "hf:shop/talks@v1/data",
                    "hf:shop/talks@refs/convert/parquet/data"):  # fmt: skip
        files = found(address, split="train")
        assert contents(files) == ["0", "1", "2", "3"]
        assert [file.path for file in files] == [f"hf:shop/talks@{COMMIT}/data/train-0.jsonl"]
        assert [file.size for file in files] == [len(LINES[0])]
    assert contents(found("hf:shop/talks/extra")) == [str(number) for number in range(4, 10)]
    assert contents(found("hf:shop/talks/data/test-0.jsonl")) == [str(number) for number in range(4, 10)]
    assert found("hf:shop/talks", split="train")[0].fingerprint != found("hf:shop/talks", split="test")[0].fingerprint


def test_splits_of_the_hub_are_those_of_the_readme(hub: Callable[[dict[str, str]], None]) -> None:
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: exam\n    path: two.jsonl\n---\n"
    hub({"one.jsonl": LINES[0], "two.jsonl": LINES[1], "README.md": card})
    assert contents(found("hf:shop/talks", split="exam")) == [str(number) for number in range(4, 10)]
    assert contents(found("hf:shop/talks")) == [str(number) for number in range(4, 10)]  # the only one


@pytest.mark.parametrize(("address", "options", "words"), [
    ("hf:shop/talks", {}, r"split: hf:shop/talks has the splits train, test, none is named; name one"),
    ("hf:shop/talks", {"split": "dev"}, r"split: hf:shop/talks has the splits train, test, got 'dev'"),
    ("hf:shop/talks/none", {}, r"path: hf:shop/talks/none has no folder or file 'none'; it has data, notes"),
    ("hf:shop/talks/notes", {}, r"path: hf:shop/talks/notes: .*name a folder of the dataset with data files"),
    ("hf:shop/other", {}, r"path: cannot get hf:shop/other from the Hub: Cannot resolve revision"),
    ("hf:talks", {}, r"path: got 'hf:talks'; a dataset of the Hub is hf:owner/name"),
    ("hf:shop/talks/data/test-0.jsonl", {"split": "x"}, r"split: got 'x', but .* is a file"),
])  # fmt: skip
def test_what_the_hub_does_not_have_is_named(
    hub: Callable[[dict[str, str]], None], address: str, options: dict[str, str], words: str
) -> None:
    hub({"data/train-0.jsonl": LINES[0], "data/test-0.jsonl": LINES[1], "notes/a.bin": "x"})
    with pytest.raises(SourceError, match=rf"^data\.sources\.0\.{words}"):
        found(address, **options)


def test_a_dataset_of_the_hub_is_not_a_local_path() -> None:
    assert local_paths(spec_of("hf:shop/talks")) == {}
