"""A Hugging Face folder as an OpenVINO model with its own key-value cache, for serving on CPUs.

    export(Path("release"), Path("release-openvino"), weights="int8")

The model is traced with its cache as plain inputs and outputs, which OpenVINO then turns into state: the form that
its GenAI pipelines load. OpenVINO accepts more architectures than it computes correctly, so only those on a list are
exported, and every export is compared with transformers (models/export/openvino_parity.py).
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig
from transformers.cache_utils import Cache, DynamicLayer

import models.base.lstm  # noqa: F401  # known to transformers from here on
from models.base.load import load_model, load_tokenizer, save_tokenizer
from models.base.sizes import max_positions
from models.errors import RayconteurError
from models.export.openvino_parity import check_exact, check_rounded, reference_replies
from models.export.openvino_runtime import FACTS_FILE, MODEL_FILE, import_openvino
from models.export.openvino_weights import convert_weights

Weights = Literal["bf16", "fp32", "int8", "int4"]

# Each gave transformers' tokens in float32 with random weights, alone and in a paged batch.
ARCHITECTURES = (
    "gpt2", "gpt_bigcode", "gpt_neox", "granite", "llama", "mistral", "olmo2", "opt", "phi3", "qwen2", "qwen3",
    "smollm3", "stablelm",
)  # fmt: skip
# These branch on the length to compute their angles, and tracing keeps only one branch.
_BRANCHING_ROPE = ("longrope", "dynamic")

_ATTENTION = "rayconteur_traced"
_BATCH, _NEW, _PAST = 2, 4, 3  # sizes of the traced example; all different, so that tracing keeps them apart


def refusal(config: Any) -> str | None:
    """Why a model with this transformers config cannot be exported; None if it can."""
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        return f"its model_type {config.model_type!r} is not among those that are verified to be exact: {known}"
    window = getattr(config, "sliding_window", None)
    if window is not None and window < max_positions(config):
        return f"its attention has a window of {window} tokens, which the export would ignore"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in _BRANCHING_ROPE:
        return f"its rope_type {rope!r} depends on the length, which a traced model cannot follow"
    return None


def folder_refusal(folder: Path) -> str | None:
    """`refusal` of a Hugging Face folder."""
    return refusal(AutoConfig.from_pretrained(str(folder)))


def export(folder: Path, target: Path, weights: Weights) -> None:
    """`export_each` with one folder."""
    export_each(folder, {weights: target})


def export_each(folder: Path, targets: Mapping[Weights, Path]) -> None:
    """Write the model of a Hugging Face folder, and its tokenizer, as OpenVINO models, one for each weight format.

    The float32 model must give transformers' greedy tokens, and the written models must stay within a bound of it.
    Raises RayconteurError with the numbers otherwise, and for an architecture that is not on the list.
    """
    reason = folder_refusal(folder)
    if reason is not None:
        raise RayconteurError(f"optimize: the model cannot be exported to OpenVINO: {reason}")
    model = load_model(folder, torch.float32, "sdpa")
    replies = reference_replies(model)
    traced = trace(model)
    check_exact(traced, replies)
    for weights, target in targets.items():
        converted = traced.clone()  # shares the constants with the original until they are replaced
        if weights != "fp32":
            convert_weights(converted, weights)
            check_rounded(converted, replies, weights)
        _save(folder, model, converted, target)


def _save(folder: Path, model: Any, converted: Any, target: Path) -> None:
    openvino = import_openvino()
    target.mkdir(parents=True, exist_ok=True)
    openvino.save_model(converted, target / MODEL_FILE, compress_to_fp16=False)
    model.config.save_pretrained(target)
    model.generation_config.save_pretrained(target)
    _export_tokenizer(folder, target)
    facts = {
        "max_positions": max_positions(model.config),
        "vocab_size": model.config.vocab_size,
        "cache_numbers_per_token": sum(2 * heads * size for heads, size in _cache_shapes(model)),
    }
    (target / FACTS_FILE).write_text(json.dumps(facts, indent=2))


def _export_tokenizer(folder: Path, target: Path) -> None:
    """OpenVINO's pipelines do not open a folder without a tokenizer, although Rayconteur passes token ids."""
    openvino = import_openvino()
    from openvino_tokenizers import convert_tokenizer

    tokenizer = load_tokenizer(folder)
    save_tokenizer(tokenizer, target)
    for part, name in zip(convert_tokenizer(tokenizer, with_detokenizer=True), ("", "de"), strict=True):
        openvino.save_model(part, target / f"openvino_{name}tokenizer.xml")


