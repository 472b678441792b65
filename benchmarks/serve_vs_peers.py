"""The endpoint compared with its peers on this machine's CPUs: SmolLM2-135M, 125 tokens in, up to 64 out, sampled.

    python benchmarks/serve_vs_peers.py --repeats 3 --write table.md

    us            `rayconteur deploy`: Ray Serve, our routes and checks, OpenVINO in a child process
    direct        OpenVINO's pipeline in one process, driven by the same load, without HTTP, Ray and checks
    serve.batch   Ray Serve's @serve.batch around transformers' generate, up to 32 at once
    fastapi       a FastAPI route around generate, one request at a time

Every request has different random prompt tokens, so no cached prefix helps; the next one is sent as soon as one is
done. Sides are separate processes, one after the other, round by round. `us` streams; the peers send the whole reply,
so their first token comes with the last one. Prints medians; the last line is one JSON object.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
import psutil
from serve_faults import free_port

HERE = Path(__file__).resolve().parent
MODEL = "builtin:smollm2-135m-instruct"
PROMPT_TOKENS, REPLY_TOKENS = 125, 64
# Number of requests for each concurrency. The peers would take minutes for more.
LOADS = {
    "us": {1: 4, 8: 24, 32: 64, 128: 128},
    "direct": {1: 4, 8: 24, 32: 64},
    "serve.batch": {8: 16, 32: 32},
    "fastapi": {1: 2, 8: 8},
}


def prompts_of(count: int, seed: int) -> list[list[int]]:
    """Tokens from 1,000 on, which are not special."""
    draw = random.Random(seed)
    return [[draw.randrange(1000, 49_000) for _ in range(PROMPT_TOKENS)] for _ in range(count)]


@contextmanager
def server(side: str, folder: str) -> Iterator[tuple[str, int]]:
    """Start a side; yields its address and its process once it answers."""
    port = free_port()
    command = [sys.executable, str(HERE / "serve_peer.py"), side, str(port), folder]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=HERE.parent)
        try:
            url = f"http://127.0.0.1:{port}"
            if not is_up(url, process):
                log.seek(0)
                sys.exit(f"{side} did not come up: {log.read()[-2000:].decode()}")
            yield url, process.pid
        finally:
            process.terminate()
            process.wait()


def is_up(url: str, process: "subprocess.Popen[bytes]") -> bool:
    """Wait until the first request is answered; raises if the process ends."""
    body = {"model": "model", "prompt": prompts_of(1, 0)[0], "max_tokens": 4}
    until = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < until:
        try:
            httpx.post(f"{url}/v1/completions", json=body, timeout=120).raise_for_status()
            return True
        except httpx.HTTPError:
            time.sleep(1)
    return False


def memory_gb(pid: int) -> float:
    """Memory of a process with its children; shared pages count for each."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(process.memory_info().rss for process in family if process.is_running()) / 1e9


async def load(url: str, at_once: int, prompts: list[list[int]], stream: bool) -> dict[str, Any]:
    """Send these requests, `at_once` of them in progress at any time; returns their outcomes."""
    waiting = iter(prompts)
    found: dict[str, Any] = {"tokens": 0, "firsts": [], "betweens": [], "refused": 0, "failed": 0}

    async def client(http: aiohttp.ClientSession) -> None:
        for prompt in waiting:
            body = {"model": "model", "prompt": prompt, "max_tokens": REPLY_TOKENS, "stream": stream}
            if stream:
                body["stream_options"] = {"include_usage": True}
            await ask(http, body)

    async def ask(http: aiohttp.ClientSession, body: dict[str, Any]) -> None:
        began = last = time.perf_counter()
        is_first, usage = True, None
        try:
            async with http.post(f"{url}/v1/completions", json=body) as response:
                if response.status == 429:
                    found["refused"] += 1
                    return
                response.raise_for_status()
                async for line in response.content:
                    if line in (b"\n", b"data: [DONE]\n") or line.startswith(b":"):  # a comment while it waits
                        continue
                    event = json.loads(line.removeprefix(b"data: "))
                    usage = event.get("usage") or usage
                    now = time.perf_counter()
                    if is_first:
                        found["firsts"].append(now - began)
                    elif event.get("choices"):
                        found["betweens"].append(now - last)
                    is_first, last = False, now
        except (aiohttp.ClientError, ValueError):
            usage = None
        if usage is None:
            found["failed"] += 1
        else:
            found["tokens"] += usage["completion_tokens"]

    start = time.perf_counter()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=900), connector=connector) as http:
        await asyncio.gather(*(client(http) for _ in range(at_once)))
    return {**found, "seconds": time.perf_counter() - start}


