"""A release as one GGUF file with its tokenizer and chat template, for llama.cpp and programs on it (Ollama).

    write_gguf(Path("release"), Path("release-gguf"), "int8", name="support")
    model = load_gguf(Path("release-gguf"), "sdpa")          # transformers' reading of it

llama.cpp's package `gguf` has the format, the names of tensors and the quantized blocks. The rest of a converter is
here, for the architecture Llama and byte-level BPE.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from models.base.load import load_model, load_tokenizer
from models.base.sizes import max_positions
from models.chat import ChatTemplateError, end_token_ids
from models.errors import RayconteurError
from models.export.rounding import round_groups

GGUF_FILE = "model.gguf"

_Types = gguf.GGMLQuantizationType
# (matrices, embeddings and head, the file's type); vectors are always float32.
_FORMATS = {
    "fp32": (_Types.F32, _Types.F32, gguf.LlamaFileType.ALL_F32),
    "bf16": (_Types.BF16, _Types.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "int8": (_Types.Q8_0, _Types.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "int4": (_Types.Q4_1, _Types.Q8_0, gguf.LlamaFileType.MOSTLY_Q4_1),
}
# llama.cpp's names for pre-tokenizers, which split texts before byte pairs are merged.
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def refusal(config: Any, tokenizer: Any) -> str | None:
    """Why a model with this transformers config and tokenizer cannot be written as GGUF; None if it can."""
    if config.model_type != "llama":
        return f"its model_type is {config.model_type!r}; only llama is supported"
    if config.attention_bias or config.mlp_bias:
        return "its layers have biases, which llama.cpp's Llama does not support"
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if rope != "default":
        return f"its rope_type {rope!r} is not supported, only the default one"
    if _splitting(tokenizer) is None:
        return "its tokenizer is not a byte-level BPE with the pre-tokenizer of GPT-2, SmolLM or Llama 3"
    return None


def write_gguf(folder: Path, target: Path, weights: str, name: str) -> None:
    """Write the model of a Hugging Face folder with its tokenizer as `model.gguf` into `target`.

    `int8` means blocks of 32 weights with a scale (Q8_0), `int4` blocks with a scale and an offset (Q4_1), with
    embeddings and head in Q8_0. `name` is the model's name in the file. Raises RayconteurError for a model that is
    not supported.
    """
    model, tokenizer = load_model(folder, torch.float32), load_tokenizer(folder)
    reason = refusal(model.config, tokenizer)
    if reason is not None:
        raise RayconteurError(f"optimize.targets: gguf: the model cannot be written as GGUF: {reason}")
    target.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(target / GGUF_FILE, "llama")
    writer.add_name(name)
    writer.add_file_type(_FORMATS[weights][2])
    _add_sizes(writer, model.config)
    _add_tokenizer(writer, tokenizer, model.config.vocab_size)
    for tensor_name, values, kind in _tensors(model, weights):
        writer.add_tensor(tensor_name, _blocks(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load_gguf(folder: Path, attention: str) -> Any:
    """The model that transformers reads from `model.gguf`, in float32."""
    from transformers import AutoModelForCausalLM, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        str(folder),
        gguf_file=GGUF_FILE,
        dtype=torch.float32,
        attn_implementation=attention,
        quantization_config=GgufConfig(dequantize=True),
    )
    return model.eval()


def _add_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(max_positions(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _tensors(model: Any, weights: str) -> Iterator[tuple[str, Any, Any]]:
    """Name, float32 values and format of every tensor, as llama.cpp expects them."""
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    matrices, tokens, _ = _FORMATS[weights]
    for name, parameter in model.named_parameters():  # a tied head appears once, as the embedding
        values = parameter.detach().numpy()
        for ending, num_heads in heads.items():
            if name.endswith(ending):
                values = _interleaved(values, num_heads)
        kind = tokens if name.startswith(("model.embed_tokens", "lm_head")) else matrices
        if values.ndim == 1 or values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = _Types.F32
        yield names.get_name(name, try_suffixes=(".weight",)), values, kind


def _blocks(values: Any, kind: Any) -> Any:
    """The bytes of a tensor. The 4-bit code is this project's: `gguf` would round weights on fewer than 16 steps
    again.
    """
    if kind != _Types.Q4_1:
        return gguf.quantize(values, kind)
    rounded = round_groups(torch.from_numpy(values), 4, 32)
    scale = rounded.scale.float()
    ends = torch.cat([scale, -scale * rounded.zero], dim=-1).half().view(torch.uint8)
    halves = rounded.steps.view(*rounded.steps.shape[:2], 2, 16)
    return torch.cat([ends, halves[..., 0, :] | halves[..., 1, :] << 4], dim=-1).flatten(1).numpy()


def _interleaved(matrix: Any, num_heads: int) -> Any:
    """Reorder queries or keys [H * D, I]: llama.cpp rotates adjacent rows, transformers the two halves of D."""
    halves = matrix.reshape(num_heads, 2, -1, matrix.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(matrix.shape)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, vocab_size: int) -> None:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token["id"]: token["special"] for token in content["added_tokens"]}
    words = {number: word for word, number in tokenizer.get_vocab().items()}
    types = gguf.TokenType
    kinds = []
    for number in range(vocab_size):
        if number not in words:
            kinds.append(types.UNUSED)
        elif number in special:
            kinds.append(types.CONTROL if special[number] else types.USER_DEFINED)
        else:
            kinds.append(types.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(tokenizer))
    writer.add_token_list([words.get(number, f"[PAD{number}]") for number in range(vocab_size)])
    writer.add_token_types(kinds)
    if content["model"]["merges"]:
        writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    for token_id, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (_end_of_turn(tokenizer), writer.add_eot_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if token_id is not None:
            add(token_id)
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    writer.add_add_bos_token(begins)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(tokenizer.chat_template)


def _end_of_turn(tokenizer: Any) -> int | None:
    """The token that ends a reply, if it is not the tokenizer's end token."""
    try:
        ends = end_token_ids(tokenizer) - {tokenizer.eos_token_id}
    except ChatTemplateError:
        return None  # its template writes no end of a reply
    return min(ends, default=None)


def _splitting(tokenizer: Any) -> str | None:
    """llama.cpp's name for this tokenizer's pre-tokenizer; None if it is not a known one."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    splitter = content["pre_tokenizer"] or {}
    if content["model"]["type"] != "BPE" or content["normalizer"] is not None:
        return None
    steps = splitter["pretokenizers"] if splitter.get("type") == "Sequence" else [splitter]
    *before, last = steps
    if not last.items() >= _BYTE_LEVEL.items():
        return None
    if last["use_regex"]:
        if not before:
            return "gpt-2"
        return "smollm" if before == [{"type": "Digits", "individual_digits": True}] else None
    if len(before) == 1 and before[0].get("pattern") == {"Regex": _LLAMA_3} and before[0]["behavior"] == "Isolated":
        return "llama-bpe"
    return None
