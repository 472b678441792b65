"""The torch engine: batched decoding for any architecture, mixed adapters, isolated failures."""

import asyncio
import dataclasses
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from models.base.load import load_model
from serve.engines.base import EngineError, GenerationRequest
from serve.engines.torch import TorchEngine
from serve.engines.torch_batched import Row, SlotDecoder

PROMPTS = [[n * seed % 190 + 1 for n in range(1, length)] for seed, length in ((3, 60), (7, 6), (5, 30), (11, 90))]

SIZES: dict[str, Any] = {
    "vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip

TOGETHER = {
    "mistral with a window": MistralConfig(**SIZES, sliding_window=16),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3, some layers with a window": Qwen3Config(
        **SIZES, head_dim=8, use_sliding_window=True, sliding_window=16,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
    ),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=16),
    "phi3": Phi3Config(**SIZES),
    "neox": GPTNeoXConfig(**{**SIZES, "num_key_value_heads": 4}),
    "opt": OPTConfig(vocab_size=200, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
                     word_embed_proj_dim=32, max_position_embeddings=256),
}  # fmt: skip
IN_TURN = {
    "gemma2 caps its scores": Gemma2Config(**SIZES, head_dim=8, sliding_window=16),
    "bloom knows positions by its mask": BloomConfig(vocab_size=200, hidden_size=32, n_layer=2, n_head=4),
    "falcon has its own attention": FalconConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True
    ),
    "mamba keeps a state": MambaConfig(vocab_size=200, hidden_size=32, num_hidden_layers=2, state_size=4),
}


