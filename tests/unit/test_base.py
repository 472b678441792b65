"""Base models by name and path."""

import pytest
import torch

from models.base import BaseModelError, describe, identity, load_model, load_tokenizer, resolve
from models.memory import estimate_training_memory


@pytest.mark.parametrize(("name", "words"), [
    ("builtin:other", "unknown name 'builtin:other'; known are builtin:smollm2"),
    ("random:big", "known are"),
    ("/no/such/folder", "there is no folder /no/such/folder"),
    ("a//b", "neither a folder nor a Hub id"),
])  # fmt: skip
def test_what_is_no_model_is_said(name, words):
    with pytest.raises(BaseModelError, match=words):
        resolve(name)


def test_a_folder_without_a_model_is_said(tmp_path):
    with pytest.raises(BaseModelError, match=r"has no config\.json"):
        resolve(str(tmp_path))


def test_a_hub_model_that_cannot_be_had_is_said(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelError, match="the Hub did not give 'nobody/nothing'"):
        resolve("nobody/nothing")


def test_random_models_are_the_same_every_time(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYCONTEUR_CACHE", str(tmp_path))
    again = resolve("random:tiny-llama")
    assert again != tiny_llama
    first, second = load_model(tiny_llama, torch.float32), load_model(again, torch.float32)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert resolve(str(again)) == again


def test_the_identity_follows_the_bytes(tiny_gpt2, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_gpt2, copy)
    assert identity(str(copy)) == identity(str(tiny_gpt2))
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert identity(str(copy)) != identity(str(tiny_gpt2))
    assert identity("owner/name@main") == "owner/name@main"


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_sizes_from_the_config_are_near_the_truth(name, request):
    folder = request.getfixturevalue(name)
    counted = sum(weight.numel() for weight in load_model(folder, torch.float32).parameters())
    assert describe(folder)["num_parameters"] == pytest.approx(counted, rel=0.45)
    assert describe(folder)["vocab_size"] == len(load_tokenizer(folder))


def test_memory_falls_with_the_stage_and_with_an_adapter():
    sizes = {
        "num_parameters": 10**9,
        "num_layers": 20,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "vocab_size": 50_000,
    }

    def total(stage, rank=None):
        estimate = estimate_training_memory(
            sizes, micro_batch_tokens=1024, precision="bf16", adapter_rank=rank, zero_stage=stage, num_workers=4
        )
        return estimate.total_gb

    stages = [total(stage) for stage in range(4)]
    assert stages == sorted(stages, reverse=True)
    assert stages[3] < stages[0] - 10
    assert total(0, rank=16) < stages[3]
