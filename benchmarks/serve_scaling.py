"""How long replicas take to follow the load, and what happens to the requests meanwhile.

    python benchmarks/serve_scaling.py

SmolLM2 on Ray Serve on this machine: from no replica (the first request's wait) to one, to three when 16 clients send
requests at once, back to one when the clients leave, and to none. Ray is told of more CPUs than the machine has, so
that the cluster has capacity; replicas share the CPUs, so they start more slowly than on a real cluster.
"""

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
from serve_faults import Load, deploy, export_of_smollm2, free_port, processes

SCALING: dict[str, Any] = {
    "min_replicas": 0, "max_replicas": 3, "target_ongoing_requests": 4.0, "upscale_delay_seconds": 1.0,
    "downscale_delay_seconds": 5.0,
}  # fmt: skip


async def seconds_until(is_so: Callable[[], bool], at_most: float = 180) -> float:
    began = time.monotonic()
    while not is_so():
        if time.monotonic() - began > at_most:
            raise SystemExit(f"not so after {at_most} s")
        await asyncio.sleep(0.1)
    return round(time.monotonic() - began, 1)


async def answering(url: str, count: int) -> float:
    """Seconds until this many replicas answer, according to the front."""
    began = time.monotonic()
    async with aiohttp.ClientSession() as client:
        while True:
            async with client.get(f"{url}/metrics") as answer:
                lines = (await answer.text()).splitlines()
            if sum(line.startswith("rayconteur_slots{") for line in lines) >= count:
                return round(time.monotonic() - began, 1)
            await asyncio.sleep(0.2)


async def measure(url: str) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    await seconds_until(lambda: len(processes("ray::ServeReplica")) == 0)
    one = Load(url)
    async with aiohttp.ClientSession() as client:
        began = time.monotonic()
        body = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 8,
            "stream": False,
        }
        figures["first_request_from_none"] = await one._ask(client, body, None)
        figures["seconds_from_none"] = round(time.monotonic() - began, 1)
    load = Load(url)
    running = asyncio.create_task(load.run())
    figures["seconds_from_one_to_three"] = await answering(url, 3)
    await asyncio.sleep(15)
    load.is_over = True
    await running
    figures["seconds_from_three_to_one"] = await seconds_until(lambda: len(processes("ray::ServeReplica")) <= 1)
    figures["seconds_from_one_to_none"] = await seconds_until(lambda: len(processes("ray::ServeReplica")) == 0)
    outcomes = dict(load.outcomes)
    return {**figures, "sent": sum(outcomes.values()), **outcomes, "problems": load.problems[:5]}


def main() -> None:
    import ray

    from workflows.cluster.connection import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        export_of_smollm2(Path(folder))
        ray.init(address="local", num_cpus=4, log_to_driver=False, logging_level="ERROR")
        deploy(folder, "first", port, **SCALING)
        print(json.dumps(asyncio.run(measure(f"http://127.0.0.1:{port}"))))
        ray.shutdown()


if __name__ == "__main__":
    main()