def saved(config: Any, folder: Path) -> Path:
    """A model with scaled-up weights, so that its output depends on the prompt."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            parameter.data *= 4
    model.save_pretrained(folder)
    return folder


def replies(engine: TorchEngine, *requests: GenerationRequest) -> list[list[int]]:
    async def reply(request: GenerationRequest) -> list[int]:
        return [event.token_id async for event in engine.submit(request)]

    async def all_replies() -> list[list[int]]:
        return await asyncio.gather(*(reply(request) for request in requests))

    return asyncio.run(all_replies())


def generated(model: Any, prompt_ids: list[int], count: int, **options: Any) -> list[int]:
    model.generation_config.eos_token_id = None
    tokens = torch.tensor([prompt_ids])
    mask = torch.ones_like(tokens)
    out = model.generate(
        input_ids=tokens, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0, **options
    )
    found: list[int] = out[0, len(prompt_ids) :].tolist()
    return found


@pytest.mark.parametrize("name", [*TOGETHER, *IN_TURN])
def test_every_architecture_generates_like_transformers(name: str, tmp_path: Path) -> None:
    folder = saved((TOGETHER | IN_TURN)[name], tmp_path)
    engine = TorchEngine(folder, precision="fp32", num_threads=1)
    try:
        assert engine.decodes_together == (name in TOGETHER)
        found = replies(engine, *(GenerationRequest(prompt_ids, 24, temperature=0) for prompt_ids in PROMPTS))
    finally:
        engine.close()
    model = load_model(folder, torch.float32, attention=None)
    assert found == [generated(model, prompt_ids, 24) for prompt_ids in PROMPTS]
    assert len({token_id for reply in found for token_id in reply}) > 3, "the test's model says always the same"


def adapted(model: Path, folder: Path, seed: int, **options: Any) -> Path:
    torch.manual_seed(seed)
    adapter = get_peft_model(load_model(model, torch.float32), LoraConfig(init_lora_weights=False, **options))
    adapter.save_pretrained(folder)
    return folder


def test_adapters_mixed_in_one_batch_are_each_pefts_own(
    make_loud: Callable[[Path], Any], tiny_model: Path, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    make_loud(tiny_model).save_pretrained(release)
    targets = ["c_attn", "c_proj"] if "gpt2" in str(tiny_model) else ["q_proj", "v_proj", "down_proj"]
    folders = {
        "a": adapted(release, tmp_path / "a", 1, r=4, lora_alpha=8, target_modules=targets),
        "v1.5": adapted(release, tmp_path / "b", 2, r=2, lora_alpha=8, target_modules=targets[:1]),
        "c": adapted(release, tmp_path / "c", 3, r=8, lora_alpha=4, target_modules=targets, use_rslora=True),
    }
    names = [None, *folders, None, *reversed(folders)]
    requests = [
        GenerationRequest(PROMPTS[place % 4], 20, temperature=0, adapter=name) for place, name in enumerate(names)
    ]
    engine = TorchEngine(release, precision="fp32", num_threads=1, adapters=folders)
    try:
        assert engine.adapters == ("a", "v1.5", "c")
        assert engine.decodes_together
        found = replies(engine, *requests)
        with pytest.raises(ValueError, match=r"adapter: got 'd'; available: a, v1\.5, c"):
            replies(engine, GenerationRequest([1], 1, adapter="d"))
    finally:
        engine.close()
    for name, request, reply in zip(names, requests, found, strict=True):
        model = load_model(release, torch.float32)
        alone = model if name is None else PeftModel.from_pretrained(model, folders[name])
        assert reply == generated(alone, request.prompt_ids, 20), name
    assert len({tuple(reply) for reply in found}) == len({(r.adapter, tuple(r.prompt_ids)) for r in requests})


def test_an_adapter_of_another_model_is_refused(tiny_llama: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    dora = adapted(tiny_llama, tmp_path / "dora", 1, target_modules=["q_proj"], use_dora=True)
    other = adapted(tiny_gpt2, tmp_path / "other", 1, target_modules=["c_attn"])
    (tmp_path / "none").mkdir()
    for folder, words in ((dora, "DoRA"), (other, "c_attn"), (tmp_path / "none", "adapter_config.json")):
        with pytest.raises(ValueError, match=rf"the adapter cannot be served on this model: (.|\n)*{words}"):
            TorchEngine(tiny_llama, precision="fp32", num_threads=1, adapters={"a": folder})


def test_a_failing_row_affects_no_other(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(tiny_llama, precision="fp32", num_threads=1)
    requests = [GenerationRequest(prompt_ids, 24, temperature=0) for prompt_ids in PROMPTS]
    try:
        alone = replies(engine, *requests)
        step = SlotDecoder.step

        def failing(self: SlotDecoder, rows: list[Any], token_ids: list[int]) -> torch.Tensor:
            if any(row.length == 95 for row in rows):  # only the longest reply gets here
                raise RuntimeError("no memory for it")
            return step(self, rows, token_ids)

        monkeypatch.setattr(SlotDecoder, "step", failing)
        assert replies(engine, *requests[:3]) == alone[:3]

        async def mixed() -> list[Any]:
            async def reply(request: GenerationRequest) -> list[int]:
                return [event.token_id async for event in engine.submit(request)]

            return await asyncio.gather(*(reply(request) for request in requests), return_exceptions=True)

        *good, bad = asyncio.run(mixed())
        assert good == alone[:3]
        assert isinstance(bad, EngineError)
        assert engine.health().num_active == 0
    finally:
        engine.close()


def test_a_long_prompt_is_read_in_pieces_between_the_tokens_of_others(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, step, done = SlotDecoder.read, SlotDecoder.step, []

    def slow(self: SlotDecoder, row: Any, token_ids: list[int]) -> torch.Tensor:
        time.sleep(0.001 * len(token_ids))
        done.append(len(token_ids))
        return read(self, row, token_ids)

    def stepped(self: SlotDecoder, rows: list[Any], token_ids: list[int]) -> torch.Tensor:
        done.append(0)
        return step(self, rows, token_ids)

    engine = TorchEngine(tiny_llama, precision="fp32", num_threads=1, max_stall_seconds=0.05)
    long = GenerationRequest([n % 190 for n in range(1000)], 5, temperature=0)
    alone = replies(engine, long)
    monkeypatch.setattr(SlotDecoder, "read", slow)
    monkeypatch.setattr(SlotDecoder, "step", stepped)

    async def both() -> list[int]:
        async with aclosing(engine.submit(GenerationRequest(PROMPTS[0], 1900, temperature=0))) as other:
            await anext(other)
            done.clear()
            return [event.token_id async for event in engine.submit(long)]

    try:
        assert [asyncio.run(both())] == alone
    finally:
        engine.close()
    pieces = [length for length in done if length]
    assert sum(pieces) == 1000
    assert max(pieces) <= 50
    between = "".join("r" if length else "." for length in done)
    assert "rr" not in between, "a token of the other one after each piece"


@pytest.mark.parametrize("name", ["qwen2", "mistral with a window", "mamba keeps a state"])
def test_several_replies_to_one_prompt_compute_it_once_or_twice(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the first request starts before the others arrive, they cannot share its state."""
    folder = saved({**TOGETHER, **IN_TURN}[name], tmp_path)
    engine = TorchEngine(folder, precision="fp32", num_threads=1, max_active=8)
    usual, read = engine._decoder.read, []

    def recording(row: Row, token_ids: list[int]) -> torch.Tensor:
        read.append(len(token_ids))
        return usual(row, token_ids)

    monkeypatch.setattr(engine._decoder, "read", recording)
    requests = [
        GenerationRequest(PROMPTS[0], max_new_tokens=count, end_token_ids=frozenset(), temperature=1.0, seed=seed)
        for seed, count in enumerate((12, 3, 12, 7, 12))
    ]
    together = replies(engine, *requests)
    prompts = [length for length in read if length > 1]
    assert sum(prompts) <= 2 * len(PROMPTS[0])
    alone = [replies(engine, dataclasses.replace(each, request_id=f"again {each.seed}"))[0] for each in requests]
    engine.close()
    assert together == alone
    assert len({tuple(reply[:3]) for reply in together}) > 2
