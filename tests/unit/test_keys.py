"""API keys: what a folder or a real S3 server stores of them, how replicas pick up changes, and the command."""

import json
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from serve.access.api_keys import ApiKey, KeyRing, make_key
from workflows.cli.commands import command
from workflows.endpoint.api_keys import KeyFile, UnusableKey
from workflows.store import Store, StoreError

PIPELINE = """\
name: shop
base_model: random:tiny-llama
store: {store}
data:
  sources:
    - path: talk.jsonl
serve:
  port: 8123
"""


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(Store(str(tmp_path / "store")))


@pytest.fixture
def path(file: KeyFile, tmp_path: Path) -> Path:
    """The path of the key file."""
    return tmp_path / "store" / "keys" / "keys.json"


@pytest.fixture
def follow() -> Iterator[Callable[..., KeyRing]]:
    """Makes key rings that reread at once; closes them at the end."""
    rings: list[KeyRing] = []

    def opened(read: Callable[[], list[ApiKey] | None]) -> KeyRing:
        rings.append(KeyRing(read, reload_s=0.01))
        return rings[-1]

    yield opened
    for ring in rings:
        ring.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "10 s are over"
        time.sleep(0.01)


def test_a_secret_is_long_and_random_and_kept_nowhere(file: KeyFile, path: Path) -> None:
    made = [file.add(name, 60, 1000) for name in ("alice", "b@c.d")]
    assert [key.name for key in file.read() or []] == ["alice", "b@c.d"]
    assert file.read() == [key for _, key in made]
    for secret, _ in made:
        assert secret.startswith("rk-")
        assert len(secret) == 3 + 43, "256 bits, six to a character"
        assert secret[3:] not in path.read_text()
    assert len({make_key("x")[0] for _ in range(100)}) == 100


def test_keys_on_an_object_store(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.lease.SETTLE_S", 0.05)
    file = KeyFile(Store(s3_uri))
    assert file.read() is None
    _, key = file.add("alice")
    elsewhere: KeyFile = pickle.loads(pickle.dumps(file))
    assert elsewhere.read() == [key]
    file.revoke("alice")
    assert elsewhere.read() == []


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "é", "a" * 64, "a\n", 'a"'])
def test_an_invalid_name_is_refused(file: KeyFile, name: str) -> None:
    with pytest.raises(UnusableKey, match=r"^NAME: got .*must be 1 to 63 letters"):
        file.add(name)
    assert file.read() is None


def test_a_name_is_taken_once(file: KeyFile) -> None:
    file.add("alice")
    with pytest.raises(UnusableKey, match="a key named alice already exists; revoke it first"):
        file.add("alice")
    with pytest.raises(UnusableKey, match="no key is named alic; did you mean alice"):
        file.revoke("alic")
    file.revoke("alice")
    with pytest.raises(UnusableKey, match="no key is named alice; existing keys: none"):
        file.revoke("alice")


def test_many_programs_at_once_lose_no_key(file: KeyFile) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: KeyFile(file._store).add(f"key{number}"), range(24)))
    assert {key.name for key in file.read() or []} == {f"key{number}" for number in range(24)}


def test_a_broken_key_file_is_reported(file: KeyFile, path: Path) -> None:
    file.add("alice")
    for text in ("{", "[]", '{"keys": [{"name": "x"}]}'):
        path.write_text(text)
        with pytest.raises(StoreError, match=r"keys\.json: is not a list of API keys"):
            file.read()
        with pytest.raises(StoreError):
            file.add("bob")
        assert path.read_text() == text, "what cannot be read is not written over"


def test_a_temporary_key_is_always_revoked(file: KeyFile) -> None:
    def fail() -> None:
        with file.temporary() as secret:
            assert KeyRing(file.read).find(secret.encode()) is not None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert file.read() == []


def test_a_key_ring_follows_created_and_revoked_keys(file: KeyFile, follow: Callable[..., KeyRing]) -> None:
    ring = follow(file.read)
    assert ring.find(b"") is None
    secret, key = file.add("alice")
    until(lambda: ring.find(secret.encode()) == key)
    assert ring.find(secret.encode()[:-1]) is None
    assert ring.find(key.sha256.encode()) is None, "the hash is no key"
    file.revoke("alice")
    until(lambda: ring.find(secret.encode()) is None)


