"""The front with real replicas: whatever happens to a replica, each client gets its reply or an error."""

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.base.load import load_tokenizer
from serve.api.routes import create_app
from serve.engines.torch import TorchEngine
from serve.front.leases import LeasedOnly, Leases, ReplicaServer
from serve.front.server import Endpoint, Front, Lease, LostError
from serve.protocol.errors import ApiError

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 60}


class Replica:
    """A replica as in Ray Serve's actor, without Ray."""

    def __init__(self, folder: Path) -> None:
        self.engine = TorchEngine(folder, precision="fp32", num_threads=1)
        self.leases = Leases()
        app = create_app(self.engine, load_tokenizer(folder), "tiny", "3f2a")
        self.server = ReplicaServer(LeasedOnly(app, self.leases), "127.0.0.1")
        self.num_leased = 0

    def kill(self) -> None:
        """Close all connections, which is all that clients see of a killed process."""
        server = self.server._server
        loop = server.servers[0].get_loop()
        loop.call_soon_threadsafe(server.servers[0].close)
        for connection in list(server.server_state.connections):
            loop.call_soon_threadsafe(connection.transport.abort)

    def close(self) -> None:
        self.server.close()
        self.engine.close()


class House:
    """A front and its replicas; it leases the first replica that has not been removed."""

    def __init__(self, make: Callable[[], Replica]) -> None:
        self.replicas = [make(), make()]
        self.refusal: ApiError | None = None
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.front = Front(self.lease, max_seconds=20)
        self.call(self.front.listen("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.front.port}"

    def call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    @asynccontextmanager
    async def lease(self, seconds: float) -> AsyncIterator[Lease]:
        if self.refusal is not None:
            raise self.refusal
        if not self.replicas:
            raise LostError(may_have_died_of_it=False)
        replica = self.replicas[0]
        replica.num_leased += 1
        leases = replica.leases.held()
        lease_id = await anext(leases)
        rest = asyncio.ensure_future(anext(leases, None))
        try:
            yield Lease(replica.server.address, lease_id)
        except BaseException:
            rest.cancel()
            raise
        await asyncio.wait_for(rest, 10)  # it ends by itself once the request is answered

    def close(self) -> None:
        self.call(self.front.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()


@pytest.fixture
def house(make_loud: Callable[[Path], Any], tiny_llama: Path, tmp_path: Path) -> Iterator[House]:
    make_loud(tiny_llama).save_pretrained(tmp_path)
    load_tokenizer(tiny_llama).save_pretrained(tmp_path)
    made: list[Replica] = []

    def make() -> Replica:
        made.append(Replica(tmp_path))
        return made[-1]

    house = House(make)
    yield house
    house.close()
    for replica in made:
        replica.close()


def ask(house: House, **fields: Any) -> httpx.Response:
    return httpx.post(f"{house.url}/v1/chat/completions", json={**ASK, **fields}, timeout=20)


def events(response: httpx.Response) -> Iterator[Any]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ") if line == "data: [DONE]" else json.loads(line.removeprefix("data: "))


def text_of(found: list[Any]) -> str:
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in found[:-1])


def test_answers_pass_through_as_they_are(house: House) -> None:
    whole = ask(house)
    assert whole.status_code == 200
    assert whole.headers["x-request-id"].startswith("req-")
    streamed = list(events(ask(house, stream=True)))
    assert streamed[-1] == "[DONE]"
    assert text_of(streamed) == whole.json()["choices"][0]["message"]["content"]
    assert ask(house, colour="red").json()["error"]["param"] == "colour"
    assert httpx.get(f"{house.url}/nowhere").status_code == 404
    assert httpx.post(f"{house.url}/v1/models").status_code == 405
    assert httpx.get(f"{house.url}/v1/models").json()["data"][0]["id"] == "tiny"
    assert httpx.get(f"{house.url}/-/healthz").text == "success"
    leased = house.replicas[0].num_leased
    assert httpx.get(f"{house.url}/health").json()["release"] == "3f2a"
    assert house.replicas[0].num_leased == leased, "a GET needs no lease"


def test_a_replica_answers_nobody_without_a_lease(house: House) -> None:
    url = f"http://{house.replicas[0].server.address}/v1/chat/completions"
    assert httpx.post(url, json=ASK).status_code == 403
    assert httpx.post(url, json=ASK, headers={"rayconteur-lease": "0" * 32}).status_code == 403


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("what_dies", ["the replica", "its engine"])
def test_a_death_before_the_reply_is_invisible_to_the_client(house: House, stream: bool, what_dies: str) -> None:
    expected = ask(house).json()["choices"][0]["message"]["content"]
    first = house.replicas[0]
    if what_dies == "the replica":
        first.kill()
    else:
        first.engine.close()
    _taken_away_in(house, 0.3)
    response = ask(house, stream=stream)
    assert response.status_code == 200
    found = text_of(list(events(response))) if stream else response.json()["choices"][0]["message"]["content"]
    assert found == expected
    assert "rayconteur_front_retried_total" in httpx.get(f"{house.url}/metrics").text


def _taken_away_in(house: House, seconds: float) -> None:
    """Remove the replica after some seconds, as Ray does."""
    threading.Timer(seconds, lambda: house.replicas.pop(0)).start()


def _killed_at_work(house: House, replica: Replica) -> threading.Thread:
    """Kill it as soon as it generates something, and lease it no more."""

    def kill() -> None:
        while not replica.engine.health().num_active:
            time.sleep(0.002)
        house.replicas.remove(replica)
        replica.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_a_request_whose_replica_dies_is_retried_elsewhere(house: House) -> None:
    expected = ask(house, max_tokens=1000).json()["choices"][0]["message"]["content"]
    killer = _killed_at_work(house, house.replicas[0])
    response = ask(house, max_tokens=1000)
    killer.join()
    assert response.json()["choices"][0]["message"]["content"] == expected
    assert house.replicas[0].num_leased == 1


@pytest.mark.parametrize("what_dies", ["the replica", "its engine"])
def test_a_stream_that_is_cut_off_ends_with_an_error(house: House, what_dies: str) -> None:
    first = house.replicas[0]
    with httpx.stream(
        "POST", f"{house.url}/v1/chat/completions", json={**ASK, "stream": True, "max_tokens": 1900}, timeout=20
    ) as response:
        found = events(response)
        assert next(found)["choices"][0]["delta"]["role"] == "assistant"
        assert next(found)["choices"][0]["delta"]["content"]
        first.kill() if what_dies == "the replica" else first.engine.close()
        *_, error, done = found
    assert done == "[DONE]"
    assert error["error"]["type"] == "server_error"
    assert error["error"]["code"] == ("replica_lost" if what_dies == "the replica" else "engine_lost")


def test_a_request_that_kills_two_replicas_is_not_retried(house: House) -> None:
    first, second = house.replicas
    killers = [_killed_at_work(house, replica) for replica in (first, second)]
    response = ask(house, max_tokens=1900)
    for killer in killers:
        killer.join()
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "replica_lost"
    assert [first.num_leased, second.num_leased] == [1, 1]


def test_the_front_passes_429_on_and_is_healthy_when_idle(house: House) -> None:
    house.refusal = ApiError(429, "busy", code="queue_full", headers={"Retry-After": "1"})
    response = ask(house)
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert response.json()["error"]["type"] == "rate_limit_error"
    house.loop.call_soon_threadsafe(house.front.serve, Endpoint("tiny", "3f2a"))
    time.sleep(0.1)
    idle = {"status": "idle", "model": "tiny", "release": "3f2a"}
    assert httpx.get(f"{house.url}/health").json() == idle
    assert 'rayconteur_front_refused_total{status="429"} 1.0' in httpx.get(f"{house.url}/metrics").text


def test_a_client_that_leaves_frees_its_place(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(house, max_tokens=1)
    decoder = house.replicas[0].engine._decoder
    step = decoder.step
    # A reply of at least 19 seconds: a shorter one could end before its first piece is read on a busy machine.
    monkeypatch.setattr(decoder, "step", lambda *given: (time.sleep(0.01), step(*given))[1])
    with httpx.stream(
        "POST", f"{house.url}/v1/chat/completions", json={**ASK, "stream": True, "max_tokens": 1900}, timeout=20
    ) as response:
        next(events(response))
        assert house.replicas[0].engine.health().num_active == 1
    began = time.monotonic()
    while house.replicas[0].engine.health().num_active:
        assert time.monotonic() - began < 5
        time.sleep(0.01)


def test_metrics_of_all_replicas(house: House) -> None:
    ask(house)
    house.replicas.reverse()
    ask(house)
    ask(house)
    text = httpx.get(f"{house.url}/metrics").text
    for replica, count in zip(house.replicas, (2, 1), strict=True):
        labels = f'replica="{replica.server.address}",route="/v1/chat/completions",status="200"'
        assert f"rayconteur_requests_total{{{labels}}} {count}.0" in text
    assert text.count("# TYPE rayconteur_time_to_first_token_seconds histogram") == 1


def test_the_dashboard_shows_what_there_is(house: House) -> None:
    ask(house)
    text = httpx.get(f"{house.url}/metrics").text
    dashboard = json.loads((Path(__file__).parents[2] / "docs" / "grafana.json").read_text())
    names = set(re.findall(r"rayconteur_\w+", json.dumps([panel["targets"] for panel in dashboard["panels"]])))
    assert len(names) > 10
    assert [name for name in names if name not in text] == []
