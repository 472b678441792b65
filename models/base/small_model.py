"""A small random model with the architecture of a large one, for tests whose result holds for both.

    model = small_model(AutoConfig.from_pretrained(folder))

It keeps layers of each kind, the ratio of heads and whatever selects code paths; sizes, experts and attention windows
become small, so that sixty tokens exceed the windows.
"""

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

from models.base.errors import describe_error
from models.errors import RayconteurError

if TYPE_CHECKING:
    import torch  # at run time only inside functions: `plan` needs no torch for a cached result

VOCABULARY = 96
_HIDDEN, _HEADS, _HEAD = 64, 4, 16
_MAX_LAYERS = 6
_MAX_KINDS = 8
_MAX_PARAMETERS = 30_000_000

# Names in transformers' configs, and the small values that replace larger ones.
_SIZES = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"), VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), 512),
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "lru_width", "emb_dim", "embedding_dim"), _HIDDEN
    ),
    **dict.fromkeys(("embedding_size", "attention_hidden_size", "input_embedding_size"), _HIDDEN),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), _HEADS),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "swa_num_attention_heads"), _HEADS),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads", "linear_num_heads"), _HEADS),
    **dict.fromkeys(
        ("head_dim", "d_head", "kv_channels", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim"), _HEAD
    ),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "swa_head_dim"), _HEAD),
    **dict.fromkeys(
        ("query_pre_attn_scalar", "rotary_dim", "attention_head_size", "dim_head", "index_head_dim"), _HEAD
    ),
    **dict.fromkeys(("index_n_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("linear_num_value_heads",), 4),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 32),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 2 * _HIDDEN // _HEAD),
    **dict.fromkeys(("mamba_d_ssm",), 2 * _HIDDEN),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_dt_rank", "time_step_rank"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 2),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 16),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "num_expert_group", "topk_group"), 1),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size", "sliding_window_size"), 8),
    **dict.fromkeys(("local_attention", "attention_chunk_size", "index_topk", "keep_window_size"), 8),
    **dict.fromkeys(("index_block_size", "block_size"), 8),
    **dict.fromkeys(("index_topk_blocks", "num_random_blocks"), 2),
    **dict.fromkeys(("hidden_size_per_layer_input", "laurel_rank", "router_hidden_size"), 16),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "noise_size"), 0),
    **dict.fromkeys(("eos_token_id", "sep_token_id"), 1),
}
_INNER = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "dff", "d_inner", "intermediate_size_mlp")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers", "num_blocks")
_LAYER_NUMBERS = ("hybrid_layer_ids", "full_attn_idxs", "cross_attention_layers", "mlp_only_layers", "moe_layers")
_KEY_VALUE_HEADS = {
    "num_key_value_heads": "num_attention_heads",
    "num_kv_heads": "num_attention_heads",
    "swa_num_key_value_heads": "swa_num_attention_heads",
}
# Sizes that must be the product of others.
_EXACT = {
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), _HEAD),
    "qk_head_dim": 2 * _HEAD,
}


class NoSmallModel(RayconteurError):
    """No small model can be made of a config."""


def small_model(config: Any, seed: int = 0) -> Any:
    """A float32 model in evaluation mode, with weights large enough that every token read changes the logits.

    Raises NoSmallModel.
    """
    try:
        small = small_config(config)
        with torch.device("meta"):
            size = sum(p.numel() for p in _from(small).parameters())
        if size > _MAX_PARAMETERS:
            raise NoSmallModel(f"even the small model has {size:,} weights")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _from(small).eval()
            _loud(model)
    except NoSmallModel:
        raise
    except Exception as error:  # of any architecture's own code
        raise NoSmallModel(describe_error(error)) from error
    return model


def check_builds(config: Any) -> None:
    """Raise NoSmallModel if transformers cannot build the full model of this config; takes no memory."""
    try:
        with torch.device("meta"):
            _from(config)
    except Exception as error:  # of any architecture's own code
        raise NoSmallModel(describe_error(error)) from error


def _from(config: Any) -> Any:
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")


def _loud(model: Any) -> None:
    """Enlarge the weights: with the default ones attention is nearly uniform."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "A_log" not in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)


def small_config(config: Any) -> Any:
    """The same config with small sizes."""
    values = config.to_dict()
    return type(config).from_dict(_small(values))


def _small(values: dict[str, Any]) -> dict[str, Any]:
    small = _fewer_layers(values)
    for name, value in small.items():
        if isinstance(value, dict) and name.endswith("_config") and name != "per_layer_config":
            small[name] = _small(value)
        elif isinstance(value, float) and ("drop" in name or "jitter" in name):
            small[name] = 0.0
        elif isinstance(value, float) and name.endswith("softcapping"):
            small[name] = 1.0  # low enough to affect the scores of a small model
        elif isinstance(value, int) and not isinstance(value, bool):
            small[name] = _small_size(name, value, values)
    return small


def _small_size(name: str, value: int, values: dict[str, Any]) -> int:
    if name in _KEY_VALUE_HEADS:
        heads = values.get(_KEY_VALUE_HEADS[name]) or value
        return max(1, min(heads, _HEADS) * value // heads)
    if name == "num_heads" and "state_size" in values:  # Mamba 2
        return 2 * _HIDDEN // _HEAD
    if name in ("attention_hidden_size", "attention_head_dim") and "n_mamba_heads" in values:  # Zamba
        return 2 * _HIDDEN if name == "attention_hidden_size" else 2 * _HIDDEN // _HEADS
    if name in _EXACT and value:
        return _EXACT[name]
    if name.endswith(_INNER):
        return min(value, _HIDDEN)
    return min(value, _SIZES.get(name, value))


def _fewer_layers(values: dict[str, Any]) -> dict[str, Any]:
    """Keep the first two layers of each kind if lists name the kinds, else the first few."""
    name = next((name for name in _LAYERS if isinstance(values.get(name), int)), None)
    if name is None:
        return dict(values)
    count = values[name]
    lists = {key: value for key, value in values.items() if isinstance(value, list) and len(value) == count > 2}
    numbers = {key: set(values[key]) for key in _LAYER_NUMBERS if values.get(key)}
    by_layer = {int(layer): value for layer, value in (values.get("per_layer_config") or {}).items()}
    if not lists and not numbers:
        return values | {key: min(values[key], _MAX_LAYERS) for key in _LAYERS if isinstance(values.get(key), int)}
    num_shared = values.get("num_kv_shared_layers") or 0
    found: dict[str, list[int]] = {}
    for layer in range(count):
        kind = [value[layer] for value in lists.values()] + [layer in value for value in numbers.values()]
        found.setdefault(repr((kind, layer >= count - num_shared, by_layer.get(layer))), []).append(layer)
    kept = sorted(layer for layers in found.values() for layer in layers[:2])[:_MAX_KINDS]
    fewer = values | {key: [value[layer] for layer in kept] for key, value in lists.items()} | {name: len(kept)}
    for key, value in numbers.items():
        fewer[key] = [number for number, layer in enumerate(kept) if layer in value]
    if num_shared:
        fewer["num_kv_shared_layers"] = sum(layer >= count - num_shared for layer in kept)
    if by_layer:
        fewer["per_layer_config"] = {
            number: _small(by_layer[layer]) for number, layer in enumerate(kept) if layer in by_layer
        }
    return fewer
