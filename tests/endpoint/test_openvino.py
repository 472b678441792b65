"""The OpenVINO export, and the errors that only its engine can make."""

import asyncio
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig

from models.base.load import load_model, load_tokenizer
from models.export.openvino_export import ARCHITECTURES, Weights, export, refusal, trace
from models.export.openvino_parity import check_exact, check_rounded, reference_replies
from models.export.openvino_runtime import MODEL_FILE, ExportedModel, import_openvino
from models.export.openvino_weights import convert_weights
from models.export.release import release, release_for_openvino
from serve.engines import openvino as engine_module
from serve.engines.base import EngineError, GenerationRequest
from serve.engines.openvino import OpenVINOEngine
from serve.engines.openvino_process import PipelineOwner, PipelineSettings, Progress, SamplingSettings

PROMPTS = [[71, 72, 220], [64], list(range(200)), [n * 7 % 200 for n in range(500)]]


@pytest.fixture(scope="module")
def folder(make_loud: Callable[[Path], Any], tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 (learned positions, transposed matrices) with scaled-up weights, so that it generates varied text."""
    folder: Path = tmp_path_factory.mktemp("release")
    make_loud(tiny_gpt2).save_pretrained(folder)
    load_tokenizer(tiny_gpt2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target: Path = tmp_path_factory.mktemp("export")
    export(folder, target, "fp32")
    return target


@pytest.fixture(scope="module")
def engine(exported: Path) -> Iterator[OpenVINOEngine]:
    engine = OpenVINOEngine(exported, precision="fp32", num_threads=1)
    yield engine
    engine.close()


async def reply_to(engine: OpenVINOEngine, request: GenerationRequest) -> list[int]:
    return [event.token_id async for event in engine.submit(request)]


async def replies_to(engine: OpenVINOEngine, *requests: GenerationRequest) -> list[Any]:
    return await asyncio.gather(*(reply_to(engine, request) for request in requests), return_exceptions=True)


def generated(model: Any, prompt_ids: list[int], num_tokens: int) -> list[int]:
    """transformers' greedy tokens."""
    model.generation_config.eos_token_id = None
    tokens = torch.tensor([prompt_ids])
    output = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=num_tokens, do_sample=False
    )
    ids: list[int] = output[0, len(prompt_ids) :].tolist()
    return ids


def test_greedy_tokens_are_those_of_generate_alone_and_in_a_batch(engine: OpenVINOEngine, folder: Path) -> None:
    model = load_model(folder, torch.float32)
    expected = [generated(model, prompt_ids, 30) for prompt_ids in PROMPTS]
    assert all(len(set(tokens)) > 5 for tokens in expected), "the test's model says the same whatever it read"
    requests = [GenerationRequest(prompt_ids, 30, temperature=0) for prompt_ids in PROMPTS]
    alone = [asyncio.run(reply_to(engine, request)) for request in requests]
    assert alone == expected
    twice = [GenerationRequest(prompt_ids, 30, temperature=0) for prompt_ids in PROMPTS * 5]
    assert asyncio.run(replies_to(engine, *twice)) == expected * 5