def run_side(side: str, folders: dict[str, str], seed: int) -> dict[int, dict[str, Any]]:
    """All loads of one side, once."""
    loads = [(at_once, prompts_of(count, seed + at_once)) for at_once, count in LOADS[side].items()]
    results: dict[int, dict[str, Any]] = {}
    if side == "direct":
        warm = (1, prompts_of(1, 0))
        done = subprocess.run(
            [sys.executable, str(HERE / "serve_peer.py"), side, json.dumps([warm, *loads]), folders["openvino"]],
            capture_output=True, text=True, check=False, cwd=HERE.parent,
        )  # fmt: skip
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")][1:]
        return {at_once: line for (at_once, _), line in zip(loads, lines, strict=True)}
    with server(side, folders["openvino" if side == "us" else "hugging face"]) as (url, pid):
        for at_once, prompts in loads:
            results[at_once] = asyncio.run(load(url, at_once, prompts, stream=side == "us"))
            results[at_once]["gb"] = memory_gb(pid)
    return results


def row_of(side: str, at_once: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, percentiles over all their requests."""
    rates = [run["tokens"] / run["seconds"] for run in runs]
    row: dict[str, Any] = {"side": side, "at_once": at_once, "tokens_per_s": round(statistics.median(rates), 1)}
    row["runs"] = [round(rate, 1) for rate in rates]
    for name, key in (("first", "firsts"), ("between", "betweens")):
        values = [value for run in runs for value in run.get(key, [])]
        if values:
            p50, p99 = np.percentile(values, [50, 99]) * 1000
            row |= {f"{name}_p50_ms": round(float(p50)), f"{name}_p99_ms": round(float(p99))}
    for name in ("refused", "failed"):
        row[name] = sum(run.get(name, 0) for run in runs)
    if "gb" in runs[0]:
        row["gb"] = round(max(run["gb"] for run in runs), 2)
    return row


def table_of(rows: list[dict[str, Any]]) -> str:
    ours = {row["at_once"]: row["tokens_per_s"] for row in rows if row["side"] == "us"}
    columns = ("runs", "first_p50_ms", "first_p99_ms", "between_p50_ms", "between_p99_ms", "refused", "failed", "gb")
    lines = [
        "| | at once | tokens/s | runs | first token p50 ms | p99 | between p50 ms | p99 | refused | failed | GB "
        "| ours / theirs |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [", ".join(map(str, row["runs"])), *(str(row.get(name, "")) for name in columns[1:])]
        at_once = row["at_once"]
        ratio = f"{ours[at_once] / row['tokens_per_s']:.2f}" if row["side"] != "us" and at_once in ours else ""
        lines.append(f"| {row['side']} | {at_once} | {row['tokens_per_s']} | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", default=",".join(LOADS))
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    from models.base.load import resolve
    from models.export.openvino_export import export

    sides = options.sides.split(",")
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folders = {"hugging face": str(resolve(MODEL)), "openvino": name}
        export(Path(folders["hugging face"]), Path(name), "bf16")
        for number in range(options.repeats):
            for side in sides:
                for at_once, result in run_side(side, folders, seed=1000 * number).items():
                    runs.setdefault((side, at_once), []).append(result)
                    rate = result["tokens"] / result["seconds"]
                    print(f"round {number + 1}: {side:<12} {at_once:>3} at once: {rate:6.1f} tokens/s", flush=True)
    rows = [row_of(side, at_once, found) for (side, at_once), found in runs.items()]
    table = table_of(rows)
    print(table)
    if options.write:
        options.write.write_text(table + "\n")
    print(json.dumps({"model": MODEL, "rows": rows}))


if __name__ == "__main__":
    main()
