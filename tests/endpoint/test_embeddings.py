"""Embeddings: those of transformers' own hidden states, for any architecture, beside replies; and their route."""

import asyncio
import base64
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BloomConfig, Gemma3TextConfig, GPT2Config, MambaConfig, Qwen2Config

from models.base.load import load_model, load_tokenizer
from serve.api.embeddings import EmbeddingsReply, EmbeddingsRequest
from serve.api.routes import create_app
from serve.engines.base import Engine, EngineError, GenerationRequest
from serve.engines.torch import TorchEngine
from serve.protocol.errors import ApiError

MODEL = "tiny/talker"
SIZES: dict[str, Any] = {
    "vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "qwen2": Qwen2Config(**SIZES),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=16),
    "gpt2": GPT2Config(vocab_size=200, n_embd=32, n_layer=2, n_head=4),
    "bloom": BloomConfig(vocab_size=200, hidden_size=32, n_layer=2, n_head=4),
    "mamba": MambaConfig(vocab_size=200, hidden_size=32, num_hidden_layers=2, state_size=4),
}
TEXTS = [[n * 7 % 190 + 1 for n in range(600)], [3], [n * 11 % 190 + 1 for n in range(40)]]


def expected(model: Any, token_ids: list[int]) -> torch.Tensor:
    """Computed by the model's own base, without a cache."""
    with torch.inference_mode():
        base = getattr(model, model.base_model_prefix)
        states = base(torch.tensor([token_ids])).last_hidden_state[0].float()
    return torch.nn.functional.normalize(states.mean(0), dim=0)


def embedded(engine: Engine, *texts: list[int], adapter: str | None = None) -> list[torch.Tensor]:
    async def all_of_them() -> list[list[float]]:
        return await asyncio.gather(*(engine.embed(text, adapter) for text in texts))

    return [torch.tensor(found) for found in asyncio.run(all_of_them())]


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_is_the_mean_of_the_last_states(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[kind], dtype=torch.float32).save_pretrained(tmp_path)
    engine = TorchEngine(tmp_path, precision="fp32", num_threads=1)
    try:
        assert engine.embedding_size == 32
        found = embedded(engine, *TEXTS)
    finally:
        engine.close()
    model = load_model(tmp_path, torch.float32)
    for vector, text in zip(found, TEXTS, strict=True):
        # Mamba carries its state between pieces, which changes the order of summation.
        assert torch.allclose(vector, expected(model, text), atol=1e-3 if kind == "mamba" else 1e-5)


def test_it_is_the_adapters(tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS["qwen2"], dtype=torch.float32).save_pretrained(tmp_path / "base")
    lora = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(load_model(tmp_path / "base", torch.float32), lora).save_pretrained(tmp_path / "shop")
    engine = TorchEngine(tmp_path / "base", precision="fp32", num_threads=1, adapters={"shop": tmp_path / "shop"})
    try:
        [plain] = embedded(engine, TEXTS[2])
        [adapted] = embedded(engine, TEXTS[2], adapter="shop")
    finally:
        engine.close()
    merged: Any = PeftModel.from_pretrained(load_model(tmp_path / "base", torch.float32), tmp_path / "shop")
    assert torch.allclose(adapted, expected(merged.merge_and_unload(), TEXTS[2]), atol=1e-5)
    assert not torch.allclose(adapted, plain, atol=1e-2)


def test_concurrent_replies_continue_and_are_unchanged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS["qwen2"], dtype=torch.float32).save_pretrained(tmp_path)
    engine = TorchEngine(tmp_path, precision="fp32", num_threads=1)

    async def reply(tokens: list[int]) -> list[int]:
        async with aclosing(engine.submit(GenerationRequest(TEXTS[2], 30, temperature=0))) as events:
            async for event in events:
                tokens.append(event.token_id)
        return tokens

    async def both() -> int:
        tokens: list[int] = []
        replying = asyncio.create_task(reply(tokens))
        while not tokens:
            await asyncio.sleep(0)
        await engine.embed(TEXTS[0])
        during = len(tokens)
        assert await replying == alone
        return during

    try:
        alone = asyncio.run(reply([]))
        assert asyncio.run(both()) >= 20, "600 tokens are 37 pieces of 16, and a token of the reply follows each"
    finally:
        engine.close()


