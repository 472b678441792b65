"""The CPU cost of a streamed token without a model: a replica's API and the front, of this build or another one.

    python benchmarks/api_cost.py
    python benchmarks/api_cost.py --before DIR      # alternately with the build in DIR, such as an earlier commit
    python benchmarks/api_cost.py --vllm PYTHON     # alternately with the server of the vLLM in that Python

An engine yields a token every 20 ms to each of 64 streams. Client, front and replica are separate processes. The cost
is a process's CPU time, user and system, divided by the tokens, from when all streams have begun until the first of
them ends. vLLM's server (benchmarks/api_cost_vllm.py) has the same tokenizer and gets the same requests without a
front. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

NUM_STREAMS, TOKENS, PAUSE_SECONDS = 64, 500, 0.02
MODEL = "random:tiny-llama"
LEASE_PATH = "/lease"
READY = "listens at "


def token_of(left: int) -> int:
    """A whole letter, so that each token is an event; for half a character, vLLM would send an event and we would
    not.
    """
    return 3 + left % 90


def of_build(name: str, earlier: str) -> Any:
    """A module of the measured build, by its present name or by an earlier one."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        return import_module(earlier)


def timer_engine() -> Any:
    """All streams get their next token at the same moment, as from a batch."""
    from serve.engines.base import Engine, EngineHealth, Event, TokenEvent, tokens_of

    class Timer(Engine):
        max_positions, vocab_size, max_active = 100_000, 128, 256

        def __init__(self) -> None:
            self.left: dict[asyncio.Queue[Event], int] = {}
            self.ticking: asyncio.Task[None] | None = None

        async def submit(self, request: Any) -> AsyncGenerator[TokenEvent, None]:
            self.ticking = self.ticking or asyncio.create_task(self.tick())
            events: asyncio.Queue[Event] = asyncio.Queue()
            self.left[events] = request.max_new_tokens
            try:
                async for event in tokens_of(events):
                    yield event
            finally:
                self.left.pop(events, None)

        async def tick(self) -> None:
            loop = asyncio.get_running_loop()
            while True:
                await asyncio.sleep(PAUSE_SECONDS - loop.time() % PAUSE_SECONDS)
                for events, left in list(self.left.items()):
                    if left:
                        self.left[events] = left - 1
                        events.put_nowait(TokenEvent(token_of(left), "length" if left == 1 else None))

        def cancel(self, request_id: str) -> None: ...

        def health(self) -> EngineHealth:
            return EngineHealth(True, len(self.left), 0)

        def close(self) -> None: ...

    return Timer()


