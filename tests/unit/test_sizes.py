"""A model's size from its config.json, for the published configs of many families, without weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from models.base.load import BaseModelError, resolve
from models.base.sizes import describe, known_sizes, max_positions, read_config

SCOUT = {
    "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384, "num_hidden_layers": 48,
    "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "num_local_experts": 16,
    "num_experts_per_tok": 1, "interleave_moe_layer_step": 1, "vocab_size": 202048,
    "max_position_embeddings": 10485760, "model_type": "llama4_text", "tie_word_embeddings": False,
}  # fmt: skip
# As published, without the keys that do not affect sizes: (config.json, billions of parameters, active ones with
# embedding and head, layers, positions, tokens).
FAMILIES: dict[str, tuple[dict[str, Any], float, float, int, int, int]] = {
    # Gemma 3 4B leaves out the defaults of its class.
    "gemma3": ({
        "model_type": "gemma3", "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        }, "vision_config": {
            "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "num_attention_heads": 16,
            "num_hidden_layers": 27, "patch_size": 14, "model_type": "siglip_vision_model", "vision_use_head": False,
        },
    }, 4.3, 4.3, 34, 131072, 262208),
    "llama4": ({"model_type": "llama4", "text_config": SCOUT}, 108.0, 17.0, 48, 10485760, 202048),
    "qwen3_moe": ({
        "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936, "max_position_embeddings": 40960,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": False,
    }, 30.5, 3.3, 48, 40960, 151936),
    "gpt_oss": ({
        "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 32,
        "num_experts_per_tok": 4, "vocab_size": 201088, "max_position_embeddings": 131072,
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096,
                         "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    }, 20.9, 4.2, 24, 131072, 201088),
    "mistral3": ({
        "model_type": "mistral3", "text_config": {
            "model_type": "mistral", "hidden_size": 5120, "intermediate_size": 32768, "num_hidden_layers": 40,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072,
            "max_position_embeddings": 131072,
        }, "vision_config": {"model_type": "pixtral"},
    }, 23.6, 23.6, 40, 131072, 131072),
    "falcon_h1": ({
        "model_type": "falcon_h1", "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 36,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "mamba_d_ssm": 1536, "mamba_n_heads": 24,
        "mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_groups": 1, "vocab_size": 32784,
        "max_position_embeddings": 16384,
    }, 0.52, 0.52, 36, 16384, 32784),
    "mamba2": ({
        "model_type": "mamba2", "hidden_size": 768, "num_hidden_layers": 24, "num_heads": 24, "head_dim": 64,
        "state_size": 128, "expand": 2, "n_groups": 1, "vocab_size": 50288, "tie_word_embeddings": True,
    }, 0.129, 0.129, 24, 1 << 20, 50288),
    "deepseek_v3": ({
        "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "n_shared_experts": 1, "first_k_dense_replace": 3, "q_lora_rank": 1536,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "vocab_size": 129280, "max_position_embeddings": 163840,
        "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
    }, 671.0, 37.6, 61, 163840, 129280),
}  # fmt: skip


def folder_with(tmp_path: Path, config: Any) -> Path:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return tmp_path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCONTEUR_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("family", FAMILIES)
def test_published_families_have_their_published_sizes(family: str, tmp_path: Path) -> None:
    config, billions, active, layers, positions, vocabulary = FAMILIES[family]
    sizes = describe(folder_with(tmp_path, config))
    assert sizes["num_parameters"] / 1e9 == pytest.approx(billions, rel=0.02)
    assert sizes["active_parameters"] / 1e9 == pytest.approx(active, rel=0.02)
    assert (sizes["num_layers"], sizes["max_positions"], sizes["vocab_size"]) == (layers, positions, vocabulary)
    assert all(value > 0 for value in sizes.values())
    assert describe(tmp_path) == sizes, "as it was kept"


@pytest.mark.parametrize("family", ["qwen3_moe", "gemma3"])
def test_an_architecture_unknown_to_transformers_is_estimated(family: str, tmp_path: Path) -> None:
    config, billions, active, *_ = FAMILIES[family]
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    whole = {"vocab_size": 262208} | heads | config.get("text_config", config)
    sizes = describe(folder_with(tmp_path, {"model_type": "of_tomorrow", "text_config": whole}))
    assert sizes["num_parameters"] / 1e9 == pytest.approx(billions, rel=0.15)
    assert sizes["active_parameters"] / 1e9 == pytest.approx(active, rel=0.25)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", r"config\.json is not JSON: "),
        ("[]", r"config\.json is not a JSON object"),
        ({"model_type": "of_tomorrow"}, r"config\.json: it has no num_layers \(none of num_hidden_layers, "),
        (
            {"model_type": "of_tomorrow", "num_hidden_layers": 2, "hidden_size": 8, "vocab_size": "many"},
            r"config\.json: its vocab_size is 'many'",
        ),
        (None, r"cannot read .*config\.json: No such file"),
    ],
)
def test_a_config_without_sizes_is_named(config: Any, words: str, tmp_path: Path) -> None:
    folder = tmp_path if config is None else folder_with(tmp_path, config)
    with pytest.raises(BaseModelError, match=f"^base_model: .*{words}"):
        describe(folder)


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"max_position_embeddings": 32768}, 32768),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 32768, "rope_scaling": {
            "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}, 131072),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2}}, 8192),
        ({"max_position_embeddings": 131072, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": {
            "type": "longrope", "original_max_position_embeddings": 4096, "short_factor": [1], "long_factor": [2]}},
         131072),
    ],
)  # fmt: skip
def test_a_scaling_of_positions_lengthens_them(config: dict[str, Any], positions: int, tmp_path: Path) -> None:
    assert max_positions(config) == positions
    if "max_position_embeddings" in config:
        loaded = transformers.AutoConfig.from_pretrained(
            folder_with(tmp_path, {"model_type": "mistral", "rope_theta": 1e4, "head_dim": 2, **config})
        )
        assert max_positions(loaded) == positions


def test_sizes_are_known_only_of_models_that_are_here() -> None:
    assert known_sizes("random:tiny-llama") is None
    assert known_sizes("owner/name") is None
    assert known_sizes("builtin:smollm2-135m-instruct") is None
    folder = resolve("random:tiny-llama")
    assert known_sizes("random:tiny-llama") == known_sizes(str(folder)) == describe(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    assert describe(folder)["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert read_config(folder)["vocab_size"] == describe(folder)["vocab_size"]
