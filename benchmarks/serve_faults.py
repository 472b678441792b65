"""The endpoint under faults: how many requests are answered, refused, cut off and lost.

    python benchmarks/serve_faults.py --seconds 300

SmolLM2 on Ray Serve on this machine, two replicas of one thread, 16 concurrent clients, half of them streaming. One
after the other: a rolling update, `kill -9` of a replica, `kill -9` of an engine's process, clients that disconnect
in mid-reply. A request is lost if its client got neither a complete reply, nor a refusal, nor a stream that states
why it ended.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil

TEXTS = (
    "What time is it in Lisbon?",
    "Tell me a story about a lighthouse.",
    "Name five rivers.",
    "Write to my aunt.",
)
AT_ONCE = 16


def export_of_smollm2(folder: Path) -> None:
    from models.base.load import resolve
    from models.export.openvino_export import export

    export(resolve("builtin:smollm2-135m-instruct"), folder, "bf16")


def free_port() -> int:
    """A port outside the range from which Ray's processes get theirs."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def deploy(folder: str, release: str, port: int, **scaling: Any) -> None:
    from serve.api.settings import ApiSettings
    from serve.deployment.application import build
    from serve.deployment.front_actor import run_endpoint
    from serve.deployment.settings import EngineSettings, Scaling, ServedRelease
    from serve.front.server import Endpoint

    two = {"min_replicas": 2, "max_replicas": 2}
    app = build(
        ServedRelease(folder, release, "smollm2"),
        EngineSettings("openvino"),
        Scaling(surge=True, **(scaling or two)),
        ApiSettings(max_seconds=120.0),
    )
    run_endpoint(app, "faults", "127.0.0.1", port, 120.0, Endpoint("smollm2", release))


def processes(name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(name in part for part in process.cmdline()):
                found.append(process)
    return found


def memory_gb() -> float:
    """Private memory of the replicas, their engines and the front."""
    ours = [*processes("ray::ServeReplica"), *processes("openvino_process"), *processes("ray::FrontActor")]
    return round(sum(process.memory_full_info().uss for process in ours) / 1e9, 2)


class Load:
    """16 clients that send one request after the other."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_over = False
        self.outcomes: Counter[str] = Counter()
        self.problems: list[str] = []
        self.vanishing = False

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=150)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as client:
            await asyncio.gather(*(self._client(client, number) for number in range(AT_ONCE)))

    async def _client(self, client: aiohttp.ClientSession, number: int) -> None:
        draw = random.Random(number)
        while not self.is_over:
            body = {
                "model": "smollm2",
                "messages": [{"role": "user", "content": draw.choice(TEXTS)}],
                "max_tokens": draw.randrange(8, 64),
                "stream": number % 2 == 0,
            }
            vanishes = self.vanishing and draw.random() < 0.5
            try:
                outcome = await self._ask(client, body, draw.uniform(0.05, 1.0) if vanishes else None)
            except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
                outcome = "lost"
                self.problems.append(repr(error))
            self.outcomes[outcome] += 1

    async def _ask(self, client: aiohttp.ClientSession, body: dict[str, Any], leave_after: float | None) -> str:
        try:
            async with asyncio.timeout(leave_after):
                async with client.post(f"{self.url}/v1/chat/completions", json=body) as answer:
                    return await self._outcome(answer, body["stream"])
        except TimeoutError:
            if leave_after is None:
                raise
            return "left"

    async def _outcome(self, answer: aiohttp.ClientResponse, stream: bool) -> str:
        text = (await answer.read()).decode()
        if answer.status == 429:
            return "refused"
        if answer.status != 200:
            self.problems.append(f"{answer.status} {text[:200]}")
            return "failed"
        if not stream:
            return "answered" if json.loads(text)["choices"][0]["finish_reason"] else "lost"
        if not text.endswith("data: [DONE]\n\n"):
            self.problems.append(f"a stream without an end: ...{text[-200:]}")
            return "lost"
        if '"error"' in text:
            return "cut off, and told"
        return "answered"


async def slots_in_use(url: str) -> float:
    async with aiohttp.ClientSession() as client, client.get(f"{url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    names = ("rayconteur_replies_active", "rayconteur_replies_waiting")
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names))


async def happening(load: Load, folder: str, port: int, seconds: float) -> AsyncIterator[dict[str, Any]]:
    """Cause one fault after the other, each for a share of the time."""
    share = seconds / 5
    for what in ("nothing", "rolling update", "kill -9 of a replica", "kill -9 of an engine", "clients vanish"):
        before, began = load.outcomes.copy(), time.monotonic()
        if what == "rolling update":
            await asyncio.to_thread(deploy, folder, f"release {time.time():.0f}", port)
        if what == "kill -9 of a replica":
            processes("ray::ServeReplica")[0].send_signal(signal.SIGKILL)
        if what == "kill -9 of an engine":
            processes("openvino_process")[0].send_signal(signal.SIGKILL)
        took = time.monotonic() - began
        load.vanishing = what == "clients vanish"
        await asyncio.sleep(max(5.0, share - took))
        load.vanishing = False
        outcomes = dict(load.outcomes - before)
        yield {"while": what, "seconds": round(time.monotonic() - began, 1), **outcomes}


async def measure(folder: str, port: int, seconds: float) -> dict[str, Any]:
    url = f"http://127.0.0.1:{port}"
    load = Load(url)
    running = asyncio.create_task(load.run())
    await asyncio.sleep(min(20.0, seconds / 10))  # until the caches are full
    start_gb = memory_gb()
    parts = []
    async for part in happening(load, folder, port, seconds):
        print(json.dumps(part), flush=True)
        parts.append(part)
    load.is_over = True
    await running
    await asyncio.sleep(3)
    outcomes = load.outcomes
    return {
        "parts": parts,
        "sent": sum(outcomes.values()),
        **dict(outcomes),
        "lost": outcomes["lost"] + outcomes["failed"],
        "slots_in_use_afterwards": await slots_in_use(url),
        "replicas_afterwards": len(processes("ray::ServeReplica")),
        "memory_gb_start": start_gb,
        "memory_gb_end": memory_gb(),
        "problems": load.problems[:10],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    seconds = parser.parse_args().seconds

    import ray

    from workflows.cluster.connection import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        export_of_smollm2(Path(folder))
        # More CPUs than the machine has, because an update starts a replica before it stops another.
        ray.init(address="local", num_cpus=4, log_to_driver=False, logging_level="ERROR")
        deploy(folder, "first", port)
        print(json.dumps(asyncio.run(measure(folder, port, seconds))))
        ray.shutdown()


if __name__ == "__main__":
    main()
