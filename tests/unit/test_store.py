"""The store in a local folder and on a real S3 server: complete artifacts or none, one writer at a time."""

import errno
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server
from stored import run_record

from models.files import open_uri
from workflows import lease
from workflows import store as store_module
from workflows.corpus.files.sources import source_files
from workflows.spec import PipelineSpec
from workflows.store import Artifact, Store, StoreError, content_key, fingerprint, release_in_service


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("s3_uri"))


def artifact(key: str = "k1", **changes: Any) -> Artifact:
    values = {
        "stage": "train", "key": key, "pipeline": "p", "inputs": {"prepare": "x"}, "settings": {"train": {"a": [1]}},
        "figures": {"loss": 1.5, "word": "é"}, "versions": {"torch": "2"}, "started": "2026-01-01", "seconds": 2.5,
    }  # fmt: skip
    return Artifact(**{**values, **changes})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A nested folder."""
    folder = tmp_path / "made"
    (folder / "inner" / "deep").mkdir(parents=True)
    (folder / "config").write_text("c")
    (folder / "inner" / "weights").write_bytes(b"123" * 100_000)
    (folder / "inner" / "deep" / "x").write_text("é")
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_an_artifact_exists_with_its_manifest_and_not_before(store: Store, model: Path, tmp_path: Path) -> None:
    store.add_folder(str(model), "train", "k1", "model")
    assert store.find("train", "k1") is None
    assert store.all_of("train") == []
    store.finish(artifact())
    store.finish(artifact("k0", started="2025-01-01"))
    assert store.find("train", "k1") == artifact()
    assert store.find("evaluate", "k1") is None
    assert store.all_of("train") == [artifact("k0", started="2025-01-01"), artifact()]
    assert store.all_of("nothing") == []
    assert Store(store.uri).find("train", "k1") == artifact(), "its address is enough for another program"


def test_a_folder_is_copied_completely(store: Store, model: Path, tmp_path: Path) -> None:
    store.add_folder(str(model), "train", "k1", "model")
    local = store.local_folder("train", "k1", "model")
    assert files_in(local) == files_in(model)
    assert local == store.local_folder("train", "k1", "model")
    again = Store(str(tmp_path / "again"))
    again.add_folder(store.path("train", "k1", "model"), "optimize", "k2", "copy", store.filesystem)
    assert files_in(tmp_path / "again" / "optimize" / "k2" / "copy") == files_in(model)


def test_what_an_unfinished_attempt_left_is_cleared(store: Store, model: Path) -> None:
    store.add_folder(str(model), "train", "k1", "model")
    store.finish(artifact("k2"))
    store.clear("train", "k1")
    store.clear("train", "never-there")
    store.add_folder(str(model / "inner" / "deep"), "train", "k1", "model")
    listed = store.filesystem.get_file_info(
        store_module.pa.fs.FileSelector(store.path("train", "k1"), recursive=True)
    )
    assert [info.base_name for info in listed if info.is_file] == ["x"]
    assert store.find("train", "k2") == artifact("k2")


def test_runs_are_listed_oldest_first(store: Store) -> None:
    assert store.runs() == []
    store.write_run(run_record(run="b", started="2026-02-01", status="stopped"))
    store.write_run(run_record(run="a", started="2026-01-01", status="running"))
    store.write_run(run_record(run="a", started="2026-01-01"))
    assert [(run.run, run.status) for run in store.runs()] == [("a", "finished"), ("b", "stopped")]


def test_a_reader_sees_whole_files_only(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    path = store.path("train", "k", "manifest.json")
    content = {"x": "é" * 200_000}
    store.write_json(path, content)
    writer = threading.Thread(target=lambda: [store.write_json(path, content) for _ in range(30)])
    writer.start()
    reads = 0
    while writer.is_alive():
        assert json.loads(Path(path).read_text()) == content
        reads += 1
    assert reads > 3
    assert [file.name for file in Path(path).parent.iterdir()] == ["manifest.json"]


HOLDER = (
    "import sys; from workflows.store import Store\n"
    "with Store(sys.argv[1]).lock('train', 'k', print): print('held', flush=True); sys.stdin.read()"
)


@pytest.mark.parametrize("end", ["ends", "is killed"])
def test_a_second_program_waits_until_the_first(tmp_path: Path, end: str) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        waited, held = threading.Event(), threading.Event()

        def second() -> None:
            with Store(str(tmp_path)).lock("train", "k", lambda text: waited.set()):
                held.set()

        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(10)
        with Store(str(tmp_path)).lock("train", "other", pytest.fail):
            assert not held.wait(0.3)
        if end == "is killed":
            holder.kill()
        else:
            holder.stdin.close()
        assert held.wait(60)
        thread.join()
    assert holder.returncode == (-9 if end == "is killed" else 0)


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 0.4)
    monkeypatch.setattr(lease, "RENEWAL_S", 0.2)
    monkeypatch.setattr(lease, "DEAD_AFTER_S", 2.0)


@pytest.mark.usefixtures("short_leases")
def test_on_s3_a_living_program_keeps_its_lease_and_a_second_waits(s3_uri: str) -> None:
    store = Store(s3_uri)
    held, said = threading.Event(), []

    def second() -> None:
        with Store(s3_uri).lock("train", "k", said.append):
            held.set()

    thread = threading.Thread(target=second)
    with store.lock("train", "k", pytest.fail):
        thread.start()
        assert not held.wait(4.0), "twice as long as a lease lives unrenewed"
        [text] = said
        assert f":{os.getpid()}:" in text
    assert held.wait(60)
    thread.join()
    assert Store(s3_uri).find("train", "k") is None
    with Store(s3_uri).lock("train", "k", pytest.fail):
        pass


@pytest.mark.usefixtures("short_leases")
def test_on_s3_two_at_once_work_one_at_a_time(s3_uri: str) -> None:
    inside, most = [0], [0]

    def work() -> None:
        with Store(s3_uri).lock("train", "k", lambda text: None):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.3)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


@pytest.mark.usefixtures("short_leases")
@pytest.mark.parametrize("ahead", [-60.0, 0.0, 60.0])
def test_on_s3_a_dead_lease_is_taken_over(s3_uri: str, ahead: float) -> None:
    """In time, whatever the clock of its holder was."""
    store = Store(s3_uri)
    store.write_json(f"{store.root}/train/k.lease", {"owner": "gone:1", "renewed": time.time() + ahead})
    written = time.monotonic()
    waited: list[str] = []
    with store.lock("train", "k", waited.append):
        assert 1.0 <= time.monotonic() - written < 10.0, "an object's time is in whole seconds"
        assert "gone:1" in waited[0]


@pytest.mark.usefixtures("short_leases")
def test_on_s3_a_lease_that_is_dead_since_long_is_taken_over_at_once(s3_uri: str) -> None:
    store = Store(s3_uri)
    store.write_json(f"{store.root}/train/k.lease", {"owner": "gone:1", "renewed": 0.0})
    time.sleep(4.0)
    with store.lock("train", "k", pytest.fail):
        pass
    left = [info.base_name for info in store.entries("train")]
    assert left == []


AHEAD = (
    "import sys, time; from workflows import lease; from workflows.store import Store\n"
    "lease.SETTLE_S, lease.RENEWAL_S, lease.DEAD_AFTER_S = 0.4, 0.2, 2.0\n"
    "true = time.time; time.time = lambda: true() + float(sys.argv[2])\n"
    "with Store(sys.argv[1]).lock('train', 'k', lambda text: print('waits', flush=True)): print('held', flush=True)"
)


@pytest.mark.usefixtures("short_leases")
@pytest.mark.parametrize("ahead", ["60", "-60"])
def test_on_s3_a_machine_whose_clock_differs_waits(s3_uri: str, ahead: str) -> None:
    with Store(s3_uri).lock("train", "k", pytest.fail):
        command = [sys.executable, "-c", AHEAD, s3_uri, ahead]
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "waits\n"
        time.sleep(4.0)
        assert other.poll() is None
    assert other.communicate(timeout=60)[0] == "held\n"


@pytest.mark.parametrize("kind", ["full", "forbidden"])
def test_a_write_that_fails_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    number = errno.ENOSPC if kind == "full" else errno.EACCES

    def write_bytes(path: Path, data: bytes) -> int:
        with path.open("wb") as stream:
            stream.write(data[: len(data) // 2])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    path = store.path("trials", "k", "trial.json")
    with pytest.raises(StoreError) as e:
        store.write_json(path, {"a": 1})
    words = {
        "full": r"No space left on device, \d+\.\d\d of \d+\.\d GB are free; free some space",
        "forbidden": "Permission denied; make it writable",
    }[kind]
    assert re.fullmatch(f"store: cannot write {path}: {words}, then run the same command to resume", str(e.value))
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_a_small_file_on_s3_is_written_with_one_request(s3_uri: str, s3_server: S3Server) -> None:
    store = pickle.loads(pickle.dumps(Store(s3_uri)))
    before = s3_server.answered
    store.write_json(store.path("trials", "k", "trial.json"), {"a": 1})
    assert s3_server.answered == before + 1


def test_records_on_s3_are_read_at_the_same_time(s3_uri: str, s3_server: S3Server) -> None:
    store = Store(s3_uri)
    names = [f"r{number:02}" for number in range(24)]
    for name in names:
        store.write_run(run_record(run=name, started=f"2026-{name}"))
        store.finish(artifact(name, started=f"2026-{name}"))
    with s3_server.slow(0.1):
        assert [run.run for run in store.runs()] == names
        assert s3_server.most_at_once >= 4
    with s3_server.slow(0.1):
        assert [found.key for found in store.all_of("train")] == names
        assert s3_server.most_at_once >= 4


def test_data_on_s3_is_opened_with_the_sources_own_options(s3_uri: str, s3_server: S3Server) -> None:
    store = Store(s3_uri)
    for name in ("b", "a"):
        with store.filesystem.open_output_stream(f"{store.root}/data/{name}.jsonl") as stream:
            stream.write(name.encode())
    for path in ("data", "data/*.jsonl", "data/a.jsonl"):
        source = {"path": s3_uri.replace("?", f"/{path}?")}
        spec = PipelineSpec.model_validate({"name": "x", "base_model": "y", "data": {"sources": [source]}})
        contents = []
        for file in source_files(spec):
            filesystem, _ = open_uri(file.source)
            with filesystem.open_input_stream(file.path) as stream:
                contents.append(stream.read().decode())
        assert contents == (["a"] if path == "data/a.jsonl" else ["a", "b"])


def test_keys_follow_the_content() -> None:
    first = {"a": 1, "b": {"c": [1, 2], "d": None}}
    assert content_key(first) == content_key({"b": {"d": None, "c": [1, 2]}, "a": 1}) == "6146dd4938e3bf91"
    changed = [{"a": 1.5}, {"a": "1"}, {"b": {"c": [2, 1], "d": None}}, {"b": {"c": [1, 2], "d": 0}}, {"e": None}]
    assert len({content_key(first), *(content_key({**first, **change}) for change in changed)}) == 6


def test_fingerprints_follow_the_content(tmp_path: Path) -> None:
    filesystem, file = Store(str(tmp_path)).filesystem, tmp_path / "data"

    def of(content: bytes) -> str:
        file.write_bytes(content)
        return fingerprint(filesystem, str(file))

    assert of(b"one") == of(b"one") != of(b"two")
    assert of(b"") != of(b"\0")


@pytest.mark.parametrize("changed", ["size", "first byte", "last byte", "time"])
def test_the_fingerprint_of_a_large_file_follows_its_ends_and_time(tmp_path: Path, changed: str) -> None:
    filesystem, file = Store(str(tmp_path)).filesystem, tmp_path / "data"
    size = 65 << 20
    with file.open("wb") as stream:
        stream.truncate(size)
    os.utime(file, (1, 1))
    first = fingerprint(filesystem, str(file))
    with file.open("r+b") as stream:
        if changed == "size":
            stream.truncate(size + 1)
        elif changed != "time":
            stream.seek(0 if changed == "first byte" else size - 1)
            stream.write(b"x")
    os.utime(file, (2, 2) if changed == "time" else (1, 1))
    assert fingerprint(filesystem, str(file)) != first


@pytest.mark.parametrize("make", [
    lambda folder, s3: "nonsense://x",
    lambda folder, s3: f"{folder}/a file",
    lambda folder, s3: "s3://testing:testing@bucket/x?wrong=1",
    lambda folder, s3: f"s3://testing:testing@no-such-bucket/x{s3.replace('&allow_bucket_creation=true', '')}",
], ids=["scheme", "file", "option", "bucket"])  # fmt: skip
def test_an_invalid_store_is_reported(make: Callable[[Path, str], str], tmp_path: Path, s3_server: S3Server) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(
        StoreError, match=r"^store: cannot open .*give a folder or a URI such as s3://bucket/path"
    ) as e:
        Store(make(tmp_path, s3_server.options))
    assert "testing" not in str(e.value), "a secret key is shown"


def test_a_store_that_is_away_for_a_while_is_waited_for(s3_uri: str, s3_server: S3Server) -> None:
    """Also with a copy of the store in another process."""
    store = Store(s3_uri)
    copy = pickle.loads(pickle.dumps(store.filesystem))
    pool = ThreadPoolExecutor()
    with s3_server.away():
        writing, reading = pool.submit(store.finish, artifact()), pool.submit(copy.get_file_info, store.root)
        refused = s3_server.refused
        while s3_server.refused < refused + 4:
            time.sleep(0.1)
        assert not writing.done()
        assert not reading.done()
    writing.result(timeout=60)
    assert reading.result(timeout=60).type == store_module.pa.fs.FileType.Directory
    assert Store(s3_uri).find("train", "k1") == artifact()


def test_the_release_in_service_is_the_last_one_of_another_training(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for number, (pipeline, train) in enumerate([("shop", "a"), ("shop", "b"), ("other", "c"), ("shop", "b")]):
        key, at = f"r{number}", f"2026-01-0{number + 1}"
        store.finish(Artifact("optimize", key, pipeline, {"train": train}, {}, {}))
        store.finish(Artifact("deploy", key, pipeline, {"optimize": key}, {}, {}, started=at))
    found = {train: release_in_service(store, "shop", train) for train in ("a", "b", "new")}
    assert {train: release and release.key for train, release in found.items()} == {"a": "r3", "b": "r0", "new": "r3"}
    assert release_in_service(store, "nothing deployed", "a") is None