def serve_replica() -> None:
    """The API in this process, with leases for any front."""
    base, routes = of_build("models.base.load", "models.base"), of_build("serve.api.routes", "serve.api")
    at_front = of_build("serve.front.leases", "serve.leases")
    leases = at_front.Leases()
    app = routes.create_app(timer_engine(), base.load_tokenizer(base.resolve(MODEL)), "timer")
    app = at_front.LeasedOnly(app, leases)

    async def with_leases(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") != LEASE_PATH:
            await app(scope, receive, send)
            return
        held = leases.held()
        body = (await anext(held)).encode()
        waiting.add(task := asyncio.ensure_future(anext(held, None)))
        task.add_done_callback(waiting.discard)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    waiting: set[Any] = set()
    print(READY + at_front.ReplicaServer(with_leases, "127.0.0.1").address, flush=True)
    sys.stdin.read()


def serve_front(replica: str) -> None:
    """The front in this process, with the same event loop as on a cluster."""
    import httpx

    server = of_build("serve.front.server", "serve.front")
    client = httpx.AsyncClient()

    @asynccontextmanager
    async def lease(seconds: float) -> AsyncIterator[Any]:
        yield server.Lease(replica, (await client.get(f"http://{replica}{LEASE_PATH}")).text)

    async def listen() -> None:
        front = server.Front(lease, max_seconds=600)
        await front.listen("127.0.0.1", 0)
        print(f"{READY}127.0.0.1:{front.port}", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

    # A build without uvloop in its front runs in asyncio's event loop.
    folder = Path(str(import_module("serve").__file__)).parent
    actors = [folder / "deployment" / "front_actor.py", folder / "front_actor.py"]
    if any(file.exists() and "uvloop" in file.read_text() for file in actors):
        import uvloop

        uvloop.run(listen())
    else:
        asyncio.run(listen())


async def ask(address: str, first: list[float], counts: list[int], ended: asyncio.Event) -> None:
    """One stream, read as bytes so that the client uses little CPU."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    messages = [{"role": "user", "content": "Hi"}]
    body = json.dumps({"model": "timer", "stream": True, "max_tokens": TOKENS, "messages": messages}).encode()
    head = f"Host: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\n" + head.encode() + body)
    number = len(counts)
    counts.append(0)
    while b"[DONE]" not in (piece := await reader.read(1 << 16)):
        assert piece, "a stream was cut off"
        counts[number] += piece.count(b"data: ")
        if len(first) <= number and counts[number]:
            first.append(time.perf_counter())
    ended.set()
    writer.close()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(address: str, pids: dict[str, int]) -> dict[str, float]:
    """CPU microseconds per token of each process."""
    first: list[float] = []
    counts: list[int] = []
    ended = asyncio.Event()
    asking = [asyncio.create_task(ask(address, first, counts, ended)) for _ in range(NUM_STREAMS)]
    while len(first) < NUM_STREAMS:
        await asyncio.sleep(0.1)
    before, begun = {name: cpu_seconds(pid) for name, pid in pids.items()}, sum(counts)
    await ended.wait()
    tokens = sum(counts) - begun
    found = {name: (cpu_seconds(pid) - before[name]) / tokens * 1e6 for name, pid in pids.items()}
    await asyncio.gather(*asking)
    return found


@contextmanager
def servers(source: str) -> Iterator[Callable[..., tuple[int, str]]]:
    """Yields a function that starts a command in the folder `source` and returns its pid and address; all processes
    end with the block.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": source,
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    opened = []

    def start(*command: str) -> tuple[int, str]:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=source, env=environment
        )
        opened.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(READY):
                return process.pid, line.removeprefix(READY).strip()
            if line.startswith("vllm "):
                print(line.strip(), flush=True)
        raise SystemExit(f"{' '.join(command)} ended")

    try:
        yield start
    finally:
        for process in opened:
            process.kill()
            process.wait()


def one_run(source: str) -> dict[str, float]:
    """One run of the build in the folder `source`."""
    this = sys.executable, str(Path(__file__).resolve())
    with servers(source) as start:
        replica, replica_address = start(*this, "--replica")
        front, address = start(*this, "--front", replica_address)
        return asyncio.run(measure(address, {"replica": replica, "front": front}))


def one_run_of_vllm(python: str) -> dict[str, float]:
    """vLLM's server alone."""
    from models.base.load import resolve

    here = Path(__file__).resolve().parent
    with servers(str(here)) as start:
        server, address = start(python, "api_cost_vllm.py", str(resolve(MODEL)), str(PAUSE_SECONDS))
        return asyncio.run(measure(address, {"server": server}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="folder of another build")
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment with vLLM")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--replica", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--front", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.replica:
        serve_replica()
    elif asked.front:
        serve_front(asked.front)
    else:
        here = str(Path(__file__).resolve().parents[1])
        ways: dict[str, Callable[[], dict[str, float]]] = {"now": partial(one_run, here)}
        if asked.before:
            ways["before"] = partial(one_run, asked.before)
        if asked.vllm:
            ways["vllm"] = partial(one_run_of_vllm, asked.vllm)
        report(ways, asked.runs)


def report(ways: dict[str, Callable[[], dict[str, float]]], num_runs: int) -> None:
    """Measure the sides alternately; prints medians and ratios."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(num_runs):
        for name, measured in ways.items():
            found[name].append(run := measured())
            print(f"{name:<7}" + "".join(f"  {part} {us:5.1f} us a token" for part, us in run.items()), flush=True)
    medians = {
        name: {part: statistics.median(run[part] for run in runs) for part in runs[0]} for name, runs in found.items()
    }
    now, before, vllm = (medians.get(name, {}) for name in ("now", "before", "vllm"))
    ratios = {f"{part} to before": now[part] / before[part] for part in before}
    if vllm:
        ratios |= {"replica to vllm": now["replica"] / vllm["server"]}
        ratios |= {"replica and front to vllm": sum(now.values()) / vllm["server"]}
    rounded = {name: {part: round(us, 1) for part, us in parts.items()} for name, parts in medians.items()}
    told = {name: round(ratio, 2) for name, ratio in ratios.items()}
    print(json.dumps({"streams": NUM_STREAMS, "pause_ms": PAUSE_SECONDS * 1000, "medians": rounded, "ratios": told}))


if __name__ == "__main__":
    main()
