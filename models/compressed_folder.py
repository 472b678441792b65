"""A Hugging Face folder with linear layers in 8 or 4 bits, in the format `compressed-tensors`: for vLLM on GPUs.

    write_compressed(Path("release"), Path("release-int4"), "int4")
    model = load_compressed(Path("release-int4"), "sdpa")

Weights alone are rounded (w8a16, w4a16), so that what is measured on a CPU is what a GPU computes, but for the order
of its sums. The package `compressed-tensors` packs them and describes the folder: it is what vLLM reads it with.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from models.base import load_model, load_tokenizer
from models.rounding import round_groups

_BITS = {"int8": 8, "int4": 4}
# Of 4-bit weights, and the same for all layers. GPU kernels know 32, 64 and 128; the smallest is the most exact.
GROUP_SIZE = 32


def refusal(model: Any) -> str | None:
    """Why this transformers model cannot be written so; None if it can."""
    layers = _layers(model)
    others = [
        name
        for name, module in model.base_model.named_modules()
        if not isinstance(module, torch.nn.Linear | torch.nn.Embedding)
        and any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    ]
    if not layers or others:
        return f"its model_type {model.config.model_type!r} keeps matrices outside of linear layers: {others[:1]}"
    odd = [name for name, layer in layers.items() if layer.in_features % GROUP_SIZE]
    if odd:
        return f"the inputs of {odd[0]} are no multiple of {GROUP_SIZE}"
    return None


def write_compressed(folder: Path, target: Path, weights: str) -> None:
    """Write the model of a Hugging Face folder, and its tokenizer, with `int8` or `int4` weights.

    `int8` has a scale for every output, `int4` one for every 32 weights of it; both without zero points. Embeddings
    and head stay in bfloat16. Raises ValueError for a model whose layers are of another kind.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
    from huggingface_hub import save_torch_state_dict

    model = load_model(folder, torch.bfloat16)
    reason = refusal(model)
    if reason is not None:
        raise ValueError(f"optimize.targets: vllm: the model cannot be written as compressed tensors: {reason}")
    scheme = QuantizationScheme(targets=["Linear"], weights=_arguments(weights), format="pack-quantized")
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    state = model.state_dict()
    for name in _layers(model):
        full = f"{model.base_model_prefix}.{name}"
        matrix = state.pop(f"{full}.weight").float()
        group_size = GROUP_SIZE if weights == "int4" else None
        scale = round_groups(matrix, _BITS[weights], group_size, symmetric=True).scale.flatten(1)
        packed = compressor.compress({"weight": matrix, "weight_scale": scale.bfloat16()}, scheme)
        state |= {f"{full}.{part}": tensor for part, tensor in packed.items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    description = QuantizationConfig(
        config_groups={"group_0": scheme},
        format="pack-quantized",
        quantization_status="compressed",
        ignore=["lm_head"],
    )
    target.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(state, target)
    model.config.save_pretrained(target)
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] = description.model_dump(mode="json")
    (target / "config.json").write_text(json.dumps(config, indent=2))
    model.generation_config.save_pretrained(target)
    load_tokenizer(folder).save_pretrained(target)


def load_compressed(folder: Path, attention: str) -> Any:
    """What `write_compressed` wrote, in float32."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the folder's own description is taken, but for `dequantize`
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=torch.float32,
            attn_implementation=attention,
            quantization_config=CompressedTensorsConfig(dequantize=True),
        )
    return model.eval()


def _layers(model: Any) -> dict[str, torch.nn.Linear]:
    return {name: layer for name, layer in model.base_model.named_modules() if isinstance(layer, torch.nn.Linear)}


def _arguments(weights: str) -> Any:
    from compressed_tensors.quantization import QuantizationArgs

    groups = {"strategy": "group", "group_size": GROUP_SIZE} if weights == "int4" else {"strategy": "channel"}
    return QuantizationArgs(num_bits=_BITS[weights], type="int", symmetric=True, **groups)
