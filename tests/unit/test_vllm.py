"""The requests that we send to vLLM, and how we handle its outputs; everything that can be tested without vLLM.

tests/llm has vLLM itself.
"""

import asyncio
import json
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from serve.engines.base import EngineError, EngineHealth, GenerationRequest, TokenEvent
from serve.engines.vllm import VLLMEngine
from serve.engines.vllm_settings import check_heads, engine_arguments, environment, sampling_arguments


def test_the_settings_follow_the_gpus_of_a_replica() -> None:
    def settings(num_gpus: float) -> dict[str, Any]:
        return engine_arguments("bf16", max_active=16, num_gpus=num_gpus, adapters={})

    shared = {
        "dtype": "bfloat16", "max_num_seqs": 16, "max_model_len": -1,
        "structured_outputs_config": {"backend": "guidance"},
    }  # fmt: skip
    assert settings(0) == {**shared, "tensor_parallel_size": 1, "kv_cache_memory_bytes": 2 << 30}
    assert settings(0.25) == {**shared, "tensor_parallel_size": 1, "gpu_memory_utilization": 0.225}
    assert settings(1) == {**shared, "tensor_parallel_size": 1}
    assert settings(8) == {**shared, "tensor_parallel_size": 8}
    assert environment(3.5, 0) == {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "3"}
    assert environment(3.5, 0.25) == {"VLLM_RAY_PER_WORKER_GPUS": "0.25"}
    assert environment(3.5, 2) == {}


def test_heads_that_gpus_cannot_share_are_refused(tiny_llama: Path, tiny_gpt2: Path) -> None:
    for folder in (tiny_llama, tiny_gpt2):
        for num_gpus in (0, 0.5, 1, 2, 4):
            check_heads(folder, num_gpus)
        with pytest.raises(ValueError, match=r"serve.gpus_per_replica: the model has 4 attention heads, which 3 GPUs "
                           r"cannot share evenly; use 1, 2, or more replicas"):  # fmt: skip
            check_heads(folder, 3)


@pytest.mark.parametrize(("change", "words"), [
    ({"peft_type": "IA3"}, "vLLM only serves LoRA"),
    ({"use_dora": True}, "without DoRA"),
    ({"modules_to_save": ["lm_head"]}, "without DoRA and modules_to_save"),
    ({"r": 1024}, "its rank is 1024; vLLM serves at most 512"),
    (None, "is not a PEFT adapter"),
])  # fmt: skip
def test_adapters_get_capacity_and_those_that_vllm_cannot_serve_are_refused(
    tmp_path: Path, change: dict[str, Any] | None, words: str
) -> None:
    adapters = {}
    for rank in (4, 12):
        folder = tmp_path / str(rank)
        folder.mkdir()
        config = {"peft_type": "LORA", "r": rank, "rank_pattern": {"q_proj": 17} if rank == 4 else {}}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        adapters[str(rank)] = str(folder)
    arguments = engine_arguments("auto", 4, 1, adapters)
    assert {name: arguments[name] for name in ("enable_lora", "max_loras", "max_lora_rank")} == {
        "enable_lora": True, "max_loras": 2, "max_lora_rank": 32,
    }  # fmt: skip
    bad = tmp_path / "bad"
    bad.mkdir()
    if change is not None:
        (bad / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, **change}))
    with pytest.raises(ValueError, match=f"adapter 'bad': .*{words}"):
        engine_arguments("auto", 4, 1, {**adapters, "bad": str(bad)})