class _WithPlainCache(torch.nn.Module):
    """The model with keys and values as arguments and results of each layer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """input_ids and position_ids [B, T], attention_mask [B, P + T], `past` 2 x layers of [B, H, P, D]; logits
        [B, T, V], then as many of [B, H, P + T, D]."""
        cache = Cache(layers=[_layer(*past[at : at + 2]) for at in range(0, len(past), 2)])
        output = self._model(
            input_ids=input_ids,
            attention_mask=_mask(input_ids, attention_mask),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        present = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return (output.logits, *present)


def _layer(keys: torch.Tensor, values: torch.Tensor) -> DynamicLayer:
    layer = DynamicLayer()
    layer.keys, layer.values = keys, values
    layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
    return layer


def _mask(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """float32 [B, 1, T, P + T]: 0 where a token may attend."""
    num_new, total = input_ids.shape[1], attention_mask.shape[1]
    row = torch.arange(num_new)[:, None] + (total - num_new)
    allowed = (torch.arange(total)[None] <= row) & attention_mask[:, None, None, :].bool()
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float16).min)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query [B, N, T, D], key and value [B, H, P, D]; [B, T, N, D]. In operations that OpenVINO can turn into paged
    attention."""
    groups = getattr(module, "num_key_value_groups", 1)
    output = F.scaled_dot_product_attention(
        query, _repeated(key, groups), _repeated(value, groups), attn_mask=attention_mask, scale=scaling
    )
    return output.transpose(1, 2), None


def _repeated(tensor: torch.Tensor, groups: int) -> torch.Tensor:
    """Repeat every key-value head for each query head that shares it."""
    if groups == 1:
        return tensor
    batch, heads, length, size = tensor.shape
    return tensor[:, :, None].expand(batch, heads, groups, length, size).reshape(batch, heads * groups, length, size)


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, lambda *args, **kwargs: None)


def trace(model: Any) -> Any:
    """The stateful `openvino.Model` of a float32 transformers model, whose attention is replaced."""
    model.set_attn_implementation(_ATTENTION)
    openvino = import_openvino()
    shapes = _cache_shapes(model)
    past = [torch.zeros(_BATCH, heads, _PAST, size) for heads, size in shapes for _ in range(2)]
    example = (
        torch.zeros(_BATCH, _NEW, dtype=torch.int64),
        torch.ones(_BATCH, _PAST + _NEW, dtype=torch.int64),
        (torch.arange(_NEW) + _PAST).repeat(_BATCH, 1),
        *past,
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns that values of the example become constants
        traced = openvino.convert_model(_WithPlainCache(model).eval(), example_input=example)
    _name(traced, shapes)
    traced.validate_nodes_and_infer_types()
    _keep_cache_as_state(traced, shapes)
    return traced


def _name(traced: Any, cache_shapes: list[tuple[int, int]]) -> None:
    """Give inputs and outputs the names and shapes that OpenVINO's pipelines expect."""
    openvino = import_openvino()
    integers = ["input_ids", "attention_mask", "position_ids"]
    names = _cache_names(len(cache_shapes))
    shapes = [[-1, -1]] * len(integers) + [[-1, heads, -1, size] for heads, size in cache_shapes for _ in range(2)]
    inputs = [*integers, *(f"past_key_values.{name}" for name in names)]
    for port, name, shape in zip(traced.inputs, inputs, shapes, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(openvino.PartialShape(shape))
        port.get_node().set_element_type(openvino.Type.i64 if name in integers else openvino.Type.f32)
    for port, name in zip(traced.outputs, ["logits", *(f"present.{name}" for name in names)], strict=True):
        port.get_tensor().set_names({name})


def _cache_names(num_layers: int) -> list[str]:
    return [f"{index}.{kind}" for index in range(num_layers) for kind in ("key", "value")]


def _cache_shapes(model: Any) -> list[tuple[int, int]]:
    """(key-value heads, size of a head) of each layer, taken from a cache that the model fills."""
    with torch.inference_mode():
        cache = model(input_ids=torch.zeros(1, 1, dtype=torch.int64), use_cache=True).past_key_values
    return [(layer.keys.shape[1], layer.keys.shape[3]) for layer in cache.layers]


def _keep_cache_as_state(traced: Any, cache_shapes: list[tuple[int, int]]) -> None:
    """Make the cache a state of the model, reordered by `beam_idx` and empty at the start."""
    openvino = import_openvino()
    from openvino import opset13, passes

    beam = opset13.parameter([-1], openvino.Type.i32, name="beam_idx")
    beam.output(0).get_tensor().set_names({"beam_idx"})
    traced.add_parameters([beam])
    ports = {port.get_any_name(): port for port in traced.inputs}
    names = _cache_names(len(cache_shapes))
    for name in names:
        port = ports[f"past_key_values.{name}"]
        readers = port.get_target_inputs()
        chosen = opset13.gather(port, beam, opset13.constant(0))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    traced.validate_nodes_and_infer_types()
    manager = passes.Manager()
    manager.register_pass(passes.MakeStateful({f"past_key_values.{name}": f"present.{name}" for name in names}))
    manager.run_passes(traced)
    _start_empty(traced, ports["input_ids"])


def _start_empty(traced: Any, input_ids: Any) -> None:
    openvino = import_openvino()
    from openvino import opset13

    batch = opset13.gather(opset13.shape_of(input_ids), opset13.constant([0]), opset13.constant(0))
    for node in traced.get_ops():
        if node.get_type_name() == "ReadValue":
            shape = node.get_output_partial_shape(0)
            rest = [opset13.constant([size]) for size in (shape[1].get_length(), 0, shape[3].get_length())]
            sizes = opset13.concat([batch, *rest], axis=0)
            node.set_arguments([opset13.broadcast(opset13.constant(0.0, openvino.Type.f32), sizes)])
    traced.validate_nodes_and_infer_types()
