"""Base models by name, and what can be checked before loading one."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pytest
import torch

from models.base.load import BaseModelError, identity, load_model, load_tokenizer, resolve
from models.base.sizes import describe
from models.files import open_uri
from models.training.memory import MemoryEstimate, estimate_training_memory


@pytest.mark.parametrize(("name", "words"), [
    ("random:tiny-lama", "unknown name 'random:tiny-lama'; known are builtin:smollm2-135m-instruct, random:tiny-ll"),
    ("builtin:gpt5", "unknown name 'builtin:gpt5'; known are builtin:smollm2"),
    ("./no/such/folder", "no/such/folder is not a folder; give a Hugging Face model folder"),
    ("no name at all", "neither a folder nor a Hub id"),
])  # fmt: skip
def test_a_name_that_resolves_to_nothing_is_reported(name: str, words: str) -> None:
    with pytest.raises(BaseModelError, match=f"^base_model: .*{words}"):
        resolve(name)


def test_a_folder_must_hold_a_model(tmp_path: Path, tiny_llama: Path) -> None:
    with pytest.raises(BaseModelError, match=r"has no config\.json"):
        resolve(str(tmp_path))
    assert resolve(str(tiny_llama)) == tiny_llama


@pytest.mark.parametrize("name", ["random:tiny-llama", "random:tiny-gpt2"])
def test_a_random_model_is_made_once_and_is_reproducible(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    torch.manual_seed(5)
    expected = torch.rand(1)
    for cache in ("one", "two"):
        monkeypatch.setenv("RAYCONTEUR_CACHE", str(tmp_path / cache))
        torch.manual_seed(5)
        folder = resolve(name)
        assert torch.rand(1) == expected, "the caller's random numbers are not used up"
        assert folder.is_relative_to(tmp_path / cache)
        made.append((folder / "model.safetensors").read_bytes())
        (folder / "mark").touch()
        assert (resolve(name) / "mark").exists()
    assert made[0] == made[1]
    shutil.rmtree(folder)
    (folder.with_name(f"{folder.name}.unfinished") / "half").mkdir(parents=True)
    assert (resolve(name) / "config.json").exists(), "what an earlier attempt left does not matter"


def test_the_identity_follows_the_content(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    first = identity(str(folder))
    assert first == identity(str(shutil.copytree(tiny_llama, tmp_path / "copy")))
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert identity(str(folder)) != first
    assert identity("random:tiny-llama") != identity("random:tiny-gpt2")
    assert identity("owner/name@main") == "owner/name@main"


def test_a_tokenizer_and_a_model_are_ready_to_use(tiny_gpt2: Path) -> None:
    tokenizer = load_tokenizer(tiny_gpt2)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert "Assistant:" in tokenizer.chat_template
    text = "Grüße, 世界! 👍"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    model = load_model(tiny_gpt2, torch.bfloat16)
    assert (model.dtype, model.training) == (torch.bfloat16, False)


SIZES = {
    "num_parameters": 1_000_000_000, "num_layers": 20, "hidden_size": 2048, "intermediate_size": 8192,
    "vocab_size": 50_000,
}  # fmt: skip


def estimate(
    zero_stage: int = 0, num_workers: int = 4, adapter_rank: int | None = None, precision: str = "bf16"
) -> MemoryEstimate:
    return estimate_training_memory(
        SIZES, micro_batch_tokens=1000, precision=precision, adapter_rank=adapter_rank, zero_stage=zero_stage,
        num_workers=num_workers,
    )  # fmt: skip


def test_memory_follows_the_accounting_of_zero() -> None:
    """arXiv:1910.02054, figure 1, with gradients summed in float32: 18 bytes a parameter, of which stages 1, 2 and 3
    divide 12, 16 and 18."""
    for stage, states in enumerate([18.0, 6 + 12 / 4, 2 + 16 / 4, 18 / 4]):
        memory = estimate(stage)
        assert memory.weights_gb + memory.optimizer_gb == pytest.approx(states)
    assert len({estimate(stage, num_workers=1).total_gb for stage in range(4)}) == 1


def test_an_adapter_and_bf16_need_less_memory() -> None:
    full, lora = estimate(), estimate(adapter_rank=16)
    assert lora.weights_gb == full.weights_gb
    assert lora.optimizer_gb < full.optimizer_gb / 20
    assert estimate(adapter_rank=32).optimizer_gb == pytest.approx(2 * lora.optimizer_gb)
    assert estimate(precision="fp32").total_gb > full.total_gb
    assert full.total_gb > full.weights_gb + full.optimizer_gb + full.activations_gb


def test_a_model_on_an_object_store_is_copied_once_as_it_is_there(
    tiny_llama: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAYCONTEUR_CACHE", str(tmp_path / "cache"))
    filesystem, path = open_uri(s3_uri)
    filesystem.create_dir(path, recursive=True)
    pa.fs.copy_files(str(tiny_llama), path, destination_filesystem=filesystem)
    first = resolve(s3_uri)
    assert first == resolve(s3_uri)
    assert describe(first) == describe(tiny_llama)
    before = identity(s3_uri)
    with filesystem.open_output_stream(f"{path}/config.json") as stream:
        stream.write((tiny_llama / "config.json").read_bytes() + b"\n")
    assert identity(s3_uri) != before
    assert (resolve(s3_uri) / "config.json").read_bytes().endswith(b"\n\n")
    with pytest.raises(BaseModelError, match="Path does not exist"):
        resolve(s3_uri.replace("?", "/nothing?"))
