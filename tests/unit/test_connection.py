"""What a local cluster's processes inherit, whom Ray's clients ask, and addresses where no cluster answers."""

import contextlib
import http.server
import inspect
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from workflows.cluster import connection
from workflows.cluster.connection import TOO_SLOW, Connection
from workflows.cluster.errors import ClusterError
from workflows.cluster.ray_private import ignore_uv_run
from workflows.jobs.client import Jobs
from workflows.spec import ClusterSpec

ANOTHER = "http://another:8265"


@pytest.fixture(autouse=True)
def warnings_stay() -> Iterator[None]:
    """Clients silence Ray's warnings for their whole process, which is also that of other tests."""
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """RAY_API_SERVER_ADDRESS when Ray starts, or connects."""
    found: list[str | None] = []
    monkeypatch.setattr(ray, "init", lambda **_: found.append(os.environ.get("RAY_API_SERVER_ADDRESS")))
    monkeypatch.setattr(connection, "divert_library_output", lambda: None)
    monkeypatch.setattr(connection, "show_token", lambda: None)
    monkeypatch.setattr(connection, "_check_head", lambda address: None)
    monkeypatch.setattr(connection, "_quieten", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return found


@pytest.mark.parametrize("before", [None, ANOTHER])
@pytest.mark.parametrize("address", [None, "auto"])
def test_a_local_clusters_processes_ask_only_that_cluster(
    seen: list[str | None], before: str | None, address: str | None
) -> None:
    os.environ.pop("RAY_API_SERVER_ADDRESS", None)
    if before is not None:
        os.environ["RAY_API_SERVER_ADDRESS"] = before
    Connection(ClusterSpec(address=address)).open()
    assert seen == ["local" if address is None else before]
    assert os.environ.get("RAY_API_SERVER_ADDRESS") == before


def test_a_machine_that_is_too_busy_for_ray_is_said(seen: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    assert TOO_SLOW in inspect.getsource(ray._private.node.Node)

    def slow(**_: Any) -> None:
        raise Exception(f"The current node {TOO_SLOW}.")

    monkeypatch.setattr(ray, "init", slow)
    with pytest.raises(ClusterError, match="too busy, or has too little memory; end other programs"):
        Connection(ClusterSpec()).open()


@pytest.mark.parametrize("name", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_a_job_goes_to_the_address_that_was_given(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked: list[str] = []

    def connect(self: Any, *_: Any, **__: Any) -> None:
        asked.append(self._address)
        self._server_ray_version = ray.__version__

    monkeypatch.setenv(name, ANOTHER)
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient._check_connection_and_version", connect)
    Jobs("http://mine:8265")
    assert set(asked) == {"http://mine:8265"}


@contextlib.contextmanager
def listening(answers: str) -> Iterator[int]:
    """A port where nobody listens, where something is silent, or a web server."""
    with socket.socket() as listener:
        listener.bind(("", 0))  # Ray turns 127.0.0.1 into the machine's own address
        port = int(listener.getsockname()[1])
        if answers == "nobody":
            yield port
        elif answers == "silence":
            listener.listen()
            yield port
        else:
            listener.close()
            server = http.server.ThreadingHTTPServer(("", port), http.server.SimpleHTTPRequestHandler)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield port
            server.shutdown()
            server.server_close()


@pytest.mark.parametrize("by_environment", [False, True], ids=["field", "RAY_ADDRESS"])
@pytest.mark.parametrize(("answers", "words"), [
    ("nobody", "nothing answers there (Connection refused); give host:port of the head, such as 10.0.0.1:6379"),
    ("silence", "what is there does not answer as Ray's head within 1 s; its dashboard (port 8265) and"),
    ("a web server", "what answers there is not a head of Ray (UNAVAILABLE); its dashboard"),
])  # fmt: skip
def test_an_address_without_a_cluster_is_refused_within_seconds(
    monkeypatch: pytest.MonkeyPatch, answers: str, words: str, by_environment: bool
) -> None:
    monkeypatch.setattr(connection, "divert_library_output", lambda: None)
    monkeypatch.setattr(connection, "_ANSWERS_WITHIN_S", 1.0)
    with listening(answers) as port:
        address, found = f"127.0.0.1:{port}", f"127.0.0.1:{port}"
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        if by_environment:
            monkeypatch.setenv("RAY_ADDRESS", found)
            address = "auto"
        began = time.monotonic()
        with pytest.raises(ClusterError) as refused:
            Connection(ClusterSpec(address=address)).open()
    assert time.monotonic() - began < 10
    which = f"'auto', and RAY_ADDRESS is '{found}', " if by_environment else f"'{found}', "
    assert str(refused.value).startswith(f"cluster.address: got {which}")
    assert words in str(refused.value)


@pytest.mark.parametrize(("address", "variable", "words"), [
    ("nowhere.invalid:6379", None, r"got 'nowhere\.invalid:6379', and nothing answers there \(.*\); give host:port"),
    ("ray://127.0.0.1:10001", None, r"got 'ray://127.*'; pipelines do not run over Ray Client: `rayconteur s"),
    ("auto", "ray://head:10001", r"got 'auto', and RAY_ADDRESS is 'ray://head:10001'; pipelines do not run"),
    ("auto", "http://head:8265", r".* RAY_ADDRESS is 'http://head:8265', which is not the .* \(it is a URL\)"),
    ("head:port", None, r"got 'head:port', which is not the address of a Ray cluster \('port' is not a port\)"),
    ("local", None, r"got 'local', which is not the address of a Ray cluster \(it starts a local cluster\)"),
])  # fmt: skip
def test_addresses_that_cannot_be_meant(
    monkeypatch: pytest.MonkeyPatch, address: str, variable: str | None, words: str
) -> None:
    monkeypatch.setattr(connection, "divert_library_output", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    with pytest.raises(ClusterError, match=rf"^cluster\.address: {words}"):
        Connection(ClusterSpec(address=address)).open()


@pytest.mark.parametrize(("set_by_user", "uploads"), [(None, False), ("0", False), ("1", True)])
def test_uv_run_uploads_the_current_folder_only_if_asked(
    monkeypatch: pytest.MonkeyPatch, set_by_user: str | None, uploads: bool
) -> None:
    from ray._private import ray_constants, worker
    from ray._private.runtime_env import uv_runtime_env_hook

    monkeypatch.setattr(uv_runtime_env_hook, "_get_uv_run_cmdline", lambda: ["uv", "run", "rayconteur"])
    monkeypatch.setattr(ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", set_by_user != "0")  # as at Ray's import
    monkeypatch.delenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", raising=False)
    if set_by_user is not None:
        monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", set_by_user)
    ignore_uv_run()
    found = worker._maybe_modify_runtime_env({}, False)
    assert ("working_dir" in found, "py_executable" in found) == (uploads, uploads)
