"""A stuck replica reports what is stuck: its engine, the threads that render prompts, or another part."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.base.load import load_tokenizer
from serve.api.routes import create_app
from serve.api.watch import Watch
from serve.engines.base import Engine, EngineHealth
from serve.front.leases import LeasedOnly, Leases, ReplicaServer


class StandIn(Engine):
    """An engine that generates nothing; tests set its health."""

    max_positions, vocab_size, max_active = 100, 100, 4

    def __init__(self) -> None:
        self.state = EngineHealth(True, 0, 0)
        self.lock = threading.Lock()

    def submit(self, request: Any) -> Any:
        raise NotImplementedError

    def cancel(self, request_id: str) -> None: ...

    def health(self) -> EngineHealth:
        with self.lock:
            return self.state

    def close(self) -> None: ...


class Watched:
    """A watched stand-in engine with a simulated clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.tokens = 0
        self.engine = StandIn()
        self.watch = Watch(self.engine, lambda: self.tokens, 100, stuck_seconds=60, clock=lambda: self.now)

    def after(self, seconds: float) -> str | None:
        """The problem reported after this many seconds; gives parts that respond the time to do so."""
        for more in (0, seconds, 0):
            threading.Event().wait(0.1)
            self.now += more
            self.watch.problem()
        threading.Event().wait(0.1)
        return self.watch.problem()


def test_an_idle_or_busy_engine_is_healthy() -> None:
    watched = Watched()
    assert watched.after(1000) is None
    watched.engine.state = EngineHealth(True, 3, 5)
    for _ in range(5):
        watched.tokens += 1
        assert watched.after(90) is None


def test_an_engine_that_generates_nothing_is_stuck_after_the_maximum_reply_time() -> None:
    watched = Watched()
    watched.engine.state = EngineHealth(True, 1, 0)
    assert watched.after(50) is None
    assert watched.after(50) is None
    assert watched.after(20) == "the engine has generated no token for 120 seconds"
    watched.tokens += 1
    assert watched.after(1) is None


def test_an_engine_that_has_stopped_or_does_not_report_its_health() -> None:
    watched = Watched()
    watched.engine.state = EngineHealth(False, 0, 0)
    assert watched.watch.problem() == "the engine has stopped"
    watched.engine.state = EngineHealth(True, 0, 0)
    assert watched.after(1) is None
    with watched.engine.lock:
        watched.watch.problem()
        assert watched.after(59) is None
        assert watched.after(2) == "the engine: no answer for 61 seconds"
    assert watched.after(0) is None


def test_threads_without_progress_are_stuck() -> None:
    watched, go_on = Watched(), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        watched.watch.add("the pool", lambda: pool.submit(int))
        stuck = [pool.submit(go_on.wait)]
        assert watched.after(1000) is None, "one of two is free"
        stuck.append(pool.submit(go_on.wait))
        assert watched.after(50) is None
        problem = watched.after(20)
        go_on.set()
        assert problem == "the pool: no answer for 70 seconds"
        assert watched.after(0) is None


@pytest.mark.parametrize("part", ["prompts", "server"])
def test_a_replica_whose_parts_are_stuck_fails_its_health(
    part: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watch.__init__, "__defaults__", (0.2, *(Watch.__init__.__defaults__ or ())[1:]))
    app, leases = create_app(StandIn(), load_tokenizer(tiny_llama), "tiny"), Leases()
    server = ReplicaServer(LeasedOnly(app, leases), "127.0.0.1")
    watch: Watch = app.state.watch
    watch.add("the HTTP server", server.answers)
    health = f"http://{server.address}/health"
    assert httpx.get(health).json() == {"status": "ok", "model": "tiny", "release": ""}
    go_on = threading.Event()
    if part == "prompts":
        pool = watch._parts["the prompt threads"]
        stuck: list[Future[Any]] = []
        threads = _pool_of(pool.ask)
        stuck = [threads.submit(go_on.wait) for _ in range(threads._max_workers)]
        assert len(stuck) > 1
    else:
        loop = server._server.servers[0].get_loop()
        loop.call_soon_threadsafe(go_on.wait)
    _until(lambda: watch.problem() is not None)
    expected = "the prompt threads" if part == "prompts" else "the HTTP server"
    assert str(watch.problem()).startswith(expected)
    if part == "prompts":
        answer = httpx.get(health)
        assert (answer.status_code, answer.json()["status"]) == (503, "failed")
    go_on.set()
    _until(lambda: watch.problem() is None)
    assert httpx.get(health).status_code == 200
    server.close()


def _pool_of(ask: Callable[..., Any]) -> ThreadPoolExecutor:
    pool: ThreadPoolExecutor = ask.__self__._threads  # type: ignore[attr-defined]
    return pool


def _until(is_so: Callable[[], bool]) -> None:
    async def poll() -> None:
        async with asyncio.timeout(10):
            while not is_so():
                await asyncio.sleep(0.05)

    asyncio.run(poll())
