"""A Hugging Face folder with linear layers in 8 or 4 bits, in the format `compressed-tensors`: for vLLM on GPUs.

    write_compressed(Path("release"), Path("release-int4"), "int4")
    model = load_compressed(Path("release-int4"), "sdpa")

Only weights are rounded (w8a16, w4a16), so a measurement on a CPU holds for a GPU, except for the order of its sums.
The package `compressed-tensors`, which vLLM reads the folder with, packs them and describes the folder.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from models.base.load import load_model, load_tokenizer, save_tokenizer
from models.errors import RayconteurError
from models.export.rounding import round_groups

_BITS = {"int8": 8, "int4": 4}
# Group size of 4-bit weights, the same for all layers: the smallest one that GPU kernels support.
GROUP_SIZE = 32


def refusal(model: Any) -> str | None:
    """Why this transformers model cannot be written in this format; None if it can."""
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
        return f"the number of inputs of {odd[0]} is not a multiple of {GROUP_SIZE}"
    return None


def write_compressed(folder: Path, target: Path, weights: str) -> None:
    """Write the model of a Hugging Face folder, and its tokenizer, with `int8` or `int4` weights.

    `int8` has a scale for every output, `int4` a scale and a zero point for every 32 weights of it. Embeddings and
    head stay in bfloat16. Raises RayconteurError for a model whose layers are of another kind.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
    from huggingface_hub import save_torch_state_dict

    model = load_model(folder, torch.float32)
    reason = refusal(model)
    if reason is not None:
        raise RayconteurError(f"optimize.targets: vllm: the model cannot be written as compressed tensors: {reason}")
    scheme = QuantizationScheme(targets=["Linear"], weights=_arguments(weights), format="pack-quantized")
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    state = model.state_dict()
    for layer in _layers(model):
        name = f"{model.base_model_prefix}.{layer}"
        packed = compressor.compress(_rounded(state.pop(f"{name}.weight"), weights), scheme)
        state |= {f"{name}.{part}": tensor for part, tensor in packed.items()}
    state = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
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
    model.config.dtype = torch.bfloat16
    model.config.save_pretrained(target)
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] = description.model_dump(mode="json")
    (target / "config.json").write_text(json.dumps(config, indent=2))
    model.generation_config.save_pretrained(target)
    save_tokenizer(load_tokenizer(folder), target)


def load_compressed(folder: Path, attention: str) -> Any:
    """The model that `write_compressed` wrote, in float32."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that only `dequantize` replaces the folder's own settings
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=torch.float32,
            attn_implementation=attention,
            quantization_config=CompressedTensorsConfig(dequantize=True),
        )
    return model.eval()


def _layers(model: Any) -> dict[str, torch.nn.Linear]:
    return {name: layer for name, layer in model.base_model.named_modules() if isinstance(layer, torch.nn.Linear)}


def _rounded(matrix: torch.Tensor, weights: str) -> dict[str, torch.Tensor]:
    """The rounded weight with its scales and zero points, by the package's names."""
    is_int4 = weights == "int4"
    # 8-bit kernels take no zero points.
    rounded = round_groups(matrix, _BITS[weights], GROUP_SIZE if is_int4 else None, symmetric=not is_int4)
    named = {"weight": matrix, "weight_scale": rounded.scale.flatten(1).bfloat16()}
    return named | ({"weight_zero_point": rounded.zero.flatten(1).char() - 8} if is_int4 else {})


def _arguments(weights: str) -> Any:
    from compressed_tensors.quantization import QuantizationArgs

    if weights == "int4":
        return QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=GROUP_SIZE)
    return QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel")
