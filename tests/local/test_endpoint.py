"""The endpoint on Ray Serve under killed processes, updates and load. Tiny models, real processes."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from models.base.load import resolve
from models.export.openvino_export import export

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
# Long replies, of a model whose end token is never the most likely, so that they take seconds.
LONG = {**ASK, "max_tokens": 1500}


class Served:
    """The application on this cluster; `update` deploys a new release."""

    def __init__(self, folder: str, url: str, port: int, engine: str) -> None:
        self.url = url
        self._folder, self._port, self._engine = folder, port, engine

    def update(self, release: str, **scaling: Any) -> None:
        from serve.api.settings import ApiSettings
        from serve.deployment.application import build
        from serve.deployment.front_actor import run_endpoint
        from serve.deployment.settings import EngineSettings, Scaling, ServedRelease
        from serve.front.server import Endpoint

        app = build(
            ServedRelease(self._folder, release, "tiny"),
            EngineSettings(self._engine, "fp32"),
            Scaling(**scaling),
            ApiSettings(max_seconds=60.0),
        )
        run_endpoint(app, "tiny", "127.0.0.1", self._port, 60.0, Endpoint("tiny", release))

    def ask(self, **fields: Any) -> Any:
        response = httpx.post(f"{self.url}/v1/chat/completions", json={**ASK, **fields}, timeout=60)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"]

    def stream(self, **fields: Any) -> Iterator[Any]:
        body = {**LONG, "stream": True, **fields}
        with httpx.stream("POST", f"{self.url}/v1/chat/completions", json=body, timeout=60) as response:
            assert response.status_code == 200
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line.removeprefix("data: "))

    def release(self) -> str:
        return str(httpx.get(f"{self.url}/health", timeout=60).json()["release"])


def processes(name: str) -> list[psutil.Process]:
    """Processes of this test's cluster, by title or command line."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(name in part for part in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def replicas() -> list[psutil.Process]:
    return processes("ray::ServeReplica:tiny")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder: Path = tmp_path_factory.mktemp("openvino")
    export(resolve("random:tiny-llama"), folder, "fp32")
    return {"torch": str(resolve("random:tiny-llama")), "openvino": str(folder)}


@pytest.fixture
def served(cluster: None, folders: dict[str, str], free_port: Callable[[], int]) -> Iterator[Callable[..., Served]]:
    from ray import serve as ray_serve

    from serve.deployment.front_actor import close_fronts

    def serve(engine: str = "torch", **scaling: Any) -> Served:
        port = free_port()
        served = Served(folders[engine], f"http://127.0.0.1:{port}", port, engine)
        served.update("first", **scaling)
        return served

    yield serve
    ray_serve.shutdown()
    close_fronts()


@pytest.mark.parametrize("victim", [pytest.param("replica", marks=pytest.mark.slow), "engine"])
def test_a_death_loses_no_request_and_open_streams_end_with_an_error(
    served: Callable[..., Served], victim: str
) -> None:
    endpoint = served("openvino", min_replicas=1, max_replicas=1)
    expected = endpoint.ask(max_tokens=30)
    open_stream = endpoint.stream()
    next(open_stream)
    [process] = replicas() if victim == "replica" else processes("serve.engines.openvino_process")
    with ThreadPoolExecutor() as pool:
        working = [pool.submit(endpoint.ask, **{**LONG, "max_tokens": 1000}) for _ in range(4)]
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        *_, error = open_stream
        assert error["error"]["code"] == f"{victim}_lost"
        assert endpoint.ask(max_tokens=30) == expected, "asked while there was no replica"
        assert len({request.result() for request in working}) == 1
    assert [process.pid for process in replicas()] != [process.pid]


def test_an_update_drops_nothing(served: Callable[..., Served]) -> None:
    endpoint = served(min_replicas=1, max_replicas=1)
    whole = "".join(event["choices"][0]["delta"].get("content") or "" for event in endpoint.stream())
    open_stream, asked, is_over = endpoint.stream(), [], threading.Event()
    first = next(open_stream)

    def ask() -> None:
        while not is_over.is_set():
            asked.append(endpoint.ask(max_tokens=20))

    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        updating = pool.submit(endpoint.update, "second", min_replicas=1, max_replicas=1, surge=True)
        text = "".join(event["choices"][0]["delta"].get("content") or "" for event in (first, *open_stream))
        updating.result()
        assert endpoint.release() == "second"
        is_over.set()
        for each in asking:
            each.result()
    assert text == whole
    assert len(set(asked)) == 1


@pytest.mark.slow
def test_replicas_follow_the_load_from_none_to_three_and_back(served: Callable[..., Served]) -> None:
    endpoint = served(
        min_replicas=0, max_replicas=3, target_ongoing_requests=2, upscale_delay_seconds=1, downscale_delay_seconds=3
    )
    _until(lambda: len(replicas()) == 0)
    assert endpoint.release() == "first"
    assert httpx.get(f"{endpoint.url}/health").json()["status"] == "idle"
    assert not replicas(), "asking for its health woke it up"
    expected = endpoint.ask(max_tokens=20)
    is_over = threading.Event()

    def ask() -> int:
        count = 0
        while not is_over.is_set():
            assert endpoint.ask(max_tokens=20) == expected
            assert endpoint.ask(max_tokens=400)
            count += 1
        return count

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask) for _ in range(8)]
        try:
            _until(lambda: len(replicas()) == 3)
        finally:
            is_over.set()
        assert sum(each.result() for each in asking) > 8
    _until(lambda: len(replicas()) == 0)


def _until(is_so: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.2)


def test_full_caches_want_more_replicas_than_their_requests() -> None:
    from types import SimpleNamespace

    from serve.deployment.application import replicas_for

    def wanted(requests: float, *caches: float) -> float:
        config: Any = SimpleNamespace(get_target_ongoing_requests=lambda: 4)
        context: Any = SimpleNamespace(
            current_num_replicas=len(caches), target_num_replicas=len(caches), config=config, policy_state={},
            total_num_requests=requests, total_queued_requests=0,
            aggregated_metrics={"cache_used": dict(enumerate(caches))},
        )  # fmt: skip
        return replicas_for(context)[0]

    assert wanted(8, 0.1, 0.1) == 2
    assert wanted(2, 0.9, 0.9) == pytest.approx(2.25)