def test_every_field_of_a_request_reaches_vllm() -> None:
    request = GenerationRequest(
        [1], 7, temperature=0.5, top_p=0.9, top_k=40, presence_penalty=0.1, frequency_penalty=0.2,
        repetition_penalty=1.3, logit_bias={5: -3.0}, num_logprobs=2, seed=-1, end_token_ids=frozenset({9, 2}),
        min_p=0.2, min_new_tokens=3, allowed_token_ids=frozenset({7, 4}),
    )  # fmt: skip
    assert sampling_arguments(request) == {
        "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "presence_penalty": 0.1,
        "frequency_penalty": 0.2, "repetition_penalty": 1.3, "logit_bias": {5: -3.0}, "logprobs": 2,
        "seed": 2**63 - 1, "stop_token_ids": [2, 9], "ignore_eos": True, "detokenize": False,
        "min_p": 0.2, "min_tokens": 3, "allowed_token_ids": [2, 4, 7, 9],
    }  # fmt: skip
    elsewhere = {
        "prompt_ids", "max_new_tokens", "num_logprobs", "num_prompt_logprobs", "end_token_ids", "min_new_tokens",
        "grammar", "adapter", "request_id", "bad_words",
    }  # fmt: skip
    named = {field.name for field in fields(GenerationRequest)} - elsewhere
    assert named <= set(sampling_arguments(request)), "a field that vLLM is not told of"


@pytest.mark.parametrize("change", [{"temperature": 0}, {"top_p": 0.0}, {"top_k": 1}, {"temperature": 1e-5}])
def test_greedy_is_greedy_in_vllms_terms(change: dict[str, Any]) -> None:
    arguments = sampling_arguments(GenerationRequest([1], 1, **change))
    assert (arguments["temperature"], arguments["top_p"], arguments["top_k"]) == (0.0, 1.0, 0)
    assert sampling_arguments(GenerationRequest([1], 1))["seed"] != arguments["seed"]


class Client:
    """A stand-in for vLLM's client that repeats the prompt, one token at a time."""

    def __init__(self) -> None:
        self.model_config = SimpleNamespace(max_model_len=50, get_vocab_size=lambda: 100)
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=2))
        self.errored = False
        self.running: set[str] = set()
        self.last_reason = "length"
        self.failure: Exception | None = None

    async def generate(
        self, prompt: Any, parameters: Any, request_id: str, lora_request: Any
    ) -> AsyncGenerator[Any, None]:
        self.running.add(request_id)
        try:
            for number in range(parameters.max_tokens):
                await asyncio.sleep(0.001)
                if self.failure and number == 2:
                    raise self.failure
                reason = self.last_reason if number == parameters.max_tokens - 1 else None
                token_ids = [] if reason == "abort" else [prompt[0]]
                logprobs = [{prompt[0]: Told(-2.0, 3), 8: Told(-0.5, 1), 9: Told(-1.0, 2)}]
                yield SimpleNamespace(
                    outputs=[SimpleNamespace(token_ids=token_ids, finish_reason=reason, logprobs=logprobs)],
                    num_cached_tokens=1,
                )
        finally:
            self.running.discard(request_id)

    async def abort(self, request_id: str) -> None:
        self.running.discard(request_id)

    def shutdown(self) -> None:
        self.errored = True


class Told(SimpleNamespace):
    def __init__(self, logprob: float, rank: int) -> None:
        super().__init__(logprob=logprob, rank=rank)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    """A stand-in for the package vllm, with the parts that the engine imports."""
    taken = {
        "vllm": {"SamplingParams": SimpleNamespace},
        "vllm.inputs": {"tokens_input": lambda token_ids: token_ids},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": lambda *fields: fields},
        "vllm.sampling_params": {
            "RequestOutputKind": SimpleNamespace(DELTA=1),
            "StructuredOutputsParams": SimpleNamespace,
        },
    }
    for name, content in taken.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return Client()


