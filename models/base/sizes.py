"""A model's size from its config.json, without its weights: parameters, layers, positions, vocabulary.

    sizes = describe(folder)       # of a Hugging Face folder
    sizes = known_sizes("owner/name")

Parameters are counted on a model without memory for its weights, as transformers builds it. The result is cached on
this machine by config.json, since the libraries take seconds to import.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.base.load import BaseModelError, known_folder
from models.files import cache_folder

UNLIMITED = 1 << 20
"""positions of a model without a limit"""

_NOT_KNOWN = "it has no {0} (none of {1}); is it the config.json of a text model?"
_NAMES = {
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "vocab_size": ("vocab_size",),
}
_INNER = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_OF_A_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts")
_INNER_OF_AN_EXPERT = ("moe_intermediate_size", "expert_ffn_hidden_size")
# For these kinds `max_position_embeddings` is the length before scaling; for others, after it.
_LENGTHENED = ("yarn", "linear", "dynamic", "ntk")


def known_sizes(name: str) -> dict[str, int] | None:
    """`describe` of a base model if it is on this machine already, else None; makes and downloads nothing."""
    folder = known_folder(name)
    return None if folder is None else describe(folder)


def describe(folder: Path | str) -> dict[str, int]:
    """Sizes of a model folder from its config alone.

    `num_parameters` and `active_parameters` (of experts, only those that a token uses); `num_layers`, `hidden_size`,
    `intermediate_size`, `vocab_size`, `max_positions`. For a multimodal model all but the parameters are those of its
    language model. Raises BaseModelError.
    """
    config = read_config(folder)
    version = importlib.metadata.version("transformers")
    key = hashlib.sha256(json.dumps([config, version], sort_keys=True).encode()).hexdigest()[:24]
    file = cache_folder() / "sizes" / f"{key}.json"
    if file.is_file():
        known: dict[str, int] = json.loads(file.read_text())
        return known
    found = _found(Path(folder), config)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(found))
    unfinished.replace(file)
    return found


def read_config(folder: Path | str) -> dict[str, Any]:
    """The folder's config.json; raises BaseModelError if it is not a JSON object."""
    file = Path(folder) / "config.json"
    try:
        config = json.loads(file.read_text())
    except OSError as error:
        raise BaseModelError(f"base_model: cannot read {file}: {error.strerror or error}") from error
    except ValueError as error:
        raise BaseModelError(f"base_model: {file} is not JSON: {error}; download the model again") from error
    if not isinstance(config, dict):
        raise BaseModelError(f"base_model: {file} is not a JSON object; give a Hugging Face model folder")
    return config


def max_positions(config: Any) -> int:
    """The longest sequence in tokens that a model can read, from its config (transformers' or the JSON object)."""
    text = text_part(config)
    most = int(_first(text, ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")) or UNLIMITED)
    scaling = _get(text, "rope_parameters") or _get(text, "rope_scaling") or {}
    if isinstance(scaling.get("full_attention"), Mapping):  # layers of several kinds
        scaling = scaling["full_attention"]
    kind, factor = scaling.get("rope_type") or scaling.get("type"), scaling.get("factor") or 1.0
    if kind not in _LENGTHENED or str(_get(text, "model_type")).startswith("gemma3"):
        return most
    return max(most, int((scaling.get("original_max_position_embeddings") or most) * factor))


def text_part(config: Any) -> Any:
    """The language model's part of a multimodal model's config."""
    if hasattr(config, "get_text_config"):
        return config.get_text_config()
    inner = [config[name] for name in ("text_config", "llm_config", "language_config") if name in config]
    return inner[0] if inner and isinstance(inner[0], Mapping) else config


def _found(folder: Path, config: dict[str, Any]) -> dict[str, int]:
    from transformers import AutoConfig

    import models.base.lstm  # noqa: F401  # known to transformers from here on

    try:
        full = AutoConfig.from_pretrained(str(folder))
        text, counts = text_part(full), _counted(full)
    except Exception:  # from an architecture's own code, or an architecture that this transformers lacks
        text, counts = text_part(config), {}
    sizes = {}
    for what, names in _NAMES.items():
        value = _first(text, names)
        if not isinstance(value, int) or value < 1:
            reason = _NOT_KNOWN.format(what, ", ".join(names)) if value is None else f"its {names[0]} is {value!r}"
            raise BaseModelError(f"base_model: {folder / 'config.json'}: {reason}")
        sizes[what] = value
    sizes |= {"intermediate_size": _inner(text, sizes["hidden_size"]), "max_positions": max_positions(text)}
    return (counts or _estimated(text, sizes)) | sizes


def empty_model(config: Any) -> Any:
    """The causal language model of transformers' config, without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    is_whole = type(config) in AutoModelForCausalLM._model_mapping
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config if is_whole else text_part(config))


def _counted(config: Any) -> dict[str, int]:
    model, text = empty_model(config), text_part(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    of_experts = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." in name)
    experts, used = _first(text, _EXPERTS), _first(text, _EXPERTS_OF_A_TOKEN)
    asleep = of_experts * (1 - used / experts) if experts and used else 0
    return {"num_parameters": total, "active_parameters": int(total - asleep)}


def _inner(text: Any, hidden: int) -> int:
    """The width of the feed-forward network that a token uses in a layer."""
    inner, used = _first(text, _INNER_OF_AN_EXPERT), _first(text, _EXPERTS_OF_A_TOKEN)
    if inner and used:
        shared = _get(text, "shared_expert_intermediate_size") or inner * (_get(text, "n_shared_experts") or 0)
        return int(inner * used + shared)
    inner = _first(text, _INNER)
    if isinstance(inner, list):  # a size for each layer
        inner = max(inner)
    if inner is None:
        return int(hidden * (_get(text, "expand") or 4))
    is_of_expert = _first(text, _EXPERTS) and used
    return int(inner * used) if is_of_expert else int(inner)


def _estimated(text: Any, sizes: dict[str, int]) -> dict[str, int]:
    """For an architecture that transformers does not know: the numbers of Llama's."""
    hidden, inner = sizes["hidden_size"], _first(text, _INNER) or 4 * sizes["hidden_size"]
    heads = _first(text, ("num_attention_heads", "n_head", "n_heads")) or 1
    of_keys = hidden * (_get(text, "num_key_value_heads") or heads) // heads
    attention, dense = 2 * hidden * (hidden + of_keys), 3 * hidden * inner
    experts, used = _first(text, _EXPERTS) or 0, _first(text, _EXPERTS_OF_A_TOKEN) or 1
    of_expert = 3 * hidden * (_first(text, _INNER_OF_AN_EXPERT) or inner)
    embeddings = sizes["vocab_size"] * hidden * (1 if _get(text, "tie_word_embeddings") else 2)

    def total(of_layer: int) -> int:
        return int(embeddings + sizes["num_layers"] * (attention + of_layer))

    return {
        "num_parameters": total(experts * of_expert if experts else dense),
        "active_parameters": total(used * of_expert if experts else dense),
    }


def _first(config: Any, names: tuple[str, ...]) -> Any:
    values = (_get(config, name) for name in names)
    return next((value for value in values if value is not None), None)


def _get(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