@pytest.mark.parametrize("harm", ["gone", "broken", "unreadable"])
def test_a_key_ring_continues_with_the_keys_it_has_read(
    file: KeyFile, path: Path, follow: Callable[..., KeyRing], caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    secret, key = file.add("alice")
    healthy, reads = path.read_text(), []

    def read() -> list[ApiKey] | None:
        reads.append(time.monotonic())
        return file.read()

    ring = follow(read)
    if harm == "gone":
        os.replace(path, path.with_suffix(".away"))
    elif harm == "broken":
        path.write_text("{")
    else:
        path.unlink()
        path.mkdir()
    until(lambda: "API keys cannot be read" in caplog.text)
    seen = len(reads)
    until(lambda: len(reads) > seen + 3)
    assert ring.find(secret.encode()) == key
    assert "the 1 keys read last stay valid" in caplog.text
    assert caplog.text.count("cannot be read") == 1, "said once, not every few seconds"
    if harm == "unreadable":
        path.rmdir()
    path.write_text(healthy)
    until(lambda: "API keys can be read again" in caplog.text)
    file.revoke("alice")
    until(lambda: ring.find(secret.encode()) is None)


def test_a_store_that_does_not_answer_delays_nobody(file: KeyFile, follow: Callable[..., KeyRing]) -> None:
    secret, key = file.add("alice")
    stuck, release, given_up = threading.Event(), threading.Event(), threading.Event()
    answers = iter([file.read])

    def read() -> list[ApiKey] | None:
        if (answer := next(answers, None)) is not None:
            return answer()
        stuck.set()
        release.wait(20)
        given_up.set()
        raise TimeoutError

    ring = follow(read)
    assert stuck.wait(10)
    assert ring.find(secret.encode()) == key
    assert not given_up.is_set()
    release.set()


def test_a_key_ring_that_has_never_read_does_not_start() -> None:
    def read() -> list[ApiKey] | None:
        raise ConnectionError("no store")

    with pytest.raises(ConnectionError):
        KeyRing(read)


@pytest.fixture
def keys(tmp_path: Path) -> Callable[..., Result]:
    """Run `rayconteur keys VERB PIPELINE ...`."""
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text(PIPELINE.format(store=tmp_path / "store"))

    def run(verb: str, *arguments: str) -> Result:
        return CliRunner().invoke(command, ["keys", verb, str(pipeline), *arguments])

    return run


def test_the_command_creates_lists_and_revokes(keys: Callable[..., Result], file: KeyFile) -> None:
    made = keys("create", "alice", "--requests-per-minute", "60")
    assert made.exit_code == 0
    secret = made.stdout.strip()
    assert "shown only once" in made.stderr
    assert "set serve.keys: required" in made.stderr
    ring = KeyRing(file.read)
    found = ring.find(secret.encode())
    ring.close()
    assert found is not None
    assert (found.name, found.requests_per_minute, found.tokens_per_minute) == ("alice", 60, None)
    assert "set serve.keys" not in keys("create", "bob", "--set", "serve.keys=required").stderr
    listed = keys("list")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["name", "alice", "bob"]
    assert "60       no limit" in listed.stdout
    assert secret not in listed.output
    assert found.sha256 not in listed.output
    assert "alice is revoked" in keys("revoke", "alice").stdout
    assert keys("revoke", "alice").exit_code == 1
    again = keys("create", "bob")
    assert (again.exit_code, again.stdout) == (1, "")
    assert again.stderr.startswith("error: NAME: a key named bob already exists")


def test_the_command_speaks_json(keys: Callable[..., Result]) -> None:
    made: dict[str, Any] = json.loads(keys("create", "alice", "--tokens-per-minute", "900", "--json").stdout)
    assert made.pop("key").startswith("rk-")
    assert made.pop("event") == "key"
    assert json.loads(keys("list", "--json").stdout) == made
    assert (made["name"], made["requests_per_minute"], made["tokens_per_minute"]) == ("alice", None, 900)
    assert json.loads(keys("revoke", "alice", "--json").stdout) == {"event": "revoked", "name": "alice"}
    assert json.loads(keys("revoke", "alice", "--json").stdout)["event"] == "error"


@pytest.mark.parametrize("limit", ["0", "-1", "many", "1.5"])
def test_an_invalid_limit_is_refused(keys: Callable[..., Result], limit: str) -> None:
    assert keys("create", "alice", "--requests-per-minute", limit).exit_code == 2
