"""An endpoint for testing clients: SmolLM2 on an engine, behind our API and front, without Ray.

    python tests/clients/endpoint.py torch prints its URL once it answers, and the folder of its model and tokenizer
    in float32; ends with its standard input

`demo` is `openvino` with the demo's chat template, which does not write tools. On torch, the model keeps only its
first two layers: it generates nonsense, but many times faster. `--layers 0` keeps all 30.
"""

import argparse
import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from scripted import follow_scripts

from models.base.load import BUILTIN_SMOLLM2, load_model, load_tokenizer, resolve, save_tokenizer
from models.export.openvino_export import export
from models.files import cache_folder, made_once
from serve.api.routes import create_app
from serve.api.settings import ApiSettings
from serve.engines.base import Engine
from serve.engines.openvino import OpenVINOEngine
from serve.engines.torch import TorchEngine
from serve.front.leases import LeasedOnly, Leases, ReplicaServer
from serve.front.server import Endpoint, Front, Lease

ENDPOINTS = ("torch", "openvino", "demo")
MODEL = "smollm2"
_THREADS = 2
_MAX_SECONDS = 120


def open_engine(name: str, base: Path) -> tuple[Engine, Any]:
    """The engine and its tokenizer; OpenVINO computes as in the demo, torch in float32."""
    tokenizer = load_tokenizer(base)
    if name != "demo":
        tokenizer.chat_template = (Path(__file__).parent / "tool_template.jinja").read_text()
    if name == "torch":
        return TorchEngine(base, "fp32", num_threads=_THREADS), tokenizer
    return OpenVINOEngine(_exported(base), num_threads=_THREADS), tokenizer


def _exported(base: Path) -> Path:
    def write(folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        export(base, folder, "bf16")

    return made_once(cache_folder() / "clients" / f"{base.name}-openvino", write)


def _cut(base: Path, num_layers: int) -> Path:
    def write(folder: Path) -> None:
        model = load_model(base, torch.float32)
        model.model.layers = model.model.layers[:num_layers]
        model.config.num_hidden_layers = num_layers
        model.save_pretrained(folder)
        save_tokenizer(load_tokenizer(base), folder)

    return made_once(cache_folder() / "clients" / f"{base.name}-{num_layers}-layers", write)


async def serve(name: str, num_layers: int) -> None:
    """Serve until standard input ends."""
    base = resolve(BUILTIN_SMOLLM2)
    if name == "torch" and num_layers:
        base = _cut(base, num_layers)
    engine, tokenizer = open_engine(name, base)
    follow_scripts(engine, tokenizer)
    leases = Leases()
    app = create_app(engine, tokenizer, MODEL, "clients", ApiSettings(max_new_tokens=64))
    server = ReplicaServer(LeasedOnly(app, leases), "127.0.0.1")

    @asynccontextmanager
    async def lease(seconds: float) -> AsyncIterator[Lease]:
        async with asyncio.timeout(seconds):
            held = leases.held()
            lease_id = await anext(held)
        rest = asyncio.ensure_future(anext(held, None))
        try:
            yield Lease(server.address, lease_id)
        finally:
            rest.cancel()

    front = Front(lease, max_seconds=_MAX_SECONDS)
    await front.listen("127.0.0.1", 0)
    front.serve(Endpoint(MODEL, "clients"))
    print(f"http://127.0.0.1:{front.port}\n{base}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await front.close()
    server.close()
    engine.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENDPOINTS)
    parser.add_argument("--layers", type=int, default=2)
    asked = parser.parse_args()
    asyncio.run(serve(asked.engine, asked.layers))
