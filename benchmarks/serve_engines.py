"""The engines compared, without HTTP and Ray: SmolLM2-135M on this machine's CPUs.

    python benchmarks/serve_engines.py

Every request has different prompt tokens (no cached prefix helps) and no end token; the next one is sent as soon as
one is done. Prints output tokens per second and the time to the first token; the last line is one JSON object.
"""

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from models.base.load import resolve
from models.base.sizes import describe
from models.export.openvino_export import export
from serve.engines.base import Engine, GenerationRequest
from serve.engines.openvino import OpenVINOEngine
from serve.engines.torch import TorchEngine

MODEL = "builtin:smollm2-135m-instruct"
PROMPT_TOKENS, REPLY_TOKENS = 125, 64
NUM_REQUESTS = {1: 4, 8: 16, 32: 32}
"""number of requests for each concurrency"""


@dataclass(frozen=True)
class Row:
    """The figures of one engine at one concurrency."""

    engine: str
    at_once: int
    requests: int
    output_tokens_per_s: float
    first_token_p50_ms: float
    first_token_p99_ms: float


def requests_of(count: int, vocab_size: int, seed: int) -> Iterator[GenerationRequest]:
    """A sampled request, so that no reply repeats itself."""
    draw = random.Random(seed)
    for _ in range(count):
        yield GenerationRequest([draw.randrange(vocab_size) for _ in range(PROMPT_TOKENS)], REPLY_TOKENS)


async def first_token_s(engine: Engine, request: GenerationRequest) -> float:
    """Read a reply to its end; returns the seconds to its first token."""
    began = time.perf_counter()
    first = 0.0
    num_tokens = 0
    async for _ in engine.submit(request):
        num_tokens += 1
        first = first or time.perf_counter() - began
    assert num_tokens == REPLY_TOKENS
    return first


async def load(engine: Engine, name: str, at_once: int, count: int, vocab_size: int) -> Row:
    """Send `count` requests, `at_once` of them in progress at any time."""
    waiting = requests_of(count, vocab_size, seed=at_once)
    firsts: list[float] = []

    async def client() -> None:
        for request in waiting:
            firsts.append(await first_token_s(engine, request))

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(at_once)))
    rate = count * REPLY_TOKENS / (time.perf_counter() - began)
    p50, p99 = np.percentile(firsts, [50, 99]) * 1000
    return Row(name, at_once, count, round(rate, 1), round(float(p50)), round(float(p99)))


def measure(engine: Engine, name: str, vocab_size: int) -> list[Row]:
    """Run all loads on one engine, after a warm-up request, and close it."""
    rows = []
    try:
        asyncio.run(load(engine, name, 1, 1, vocab_size))
        for at_once, count in NUM_REQUESTS.items():
            row = asyncio.run(load(engine, name, at_once, count, vocab_size))
            print(
                f"{row.engine:<14} {row.at_once:>2} at once: {row.output_tokens_per_s:6.1f} tokens/s, "
                f"first token {row.first_token_p50_ms:,.0f} ms (p50) {row.first_token_p99_ms:,.0f} ms (p99)",
                flush=True,
            )
            rows.append(row)
    finally:
        engine.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of every engine")
    threads = parser.parse_args().threads
    folder = resolve(MODEL)
    vocab_size = describe(folder)["vocab_size"]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for weights in ("bf16", "int8"):
            export(folder, Path(name) / weights, weights)
            engine = OpenVINOEngine(Path(name) / weights, num_threads=threads)
            rows += measure(engine, f"openvino {weights}", vocab_size)
    rows += measure(TorchEngine(folder, num_threads=threads), "torch", vocab_size)
    print(json.dumps({"model": MODEL, "threads": threads, "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
