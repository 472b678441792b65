"""A replica that hangs, as after a deadlock, reports itself as unhealthy, and Ray Serve replaces it."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest
from hanging import SEED, HangingReplica

from models.base.load import resolve
from serve.api.settings import ApiSettings
from serve.deployment import application
from serve.deployment.settings import ServedRelease

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
# Maximum duration of a reply; ten seconds after it, an engine that has generated nothing counts as stuck.
MAX_SECONDS = 3.0


@pytest.fixture
def url(cluster: None, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from ray import serve as ray_serve

    from serve.deployment.front_actor import close_fronts, run_endpoint
    from serve.front.server import Endpoint

    port = free_port()
    monkeypatch.setattr(application, "ChatReplica", HangingReplica)
    release = ServedRelease(str(resolve("random:tiny-llama")), "first", "tiny")
    app = application.build(release, api=ApiSettings(max_seconds=MAX_SECONDS))
    run_endpoint(app, "tiny", "127.0.0.1", port, 60.0, Endpoint("tiny", "first"))
    yield f"http://127.0.0.1:{port}"
    ray_serve.shutdown()
    close_fronts()


def replicas() -> set[int]:
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("ray::ServeReplica:tiny" in part for part in process.cmdline()):
                found.add(process.pid)
    return found


@pytest.mark.slow
def test_a_hanging_replica_reports_itself_and_is_replaced(url: str) -> None:
    chat, [hung] = f"{url}/v1/chat/completions", replicas()
    body = {**ASK, "max_tokens": 5}
    expected = httpx.post(chat, json=body, timeout=60).json()["choices"]
    stream = httpx.post(chat, json={**ASK, "seed": SEED, "max_tokens": 50, "stream": True}, timeout=60).text
    *_, error, done = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]
    assert (json.loads(error)["error"]["code"], done) == ("deadline_exceeded", "[DONE]")
    began, seen = time.monotonic(), set()
    while replicas() <= {hung}:
        assert time.monotonic() - began < 90, seen
        health = httpx.get(f"{url}/health", timeout=60)
        seen.add((health.status_code, str(health.json().get("problem")).partition(" for ")[0]))
        time.sleep(0.5)
    assert (503, "the engine has generated no token") in seen
    assert httpx.post(chat, json=body, timeout=60).json()["choices"] == expected
    assert httpx.get(f"{url}/health", timeout=60).json()["status"] == "ok"
