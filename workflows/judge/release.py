"""One of our own releases as a judge, served by workers of the cluster with the endpoint's code.

with served_release(store, release, evaluate, queue=8) as transport:
    client = httpx.AsyncClient(transport=transport)
"""

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import ray

from workflows.cluster.workers import worker_environment
from workflows.endpoint.in_process import InProcessEndpoint
from workflows.figures import OptimizeFigures
from workflows.spec import EvaluateSpec
from workflows.store import Artifact, Store


@contextlib.contextmanager
def served_release(
    store: Store, release: Artifact, evaluate: EvaluateSpec, queue: int
) -> Iterator[httpx.AsyncBaseTransport]:
    """A transport to `evaluate.num_workers` workers with the release, which start with the first request.

    `queue`: the maximum number of requests at once.
    """
    has_openvino = OptimizeFigures.from_json(release.figures).openvino.is_there and not evaluate.gpus_per_worker
    replica = ray.remote(_Replica).options(
        num_cpus=evaluate.cpus_per_worker,
        num_gpus=evaluate.gpus_per_worker or None,
        max_concurrency=queue + 1,
        runtime_env={"env_vars": worker_environment(evaluate.cpus_per_worker, evaluate.gpus_per_worker)},
    )
    threads = max(1, int(evaluate.cpus_per_worker))
    started: list[Any] = []

    def start() -> list[Any]:
        for _ in range(evaluate.num_workers):
            started.append(
                replica.remote(store.uri, release.key, has_openvino, threads, evaluate.gpus_per_worker, queue)
            )
        return started

    try:
        yield _RayTransport(start)
    finally:
        for each in started:
            ray.kill(each)


class _RayTransport(httpx.AsyncBaseTransport):
    """Sends requests to replicas in turn."""

    def __init__(self, start: Callable[[], list[Any]]) -> None:
        self._start = start
        self._replicas: Iterator[Any] | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._replicas is None:
            self._replicas = itertools.cycle(self._start())
        answer = next(self._replicas).post.remote(json.loads(await request.aread()))
        # A timeout ends the wait: cancelling the call itself would end as an error of Ray.
        status, headers, content = await asyncio.shield(asyncio.wrap_future(answer.future()))
        return httpx.Response(status, headers=headers, content=content)


class _Replica:
    """A release with its engine and endpoint, in a worker."""

    def __init__(self, store: str, key: str, has_openvino: bool, threads: int, gpus: float, queue: int) -> None:
        from models.base.load import load_tokenizer

        opened = Store(store)
        engine: Any
        if has_openvino:
            from serve.engines.openvino import OpenVINOEngine

            folder = opened.local_folder("optimize", key, "openvino")
            engine = OpenVINOEngine(folder, num_threads=threads)
        else:
            from serve.engines.torch import TorchEngine

            folder = opened.local_folder("optimize", key, "model")
            engine = TorchEngine(folder, num_threads=threads, device="cuda" if gpus else "cpu")
        # More than are queued here: a request that a client gave up is decoded to its end.
        self._endpoint = InProcessEndpoint(engine, load_tokenizer(folder), "judge", 4 * queue)

    async def post(self, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the endpoint's response to a chat request."""
        response = await self._endpoint.post("/v1/chat/completions", body)
        wait = response.headers.get("Retry-After")
        return response.status_code, {} if wait is None else {"Retry-After": wait}, response.content
