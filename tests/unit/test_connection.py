"""What a local cluster's processes inherit, and whom Ray's clients ask, whatever the user's environment."""

import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from workflows.cluster import connection
from workflows.cluster.connection import Connection
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
