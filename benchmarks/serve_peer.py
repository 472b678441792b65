"""The servers of serve_vs_peers.py, each in its own process: `python benchmarks/serve_peer.py SIDE PORT FOLDER`.

All of them implement the part of /v1/completions that the load generator uses: token ids in, sampled tokens out.
"""

import asyncio
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

THREADS = os.cpu_count() or 1


def prompts_and_lengths(bodies: list[dict[str, Any]]) -> tuple[list[list[int]], int]:
    return [body["prompt"] for body in bodies], max(body["max_tokens"] for body in bodies)


class Generator:
    """transformers' `generate` over a batch, padded on the left, in the faster number format."""

    def __init__(self, folder: str) -> None:
        import torch

        from models.base.load import load_model, load_tokenizer
        from models.base.precision import dtype_of

        torch.set_num_threads(THREADS)
        self._torch = torch
        self._model = load_model(folder, dtype_of("auto")).eval()
        self._pad = load_tokenizer(folder).eos_token_id

    def replies(self, prompts: list[list[int]], max_tokens: int) -> list[int]:
        """How many tokens each reply has."""
        torch = self._torch
        longest = max(map(len, prompts))
        ids = torch.tensor([[self._pad] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            out = self._model.generate(
                ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=True, pad_token_id=self._pad
            )
        new = out[:, longest:]
        ended = (new == self._pad).int()
        return [int(row.argmax()) + 1 if row.any() else len(row) for row in ended]


def answer(num_tokens: int) -> dict[str, Any]:
    return {"usage": {"completion_tokens": num_tokens}}


def fastapi(port: int, folder: str) -> None:
    """A common first version: a FastAPI route around `generate`, one request at a time."""
    import uvicorn
    from fastapi import FastAPI

    app, generator, lock = FastAPI(), Generator(folder), threading.Lock()

    @app.post("/v1/completions")
    def completions(body: dict[str, Any]) -> dict[str, Any]:
        with lock:
            [num_tokens] = generator.replies(*prompts_and_lengths([body]))
        return answer(num_tokens)

    uvicorn.run(app, port=port, log_level="error")


def serve_batch(port: int, folder: str) -> None:
    """Ray Serve's own way: `@serve.batch` around `generate`."""
    from ray import serve as ray_serve
    from starlette.requests import Request

    @ray_serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": THREADS})
    class Batched:
        def __init__(self) -> None:
            self._generator = Generator(folder)

        @ray_serve.batch(max_batch_size=32, batch_wait_timeout_s=0.05)
        async def replies(self, bodies: list[dict[str, Any]]) -> list[int]:
            return await asyncio.to_thread(self._generator.replies, *prompts_and_lengths(bodies))

        async def __call__(self, request: Request) -> dict[str, Any]:
            return answer(await self.replies(await request.json()))

    start_ray()
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
    ray_serve.run(Batched.bind(), name="app", route_prefix="/")
    wait()


def us(port: int, folder: str) -> None:
    """`rayconteur deploy`'s application."""
    from serve.deployment.application import build
    from serve.deployment.front_actor import run_endpoint
    from serve.deployment.settings import EngineSettings, Scaling, ServedRelease
    from serve.front.server import Endpoint

    start_ray()
    release = ServedRelease(folder, "release", "model")
    app = build(release, EngineSettings("openvino"), Scaling(num_cpus=THREADS))
    run_endpoint(app, "app", "127.0.0.1", port, 600.0, Endpoint("model", "release"))
    wait()


def start_ray() -> None:
    import ray

    from workflows.cluster.connection import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    ray.init(address="local", num_cpus=THREADS, log_to_driver=False, logging_level="ERROR")


def wait() -> None:
    """Wait until this process is stopped."""
    while True:
        time.sleep(60)


def direct(loads: str, folder: str) -> None:
    """OpenVINO's pipeline without HTTP and Ray: reads the loads as JSON, prints their figures as JSON."""
    from models.export.openvino_runtime import FACTS_FILE
    from serve.engines.base import DEFAULT_MAX_ACTIVE
    from serve.engines.openvino import num_blocks_of
    from serve.engines.openvino_process import PipelineOwner, PipelineSettings, SamplingSettings

    facts, most = json.loads((Path(folder) / FACTS_FILE).read_text()), DEFAULT_MAX_ACTIVE["openvino"]
    blocks = num_blocks_of(facts, "auto", most)
    owner = PipelineOwner(PipelineSettings(folder, "auto", THREADS, most, blocks))
    for at_once, prompts in json.loads(loads):
        waiting, began, firsts = list(enumerate(prompts)), {}, []
        num_tokens, start = 0, time.perf_counter()
        while waiting or began:
            while waiting and len(began) < at_once:
                number, prompt = waiting.pop()
                began[number] = (time.perf_counter(), False)
                owner.add(number, prompt, SamplingSettings(64, temperature=1.0, seed=number, end_token_ids=[2]))
            for progress in owner.step():
                since, is_seen = began[progress.number]
                if not is_seen:
                    firsts.append(time.perf_counter() - since)
                began[progress.number] = (since, True)
                num_tokens += len(progress.token_ids)
                if progress.end:
                    del began[progress.number]
        print(
            json.dumps({"tokens": num_tokens, "seconds": time.perf_counter() - start, "firsts": firsts}), flush=True
        )


if __name__ == "__main__":
    SIDES: dict[str, Any] = {"fastapi": fastapi, "serve.batch": serve_batch, "us": us, "direct": direct}
    given = sys.argv[2]
    SIDES[sys.argv[1]](given if sys.argv[1] == "direct" else int(given), sys.argv[3])
