"""Additional formats of a release: compressed tensors and GGUF, read back with transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from stored import OPTIMIZED
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.base.load import load_model, load_tokenizer
from models.export.compressed_tensors import load_compressed, write_compressed
from models.export.compressed_tensors import refusal as compressed_refusal
from models.export.gguf import GGUF_FILE, load_gguf, write_gguf
from models.export.gguf import refusal as gguf_refusal
from models.export.release import release, release_as_gguf, release_for_vllm
from models.export.rounding import round_groups
from serve.engines.torch import TorchEngine
from workflows.figures import OptimizeFigures
from workflows.release.speed import measure
from workflows.release.table import forms_text

TEXTS = ["What does the lantern cost? 63 euros, or 1234.", "  spaced\n\nout\t", "naïve 漢字 🙂", "We're open: 10:15!"]


def trained_tokenizer(splitting: Any) -> Any:
    """A small byte-level BPE tokenizer with merges, special tokens, and an added token that is not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitting
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    tokenizer.add_tokens(["<think>"])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[1], eos_token=special[2])
    wrapped.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    return wrapped


@pytest.fixture
def loud(make_loud: Callable[[Path], Any], tiny_llama: Path, tmp_path: Path) -> Path:
    """A Llama with untied embeddings and scaled-up weights, so that it generates varied text."""
    folder = tmp_path / "loud"
    make_loud(tiny_llama).save_pretrained(folder)
    load_tokenizer(tiny_llama).save_pretrained(folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(torch.arange(60)[None]).logits
    return found


@pytest.mark.parametrize(("weights", "bits", "group_size"), [("int8", 8, None), ("int4", 4, 32)])
def test_compressed_tensors_are_the_rounded_weights(
    loud: Path, tmp_path: Path, weights: str, bits: int, group_size: int | None
) -> None:
    target = tmp_path / "compressed"
    write_compressed(loud, target, weights)
    kept, plain = load_file(target / "model.safetensors"), load_model(loud, torch.bfloat16)
    read = load_compressed(target, "sdpa")
    for name, layer in plain.named_modules():
        if not isinstance(layer, torch.nn.Linear):
            continue
        found = read.get_submodule(name).weight
        if name == "lm_head":
            assert torch.equal(found, layer.weight.float())
            continue
        assert f"{name}.weight" not in kept
        assert kept[f"{name}.weight_shape"].tolist() == list(layer.weight.shape)
        assert kept[f"{name}.weight_packed"].numel() * 32 == layer.weight.numel() * bits
        rounded = round_groups(layer.weight.float(), bits, group_size, symmetric=bits == 8)
        step = rounded.scale.float().expand_as(rounded.steps).flatten(1)
        # Scales are stored in bfloat16, so a weight may be a step away from its value with an unrounded scale.
        assert float(((found - rounded.matrix()).abs() / step).max()) < 1.6
        assert float(((found - layer.weight.float()).abs() / step).mean()) < 0.35
    config = json.loads((target / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["format"], config["ignore"]) == (
        "compressed-tensors",
        "pack-quantized",
        ["lm_head"],
    )
    [group] = config["config_groups"].values()
    assert (group["weights"]["num_bits"], group["weights"]["group_size"]) == (bits, group_size)
    assert (group["weights"]["symmetric"], group["input_activations"]) == (bits == 8, None)


def test_what_has_no_linear_layers_is_not_compressed(tiny_gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^optimize\.targets: vllm: .*model_type 'gpt2' keeps matrices outside of"):
        write_compressed(tiny_gpt2, tmp_path / "compressed", "int4")
    odd = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=40, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
            vocab_size=99,
        )
    )  # fmt: skip
    assert compressed_refusal(odd) == "the number of inputs of layers.0.self_attn.q_proj is not a multiple of 32"


@pytest.mark.parametrize(("weights", "least", "most"), [
    ("fp32", 0, 1e-6), ("bf16", 1e-4, 0.05), ("int8", 1e-4, 0.1), ("int4", 0.01, 1.5),
])  # fmt: skip
def test_a_gguf_file_is_the_model(loud: Path, tmp_path: Path, weights: str, least: float, most: float) -> None:
    write_gguf(loud, tmp_path, weights, "shop")
    expected = logits(load_model(loud, torch.float32))
    change = (logits(load_gguf(tmp_path, "sdpa")) - expected).square().mean().sqrt() / expected.std()
    assert least <= float(change) <= most
    reader = gguf.GGUFReader(tmp_path / GGUF_FILE)
    assert reader.fields["general.name"].contents() == "shop"
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    head = {"fp32": "F32", "bf16": "BF16", "int8": "Q8_0", "int4": "Q8_0"}[weights]
    assert kinds["output.weight"] == kinds["token_embd.weight"] == head
    assert kinds["blk.0.ffn_down.weight"] == ("Q4_1" if weights == "int4" else head)
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_a_gguf_file_has_the_tokenizer(tiny_llama: Path, tmp_path: Path) -> None:
    tokenizer = trained_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=len(tokenizer) + 5, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path, "bf16", "shop")
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file=GGUF_FILE)
    for text in [*TEXTS, "<|im_start|>user\nhi<|im_end|>", "<think>so</think>"]:
        assert read(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (read.bos_token_id, read.eos_token_id) == (1, 2)
    fields = gguf.GGUFReader(tmp_path / GGUF_FILE).fields
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert kinds[:3] == [3, 3, 3]  # control
    assert kinds[len(tokenizer) - 1 :] == [
        4,
        *[5] * 5,
    ]  # <think> is user-defined, further rows are unused
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)