def test_a_killed_child_fails_open_requests_with_an_error(exported: Path) -> None:
    engine = OpenVINOEngine(exported, num_threads=1)

    async def run() -> None:
        running = [asyncio.create_task(reply_to(engine, GenerationRequest(PROMPTS[0], 1000))) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert engine.health().num_active == 3
        os.kill(engine.process_id, signal.SIGKILL)
        for task in running:
            with pytest.raises(EngineError, match="process ended with exit code -9"):
                await asyncio.wait_for(task, 5)
        health = engine.health()
        assert (health.is_alive, health.num_active) == (False, 0)
        with pytest.raises(EngineError, match="exit code -9"):
            await reply_to(engine, GenerationRequest(PROMPTS[0], 1))

    asyncio.run(run())


def test_the_child_ends_with_its_engine(exported: Path) -> None:
    engine = OpenVINOEngine(exported, num_threads=1)
    engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(engine.process_id, 0)


def test_what_does_not_fit_is_refused_and_what_just_fits_is_served(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A cache for few tokens: OpenVINO itself would drop a larger prompt, together with the one beside it.
    monkeypatch.setattr(engine_module, "CACHE_BYTES", 10 * 32 * 4 * 256)
    engine = OpenVINOEngine(exported, precision="fp32", max_active=4, num_threads=1)
    most = engine.max_positions
    assert most == 9 * 32
    try:
        too_long = GenerationRequest([5] * most, 1, temperature=0)
        just = [GenerationRequest([n] * (most - 20), 20, temperature=0) for n in range(6)]
        for _ in range(3):  # the same prompts again, with a full cache
            *replies, failure = asyncio.run(replies_to(engine, *just, too_long))
            assert [len(reply) for reply in replies] == [20] * 6
        assert isinstance(failure, ValueError)
        assert str(failure) == f"prompt and reply together need {most + 1} positions; the model has {most}"
    finally:
        engine.close()


def test_steps_that_would_hold_others_up_for_too_long_read_less(exported: Path) -> None:
    def step_tokens(seconds: float) -> int:
        settings = PipelineSettings(str(exported), "fp32", 1, max_active=4, num_blocks=64, max_stall_seconds=seconds)
        owner = PipelineOwner(settings)
        owner.add(1, PROMPTS[0], SamplingSettings(max_new_tokens=3))
        assert sum(len(progress.token_ids) for _ in range(4) for progress in owner.step()) == 3
        return owner._step_tokens

    assert step_tokens(60.0) == 256
    assert step_tokens(1e-9) == 32


@pytest.mark.parametrize("token_id", [-1, 257, 10**6])
def test_a_token_that_the_model_does_not_know_is_refused(engine: OpenVINOEngine, token_id: int) -> None:
    with pytest.raises(ValueError, match=f"prompt_ids: got {token_id}; the model.s token ids are 0 to 256"):
        asyncio.run(reply_to(engine, GenerationRequest([1, token_id, 2], 5)))


def test_an_export_that_cannot_be_loaded_says_why(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text((exported / "facts.json").read_text())
    with pytest.raises(EngineError, match=f"could not load {tmp_path}"):
        OpenVINOEngine(tmp_path)


def test_an_error_in_a_step_ends_its_requests_and_the_pipeline_serves_again(exported: Path) -> None:
    owner = PipelineOwner(PipelineSettings(str(exported), "fp32", 1, max_active=4, num_blocks=64))
    greedy = SamplingSettings(3)
    assert owner.add(0, [1, 2], greedy) == []
    assert owner.add(1, [1, 2], SamplingSettings(3, grammar="no grammar")) == []
    ended = owner.step()
    assert [progress.number for progress in ended] == [0, 1]
    assert all("a step of the pipeline failed" in str(progress.end) for progress in ended)
    assert owner.is_idle

    owner.add(2, [1, 2], greedy)
    found: list[Progress] = []
    while not owner.is_idle:
        found += owner.step()
    assert sum(len(progress.token_ids) for progress in found) == 3
    assert found[-1].end == "length"


@pytest.mark.parametrize(("config", "words"), [
    (Gemma2Config(), "model_type 'gemma2' is not among those that are verified to be exact: .*llama"),
    (MistralConfig(sliding_window=4096, max_position_embeddings=32768), "a window of 4096 tokens"),
    (LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), "rope_type 'dynamic'"),
])  # fmt: skip
def test_what_openvino_would_compute_wrongly_is_refused(config: Any, words: str) -> None:
    reason = refusal(config)
    assert reason is not None
    assert re.search(words, reason)


# With grouped-query attention, if the architecture has it.
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 99, "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip
OTHER_SIZES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 99},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 99},
    "gpt_neox": {name: size for name, size in SIZES.items() if name != "num_key_value_heads"},
    "mistral": {**SIZES, "sliding_window": None},
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_listed_architectures_are_exact(architecture: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **OTHER_SIZES.get(architecture, SIZES))
    assert refusal(config) is None
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3) if parameter.dim() == 2 else None
    replies = reference_replies(model)
    assert len({token for reply in replies for token in reply.reply_ids}) > 5, "it says the same whatever it read"
    check_exact(trace(model), replies)


