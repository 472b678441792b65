"""A grammar compiler that takes a minute or 4 GB, and eight streams at the same time.

    python benchmarks/grammar_guard.py --rounds 3

SmolLM2 on one HTTP server in its own process, with a stand-in for the compiler: it sleeps for 60 s or allocates 4 GB
if a request says so. Measures eight streams alone; beside a request that takes a minute and one that takes 4 GB; and
beside 20 of both kinds at once. Reports the responses to those requests, the time between two tokens of a stream, and
the memory of the server with all its processes.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

STREAMS = 8
STAND_IN = "tests.unit.grammar_stand_in:stand_in"
CHAT = "/v1/chat/completions"
NUMBERS = itertools.count()


def export_of_smollm2(folder: Path) -> None:
    from models.base.load import load_tokenizer, resolve
    from models.export.openvino_export import export

    release = resolve("builtin:smollm2-135m-instruct")
    export(release, folder, "bf16")
    load_tokenizer(release).save_pretrained(folder)


def serve(folder: str, port: int) -> None:
    import uvicorn

    from models.base.load import load_tokenizer
    from serve.api.routes import create_app
    from serve.api.settings import ApiSettings
    from serve.engines.openvino import OpenVINOEngine
    from serve.grammar import process as grammar_process

    grammar_process.COMPILER = STAND_IN
    engine = OpenVINOEngine(folder, num_threads=max(1, (os.cpu_count() or 2) - 1))
    app = create_app(engine, load_tokenizer(folder), "m", settings=ApiSettings(max_queued_requests=64))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


@contextlib.contextmanager
def server(folder: str) -> Iterator[tuple[str, psutil.Process]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[1]
    process = subprocess.Popen([sys.executable, __file__, "--serve", folder, str(port)], cwd=root)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(url + "/health").status_code == 200:
                    break
            time.sleep(0.2)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def memory_mb(process: psutil.Process) -> float:
    total = 0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += one.memory_info().rss
    return total / 2**20


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "Tell me of a lighthouse."}], **fields}


def with_constant(constant: str) -> dict[str, Any]:
    schema = {"const": f"{constant} {next(NUMBERS)}"}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return chat(response_format=wanted, max_tokens=100)


async def answer(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[int, float]:
    began = time.perf_counter()
    response = await client.post(CHAT, json=body)
    return response.status_code, time.perf_counter() - began


async def gaps(client: httpx.AsyncClient, is_enough: asyncio.Event) -> AsyncIterator[float]:
    """Seconds between two tokens, for one stream after the other."""
    body = chat(stream=True, max_tokens=400, ignore_eos=True, temperature=1)
    while not is_enough.is_set():
        last = 0.0
        async with client.stream("POST", CHAT, json=body) as response:
            async for line in response.aiter_lines():
                if '"content"' not in line:
                    continue
                now = time.perf_counter()
                if last:
                    yield now - last
                last = now
                if is_enough.is_set():
                    return


async def phase(
    client: httpx.AsyncClient, is_bad: bool, seconds: float
) -> tuple[list[float], list[tuple[int, float]]]:
    is_enough = asyncio.Event()

    async def read() -> list[float]:
        return [gap async for gap in gaps(client, is_enough)]

    readers = [asyncio.create_task(read()) for _ in range(STREAMS)]
    await asyncio.sleep(2)
    began, answers = time.perf_counter(), []
    if is_bad:
        two = [with_constant("sleep 60 s"), with_constant("take 4096 MiB")]
        answers += await asyncio.gather(*(answer(client, body) for body in two))
        many = [with_constant(("sleep 60 s", "take 4096 MiB")[number % 2]) for number in range(20)]
        answers += await asyncio.gather(*(answer(client, body) for body in many))
    await asyncio.sleep(max(0.0, seconds - (time.perf_counter() - began)))
    is_enough.set()
    return [gap for found in await asyncio.gather(*readers) for gap in found], answers


def p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


async def run(url: str, process: psutil.Process, rounds: int, seconds: float) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        good = await answer(client, with_constant("fine"))
        await phase(client, is_bad=False, seconds=3)
        before = memory_mb(process)
        alone: list[float] = []
        beside: list[float] = []
        answers: list[tuple[int, float]] = []
        ratios = []
        for number in range(rounds):
            quiet, _ = await phase(client, is_bad=False, seconds=seconds)
            loud, told = await phase(client, is_bad=True, seconds=seconds)
            alone, beside, answers = alone + quiet, beside + loud, answers + told
            ratios.append(p99(loud) / p99(quiet))
            print(
                f"round {number + 1}: p99 {p99(quiet) * 1000:.0f} ms alone, {p99(loud) * 1000:.0f} ms beside; "
                f"answers {sorted({status for status, _ in told})} in at most {max(took for _, took in told):.1f} s"
            )
        return {
            "good_status": good[0],
            "bad_answers": len(answers),
            "bad_statuses": sorted({status for status, _ in answers}),
            "slowest_answer_s": round(max(took for _, took in answers), 2),
            "p99_alone_ms": round(p99(alone) * 1000, 1),
            "p99_beside_ms": round(p99(beside) * 1000, 1),
            "p99_ratio": round(p99(beside) / p99(alone), 2),
            "p99_ratios": [round(ratio, 2) for ratio in ratios],
            "median_ratio": round(sorted(beside)[len(beside) // 2] / sorted(alone)[len(alone) // 2], 2),
            "memory_before_mb": round(before),
            "memory_after_mb": round(memory_mb(process)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each phase")
    parser.add_argument("--serve", nargs=2, metavar=("FOLDER", "PORT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve[0], int(arguments.serve[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        export_of_smollm2(Path(folder))
        with server(folder) as (url, process):
            print(json.dumps(asyncio.run(run(url, process, arguments.rounds, arguments.seconds))))


if __name__ == "__main__":
    main()
