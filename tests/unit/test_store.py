"""The store on a local folder and on a real S3 server: whole artifacts or none, one worker at a time."""

import subprocess
import sys
import time

import pytest

from workflows import store as store_module
from workflows.store import Artifact, Store, StoreError, content_key, fingerprint


@pytest.fixture(scope="module")
def s3_uri():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    yield f"s3://testing:testing@bucket/rayconteur?{endpoint}"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    uri = str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("s3_uri")
    return Store(uri)


def artifact(key="k1", **changes):
    values = {
        "stage": "train", "key": key, "pipeline": "p", "inputs": {"prepare": "x"}, "settings": {"train": {}},
        "figures": {"loss": 1.5}, "started": "2026-01-01",
    }  # fmt: skip
    return Artifact(**{**values, **changes})


def test_an_artifact_exists_with_its_manifest_and_not_before(store, tmp_path):
    source = tmp_path / "made"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "weights").write_bytes(b"123")
    (source / "config").write_text("c")
    store.add_folder(str(source), "train", "k1", "model")
    assert store.find("train", "k1") is None
    store.finish(artifact())
    store.finish(artifact("k0", started="2025-01-01"))
    assert store.find("train", "k1") == artifact()
    assert [found.key for found in store.all_of("train")] == ["k0", "k1"]
    assert store.all_of("nothing") == []
    local = store.local_folder("train", "k1", "model", tmp_path / "cache")
    assert (local / "inner" / "weights").read_bytes() == b"123"
    assert (local / "config").read_text() == "c"
    store.clear("train", "k1")
    store.clear("train", "never-there")
    assert store.find("train", "k1") is None


def test_runs_are_listed_oldest_first(store):
    store.write_run({"run": "b", "started": "2026-02-01"})
    store.write_run({"run": "a", "started": "2026-01-01"})
    store.write_run({"run": "a", "started": "2026-01-01", "status": "finished"})
    assert [(run["run"], run.get("status")) for run in store.runs()] == [("a", "finished"), ("b", None)]


def test_a_second_worker_waits_for_the_first(store, monkeypatch):
    monkeypatch.setattr(store_module, "_LEASE_SETTLE_S", 0.1)
    waited = []
    with store.lock("train", "k2", waited.append):
        assert waited == []
    with store.lock("train", "k2", waited.append):
        assert waited == []


def test_a_dead_lease_is_passed_over(s3_uri, monkeypatch):
    monkeypatch.setattr(store_module, "_LEASE_SETTLE_S", 0.1)
    monkeypatch.setattr(store_module, "_LEASE_DEAD_AFTER_S", 2.0)
    store = Store(s3_uri)
    store.write_json(f"{store.root}/train/k3.lease", {"owner": "gone:1", "renewed": time.time()})
    waited = []
    with store.lock("train", "k3", waited.append):
        assert "gone:1" in waited[0]


HOLDER = (
    "import sys, time; from workflows.store import Store\n"
    "with Store(sys.argv[1]).lock('train', 'k', print): print('held', flush=True); time.sleep(600)"
)


def test_a_killed_holder_lets_go_at_once(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    waited = []

    def say(text):
        waited.append(text)
        holder.kill()

    with Store(str(tmp_path)).lock("train", "k", say):
        assert "waiting" in waited[0]
    assert holder.wait() == -9
    holder.stdout.close()


def test_a_file_is_written_whole(tmp_path):
    store = Store(str(tmp_path))
    store.write_json(store.path("a", "b", "c.json"), {"x": "ü"})
    assert [file.name for file in (tmp_path / "a" / "b").iterdir()] == ["c.json"]


def test_keys_and_fingerprints_follow_the_content(tmp_path):
    assert content_key({"a": 1, "b": [2]}) == content_key({"b": [2], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})
    store, file = Store(str(tmp_path)), tmp_path / "data"
    file.write_text("one")
    first = fingerprint(store.filesystem, str(file))
    file.write_text("two")
    second = fingerprint(store.filesystem, str(file))
    file.write_text("one")
    assert first == fingerprint(store.filesystem, str(file)) != second


def test_a_store_that_cannot_be_is_said():
    with pytest.raises(StoreError, match=r"store: cannot open 'nonsense://x'"):
        Store("nonsense://x")
