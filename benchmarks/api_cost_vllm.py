"""vLLM's own API server over an engine that only counts. benchmarks/api_cost.py starts it with vLLM's Python.

    python api_cost_vllm.py MODEL_FOLDER PAUSE_SECONDS

Everything except the model is as in `vllm serve`: uvicorn, routes, chat template, metrics, and AsyncLLM, which
converts tokens to text. A timer replaces the process that runs the model, so the cost of vLLM's messages from that
process is not included.
"""

import asyncio
import sys
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from api_cost import token_of
from vllm import __version__
from vllm.entrypoints.launchers.api_server.entry import build_and_serve, build_async_engine_client
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.launchers.launcher import create_server_socket
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient


class Timer:
    """The interface that vLLM's AsyncLLM uses of its engine, with the tokens of api_cost.py's engine."""

    engine_ranks_managed = (0,)
    resources = SimpleNamespace(engine_dead=False)

    def __init__(self, pause_seconds: float) -> None:
        self._pause_seconds = pause_seconds
        self._left: dict[str, int] = {}

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    async def reset_mm_cache_async(self) -> None: ...

    async def add_request_async(self, request: Any) -> None:
        self._left[request.request_id] = request.sampling_params.max_tokens

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._left.pop(request_id, None)

    async def get_output_async(self) -> EngineCoreOutputs:
        """The next token for each stream, when it is due."""
        now = asyncio.get_running_loop().time()
        await asyncio.sleep(self._pause_seconds - now % self._pause_seconds)
        outputs = []
        for request_id, left in self._left.items():
            reason = FinishReason.LENGTH if left == 1 else None
            outputs.append(EngineCoreOutput(request_id, [token_of(left)], finish_reason=reason))
        self._left = {request_id: left - 1 for request_id, left in self._left.items() if left > 1}
        return EngineCoreOutputs(outputs=outputs)

    def shutdown(self, timeout: float | None = None) -> None: ...


async def serve(model: str, timer: Timer) -> None:
    """vLLM's server on a free port, printed once it listens."""
    EngineCoreClient.make_async_mp_client = staticmethod(lambda **settings: timer)
    arguments = ["--model", model, "--served-model-name", "timer", "--dtype", "float32"]
    settings = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    socket = create_server_socket(("127.0.0.1", 0), reuse_port=False)
    address = f"127.0.0.1:{socket.getsockname()[1]}"
    telling = asyncio.create_task(_tell(address))
    async with build_async_engine_client(settings) as client:
        await (await build_and_serve(client, address, socket, settings))
    telling.cancel()


async def _tell(address: str) -> None:
    host, _, port = address.rpartition(":")
    while True:
        await asyncio.sleep(0.1)
        with suppress(OSError):
            _, writer = await asyncio.open_connection(host, int(port))
            break
    writer.close()
    print(f"vllm {__version__}", f"listens at {address}", sep="\n", flush=True)


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(sys.argv[1], Timer(float(sys.argv[2]))))