def test_an_export_of_another_model_is_caught(tiny_gpt2: Path, exported: Path) -> None:
    replies = reference_replies(load_model(tiny_gpt2, torch.float32))
    model = import_openvino().Core().read_model(exported / MODEL_FILE)
    with pytest.raises(ValueError, match=r"not exact: after 6 random tokens its greedy token \d+ is"):
        check_exact(model, replies)
    with pytest.raises(ValueError, match=r"root mean square change by int8 is \d.* at most"):
        check_rounded(model, replies, "int8")


@pytest.mark.parametrize(("weights", "most", "bytes_per_weight"), [
    ("bf16", 0.02, 2.3), ("int8", 0.05, 1.5), ("int4", 0.5, 1.1),
])  # fmt: skip
def test_rounded_weights_change_little_and_take_less(
    tiny_gpt2: Path, tmp_path: Path, weights: Any, most: float, bytes_per_weight: float
) -> None:
    export(tiny_gpt2, tmp_path, weights)
    ids = list(range(60))
    with torch.inference_mode():
        model = load_model(tiny_gpt2, torch.float32)
        expected = model(torch.tensor([ids])).logits[0].numpy()
    found = ExportedModel(tmp_path).read(ids)
    assert np.sqrt(np.mean((found - expected) ** 2)) < most * expected.std()
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    assert (tmp_path / MODEL_FILE).with_suffix(".bin").stat().st_size < bytes_per_weight * num_weights


def test_int8_rows_keep_zero_and_both_ends() -> None:
    """The dequantised matrix of a one-layer model, in either orientation."""
    openvino = import_openvino()
    from openvino import opset13

    matrix = np.array([[0.0, 1.0, -2.0, 0.5], [0.0, 0.0, 0.0, 0.0], [3.0, 5.0, 4.0, 0.0]], dtype=np.float32)
    for stored, transposed in ((matrix, True), (matrix.T.copy(), False)):
        given = opset13.parameter([-1, 4], openvino.Type.f32)
        model = openvino.Model([opset13.matmul(given, opset13.constant(stored), False, transposed)], [given], "one")
        convert_weights(model, "int8")
        compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        seen = compiled(np.eye(4, dtype=np.float32))[0].T
        steps = np.array([3, 0, 5]) / 255
        assert (np.abs(seen - matrix).max(axis=1) <= 0.6 * steps).all()
        assert seen[:, 3][1:].tolist() == [0, 0]


def test_the_release_is_measured_and_refused_above_its_bound(
    tiny_gpt2: Path, folder: Path, own_words: Callable[[Any], list[Any]], tmp_path: Path
) -> None:
    rows = own_words(load_model(folder, torch.float32))
    probe, _ = release(tiny_gpt2, folder, tmp_path / "model", "fp32", rows, 0.01)
    targets: dict[Weights, Path] = {"fp32": tmp_path / "exact", "int4": tmp_path / "int4"}
    figures = release_for_openvino(tmp_path / "model", targets, "fp32", probe)
    # OpenVINO chooses its compute precision: bfloat16 on processors that support it.
    is_exact = "BF16" not in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert figures["fp32"]["greedy_agreement"] >= (1.0 if is_exact else 0.95)
    assert abs(figures["fp32"]["perplexity_increase"]) < (1e-4 if is_exact else 5e-3)
    assert figures["fp32"]["perplexity"] == pytest.approx(probe.perplexity, rel=1e-4 if is_exact else 5e-3)
    # The bound applies only to the chosen weights.
    assert figures["int4"]["perplexity_increase"] > 0.01
    assert figures["int4"]["size_mb"] < figures["fp32"]["size_mb"]

    refused: dict[Weights, Path] = {"int4": tmp_path / "int4"}
    with pytest.raises(ValueError, match=r"max_perplexity_increase: the OpenVINO export with int4 weights has .* the "
                       r"checkpoint \d.*: an increase of \d.*, where at most 1.00% are allowed "
                       r"\(greedy agreement \d"):  # fmt: skip
        release_for_openvino(tmp_path / "model", refused, "int4", probe)