@pytest.fixture
def engine(client: Client) -> Iterator[VLLMEngine]:
    """Its client has its own event loop, as in a replica."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield VLLMEngine(client, loop, {"one": "/adapters/one"})
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


told_of = partial(TokenEvent, num_cached=1)


async def collect(engine: VLLMEngine, request: GenerationRequest) -> list[TokenEvent]:
    return [event async for event in engine.submit(request)]


def test_tokens_come_with_their_reasons_and_log_probabilities(engine: VLLMEngine) -> None:
    assert asyncio.run(collect(engine, GenerationRequest([5], 3))) == [
        told_of(5), told_of(5), told_of(5, "length"),
    ]  # fmt: skip
    told = asyncio.run(collect(engine, GenerationRequest([5], 1, num_logprobs=2)))
    assert told == [told_of(5, "length", -2.0, ((8, -0.5), (9, -1.0)))]
    assert asyncio.run(collect(engine, GenerationRequest([5], 1, num_logprobs=0))) == [told_of(5, "length", -2.0)]


def test_waiting_requests_are_counted_and_abandoned_ones_leave(engine: VLLMEngine, client: Client) -> None:
    async def run() -> None:
        requests = [GenerationRequest([n], 40) for n in range(4)]
        running = [asyncio.create_task(collect(engine, request)) for request in requests]
        await asyncio.sleep(0.01)
        assert engine.health() == EngineHealth(True, 2, 2)
        with pytest.raises(ValueError, match="already being generated"):
            await collect(engine, requests[0])
        engine.cancel(requests[0].request_id)
        cut = await running[0]
        assert 0 < len(cut) < 40
        assert cut[-1].finish_reason is None
        running[1].cancel()
        async with aclosing(engine.submit(GenerationRequest([7], 40))) as events:
            await anext(events)
        hardly_begun = asyncio.create_task(collect(engine, GenerationRequest([7], 40)))
        await asyncio.sleep(0)
        hardly_begun.cancel()
        await asyncio.sleep(0.02)
        assert client.running == {requests[2].request_id, requests[3].request_id}
        assert engine.health() == EngineHealth(True, 2, 0)
        assert [len(await task) for task in running[2:]] == [40, 40]
        await asyncio.sleep(0)
        assert engine.health() == EngineHealth(True, 0, 0)

    asyncio.run(run())


def test_a_failure_in_vllm_ends_the_reply_with_its_message(engine: VLLMEngine, client: Client) -> None:
    client.failure = RuntimeError("the core is dead")
    with pytest.raises(EngineError, match="vLLM could not generate the next token: the core is dead"):
        asyncio.run(collect(engine, GenerationRequest([5], 9)))
    client.failure, client.last_reason = None, "error"
    with pytest.raises(EngineError, match="vLLM ended the reply: error"):
        asyncio.run(collect(engine, GenerationRequest([5], 9)))
    client.last_reason = "abort"
    assert asyncio.run(collect(engine, GenerationRequest([5], 3))) == [told_of(5)] * 2


def test_closing_ends_everything(engine: VLLMEngine) -> None:
    async def run() -> None:
        running = asyncio.create_task(collect(engine, GenerationRequest([5], 40)))
        await asyncio.sleep(0.01)
        engine.close()
        with pytest.raises(EngineError, match="the engine has stopped"):
            await running
        assert engine.health() == EngineHealth(False, 0, 0)
        with pytest.raises(EngineError, match="the engine has stopped"):
            await collect(engine, GenerationRequest([5], 1))

    asyncio.run(run())


@pytest.mark.parametrize(("request_", "words"), [
    (GenerationRequest([5] * 40, 11), "prompt and reply together need 51 positions; the model has 50"),
    (GenerationRequest([5, 100], 1), "prompt_ids: got 100; the model's token ids are 0 to 99"),
    (GenerationRequest([-1, 5], 1), "prompt_ids: got -1"),
    (GenerationRequest([5], 1, adapter="x"), "adapter: got 'x'; available: one"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(engine: VLLMEngine, request_: GenerationRequest, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        asyncio.run(collect(engine, request_))


def test_what_vllm_would_change_silently_is_refused(engine: VLLMEngine) -> None:
    grammar: Any = SimpleNamespace(lark="start: 'a'", schema=None)
    cases = {
        "temperature": GenerationRequest([5], 1, temperature=0.009),
        "logprobs": GenerationRequest([5], 1, num_logprobs=0, grammar=grammar),
    }
    assert {(engine.refusal(request) or ("",))[0] for request in cases.values()} == set(cases)
    for request in (GenerationRequest([5], 1, temperature=0.01), GenerationRequest([5], 1, grammar=grammar)):
        assert engine.refusal(request) is None