@pytest.mark.parametrize(("splitting", "is_known"), [
    (BYTES, True),
    (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]), True),
    (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), BYTES]), False),
    (pre_tokenizers.ByteLevel(add_prefix_space=True), False),
    (pre_tokenizers.Whitespace(), False),
])  # fmt: skip
def test_tokenizers_that_llama_cpp_would_split_otherwise_are_refused(splitting: Any, is_known: bool) -> None:
    refusal = gguf_refusal(LlamaConfig(), trained_tokenizer(splitting))
    assert refusal is None if is_known else str(refusal).startswith("its tokenizer is not a byte-level BPE")


def test_models_that_are_not_known_as_gguf_are_refused(tiny_gpt2: Path, tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^optimize\.targets: gguf: .*its model_type is 'gpt2'; only llama is supported"
    ):
        write_gguf(tiny_gpt2, tmp_path, "bf16", "shop")
    tokenizer = load_tokenizer(tiny_llama)
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    assert "rope_type 'linear'" in str(gguf_refusal(LlamaConfig(rope_parameters=rope), tokenizer))
    assert "biases" in str(gguf_refusal(LlamaConfig(attention_bias=True), tokenizer))


def test_each_form_is_measured_and_refused_above_the_bound(
    loud: Path, tmp_path: Path, own_words: Callable[[Any], list[Any]]
) -> None:
    rows = own_words(load_model(loud, torch.float32))
    probe, model = release(loud, loud, tmp_path / "model", "int4", rows, max_perplexity_increase=100.0)
    assert model["weights"] == "bf16"
    forms = {
        "model": model,
        "vllm": release_for_vllm(tmp_path / "model", tmp_path / "vllm", "int4", probe),
        "gguf": release_as_gguf(tmp_path / "model", tmp_path / "gguf", "int4", "shop", probe),
    }
    for form in ("vllm", "gguf"):
        assert forms[form]["weights"] == "int4"
        assert forms[form]["size_mb"] < model["size_mb"]
        assert 0 < forms[form]["greedy_agreement"] < model["greedy_agreement"]
        assert forms[form]["perplexity"] > probe.perplexity
        assert forms[form]["load_s"] >= 0
    forms["model"] |= {"load_s": 1.0, "tokens_per_second": 20.0}
    table = [{"form": name, **figures} for name, figures in forms.items()]
    text = forms_text(OptimizeFigures.from_json({**OPTIMIZED, "checkpoint_perplexity": 12.5, "forms": table}))
    assert text.splitlines()[1].split()[:3] == ["checkpoint", "fp32", "12.5000"]
    assert text.splitlines()[2].endswith("1.0      20.0")

    strict, _ = release(loud, loud, tmp_path / "fp32", "fp32", rows, max_perplexity_increase=0.01)
    words = "the folder of compressed tensors with int4 weights has a perplexity of"
    with pytest.raises(ValueError, match=rf"^optimize\.max_perplexity_increase: {words} \d"):
        release_for_vllm(tmp_path / "model", tmp_path / "vllm", "int4", strict)
    with pytest.raises(ValueError, match=r"the GGUF file with int4 weights .* at most 1.00% are allowed"):
        release_as_gguf(tmp_path / "model", tmp_path / "gguf", "int4", "shop", strict)


def test_engines_are_timed_in_turns(tiny_llama: Path) -> None:
    names = ("one", "other")
    found = measure({name: lambda: TorchEngine(tiny_llama, num_threads=1) for name in names}, [5, 6, 7])
    assert list(found) == ["one", "other"]
    for figures in found.values():
        assert figures["load_s"] >= 0
        assert 1 < figures["tokens_per_second"] < 1e5