def test_an_abandoned_request_is_dropped_and_a_closed_engine_raises(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(CONFIGS["qwen2"], dtype=torch.float32).save_pretrained(tmp_path)
    engine = TorchEngine(tmp_path, precision="fp32", num_threads=1)

    async def left() -> None:
        task = asyncio.create_task(engine.embed(TEXTS[0]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await engine.embed(TEXTS[1])

    asyncio.run(left())
    assert not engine._embedder.has_work
    engine.close()
    with pytest.raises(EngineError, match="stopped"):
        embedded(engine, TEXTS[1])


@dataclass(frozen=True)
class Endpoint:
    """A served app, its model, and an OpenAI client for it."""

    engine: TorchEngine
    model: Any
    tokenizer: Any
    url: str
    client: openai.OpenAI

    def vector(self, text: str) -> np.ndarray[Any, Any]:
        return expected(self.model, self.tokenizer(text)["input_ids"]).numpy()


@pytest.fixture(scope="module")
def endpoint(
    save_talker: Callable[..., Path],
    serving: Callable[[Any], AbstractContextManager[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Endpoint]:
    release = save_talker(tmp_path_factory.mktemp("release"), positions=200)
    engine = TorchEngine(release, precision="fp32", num_threads=1)
    tokenizer = load_tokenizer(release)
    with (
        serving(create_app(engine, tokenizer, MODEL)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=20) as client,
    ):
        yield Endpoint(engine, load_model(release, torch.float32), tokenizer, url, client)
    engine.close()


def test_openais_client_reads_texts_and_tokens(endpoint: Endpoint) -> None:
    texts = ["Hello", "How much is a kettle?"]
    found = endpoint.client.embeddings.create(model=MODEL, input=texts)  # requests base64
    assert [each.index for each in found.data] == [0, 1]
    ids = [endpoint.tokenizer(text)["input_ids"] for text in texts]
    assert found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, ids))
    for each, text in zip(found.data, texts, strict=True):
        assert np.allclose(each.embedding, endpoint.vector(text), atol=1e-5)
    [one] = endpoint.client.embeddings.create(model=MODEL, input="Hello", encoding_format="float").data
    [also] = endpoint.client.embeddings.create(model=MODEL, input=ids[0], dimensions=len(one.embedding)).data
    assert np.allclose(one.embedding, also.embedding, atol=1e-6)
    several = endpoint.client.embeddings.create(model=MODEL, input=ids)
    assert np.allclose([each.embedding for each in several.data], [each.embedding for each in found.data], atol=1e-6)
    assert np.isclose(np.linalg.norm(one.embedding), 1)


def test_base64_is_of_little_endian_floats(endpoint: Endpoint) -> None:
    body = {"model": MODEL, "input": "Hello", "encoding_format": "base64"}
    [found] = httpx.post(f"{endpoint.url}/v1/embeddings", json=body).json()["data"]
    assert np.allclose(
        np.frombuffer(base64.b64decode(found["embedding"]), "<f4"), endpoint.vector("Hello"), atol=1e-5
    )


@pytest.mark.parametrize(("params", "param", "words"), [
    ({"input": ""}, "input", "none empty"),
    ({"input": []}, "input", "none empty"),
    ({"input": ["a", ""]}, "input", "none empty"),
    ({"input": ["a"] * 2049}, "input", "up to 2048"),
    ({"input": [1, -1]}, "input", "token ids"),
    ({"input": ["a", [1]], "dimensions": 8}, "dimensions", "cannot be shortened"),
    ({"input": [[1], [10**6]]}, "input[1]", "got token id 1000000"),
    ({"input": [1] * 201}, "input", "200 tokens, and this text takes 201"),
    ({"input": "a", "encoding_format": "int8"}, "encoding_format", "got 'int8'"),
    ({"input": "a", "dimension": 8}, "dimension", "Did you mean dimensions?"),
])  # fmt: skip
def test_bad_requests_are_reported(endpoint: Endpoint, params: dict[str, Any], param: str, words: str) -> None:
    answer = httpx.post(f"{endpoint.url}/v1/embeddings", json={"model": MODEL, **params})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert words in answer.json()["error"]["message"]


def test_an_engine_without_them_says_so_to_the_caller(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchEngine, "embedding_size", None)
    answer = httpx.post(f"{endpoint.url}/v1/embeddings", json={"model": MODEL, "input": "a"})
    assert answer.status_code == 400
    assert "does not support embeddings" in answer.json()["error"]["message"]


def test_one_that_takes_too_long_is_ended(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(*args: Any) -> list[float]:
        await asyncio.sleep(60)
        return []

    monkeypatch.setattr(TorchEngine, "embed", slow)
    body = EmbeddingsRequest(model=MODEL, input="a")
    with pytest.raises(ApiError) as caught:
        asyncio.run(EmbeddingsReply(endpoint.engine, body, [[1], [2]]).completion(0.05))
    assert (caught.value.status, caught.value.error.code) == (504, "deadline_exceeded")
    assert "0 of 2 tokens" in str(caught.value)
