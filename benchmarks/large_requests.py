"""What very large requests cost other clients: chats of 3.9 MB beside a plain one, and bodies of 64 MB without a key.

    python benchmarks/large_requests.py

The front, and a replica's API over an engine that only counts, are separate processes. Sends eight chats of 3.9 MB at
a time, repeatedly, while plain requests are sent one after the other: milliseconds of the slowest plain one, alone
and beside them. Then sends 100 requests of 64 MB at once, without a key, to a front that requires one, with and
without a Content-Length: the front's memory before and its maximum. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from api_cost import READY

LARGE, NUM_LARGE, SECONDS = 3_900_000, 8, 10
HUGE, NUM_HUGE = 64 << 20, 100
HELLO = [{"role": "user", "content": "Hi"}]


def serve_closed_front() -> None:
    """A front that requires a key, without a replica."""
    import uvloop

    from serve.access.api_keys import KeyRing
    from serve.front.server import Front

    async def listen() -> None:
        front = Front(lambda seconds: None, 600, keys=KeyRing(list))  # type: ignore[arg-type,return-value]
        await front.listen("127.0.0.1", 0)
        print(f"{READY}127.0.0.1:{front.port}", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

    uvloop.run(listen())


def start(*command: str) -> tuple["subprocess.Popen[str]", str]:
    """Start a process; yields it and its address."""
    process = subprocess.Popen([sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(READY):
            return process, line.removeprefix(READY).strip()
    raise SystemExit(f"{' '.join(command)} ended")


def slowest_plain(url: str, seconds: float) -> float:
    """Send plain requests for this many seconds; returns the milliseconds of the slowest."""
    slowest, until = 0.0, time.monotonic() + seconds
    with httpx.Client(timeout=60) as client:
        while time.monotonic() < until:
            began = time.monotonic()
            answer = client.post(url, json={"model": "timer", "max_tokens": 1, "messages": HELLO})
            assert answer.status_code == 200, answer.text
            slowest = max(slowest, time.monotonic() - began)
    return round(slowest * 1000)


def beside_large(url: str) -> dict[str, Any]:
    """The slowest plain request beside the large ones, and the large ones' statuses."""
    body = json.dumps({"model": "timer", "messages": [{"role": "user", "content": "word " * (LARGE // 5)}]})
    is_enough = threading.Event()
    statuses: list[int] = []

    def send() -> None:
        headers = {"Content-Type": "application/json"}
        while not is_enough.is_set():
            statuses.append(httpx.post(url, content=body, headers=headers, timeout=60).status_code)

    with ThreadPoolExecutor(NUM_LARGE) as threads:
        for _ in range(NUM_LARGE):
            threads.submit(send)
        slowest = slowest_plain(url, SECONDS)
        is_enough.set()
    return {"slowest_ms": slowest, "large_requests": len(statuses), "statuses": sorted(set(statuses))}


async def send_huge(address: str, says_size: bool) -> int:
    """Send a request of 64 MB as far as the server reads it; returns the status."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    size = f"Content-Length: {HUGE}" if says_size else "Transfer-Encoding: chunked"
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{size}\r\n\r\n"
    writer.write(head.encode())
    piece = b"x" * (1 << 16)
    answer = asyncio.create_task(reader.readline())
    try:
        for _ in range(HUGE // len(piece)):
            if answer.done():
                break
            writer.write(piece if says_size else b"10000\r\n" + piece + b"\r\n")
            await writer.drain()
    except ConnectionError:
        pass
    try:
        status = int((await answer).split()[1])
    except (ConnectionError, IndexError):
        status = 0
    writer.close()
    return status


async def all_huge(address: str, pid: int, says_size: bool) -> dict[str, Any]:
    """The statuses, and the front's memory in MB before and at its maximum."""
    before = most = memory(pid)
    asking = [asyncio.create_task(send_huge(address, says_size)) for _ in range(NUM_HUGE)]
    while not all(task.done() for task in asking):
        most = max(most, memory(pid))
        await asyncio.sleep(0.02)
    statuses = [task.result() for task in asking]
    return {"mb_before": before, "mb_most": most, "statuses": {each: statuses.count(each) for each in set(statuses)}}


def memory(pid: int) -> int:
    """Resident memory of a process in MB."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * 4096 >> 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--closed-front", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().closed_front:
        serve_closed_front()
        return
    cost = str(Path(__file__).with_name("api_cost.py"))
    opened, result = [], {}
    try:
        replica, replica_address = start(cost, "--replica")
        opened.append(replica)
        front, address = start(cost, "--front", replica_address)
        opened.append(front)
        url = f"http://{address}/v1/chat/completions"
        result["alone_ms"] = slowest_plain(url, SECONDS)
        print(f"the slowest plain request alone: {result['alone_ms']} ms", flush=True)
        result["beside_large"] = beside_large(url)
        print(f"beside {NUM_LARGE} chats of 3.9 MB at once: {result['beside_large']}", flush=True)
        closed, address = start(__file__, "--closed-front")
        opened.append(closed)
        for name, says_size in (("size_said", True), ("chunked", False)):
            result[name] = asyncio.run(all_huge(address, closed.pid, says_size))
            print(f"{NUM_HUGE} bodies of 64 MB without a key, {name}: {result[name]}", flush=True)
    finally:
        for process in opened:
            process.kill()
            process.wait()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
