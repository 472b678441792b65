"""vLLM's settings as plain data, for a replica and for a request. This file does not need vLLM.

AsyncEngineArgs(model=folder, **engine_arguments("auto", max_active=256, num_gpus=2, adapters={}))
SamplingParams(**sampling_arguments(request))
"""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.errors import RayconteurError
from serve.engines.base import GenerationRequest, Precision

# Memory share for a part of a GPU. vLLM's default for a whole one is 0.92; replicas on one GPU need room for each
# other.
_MEMORY_OF_A_PART = 0.9

# On CPUs vLLM would use nearly all of the machine's memory for its cache.
_CPU_CACHE_BYTES = 2 << 30

_DTYPES = {"auto": "auto", "bf16": "bfloat16", "fp32": "float32"}

# LoRA ranks that vLLM has kernels for.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def engine_arguments(
    precision: Precision, max_active: int, num_gpus: float, adapters: Mapping[str, str]
) -> dict[str, Any]:
    """Arguments of `vllm.engine.arg_utils.AsyncEngineArgs` for a replica with `num_gpus` GPUs.

    Several GPUs share each layer (tensor parallelism); a fraction uses that share of a GPU's memory; 0 is for vLLM's
    CPU build. `adapters` are folders of LoRA adapters by name; raises RayconteurError for one that vLLM could not
    serve.
    """
    arguments: dict[str, Any] = {
        "dtype": _DTYPES[precision],
        "max_num_seqs": max_active,
        "max_model_len": -1,  # the model's, or as much as fits into the cache
        "tensor_parallel_size": max(1, int(num_gpus)),
        # The library that serve/grammar/json_grammar.py has checked the grammar with.
        "structured_outputs_config": {"backend": "guidance"},
    }
    if not num_gpus:
        arguments["kv_cache_memory_bytes"] = _CPU_CACHE_BYTES
    elif num_gpus < 1:
        arguments["gpu_memory_utilization"] = round(_MEMORY_OF_A_PART * num_gpus, 3)
    if adapters:
        largest = max(_rank(name, folder) for name, folder in adapters.items())
        arguments |= {
            "enable_lora": True,
            # On CPUs vLLM 0.29 applies the last slot's adapter to requests without one in a mixed batch: it stays
            # empty.
            "max_loras": len(adapters) + (0 if num_gpus else 1),
            "max_lora_rank": next(rank for rank in _RANKS if rank >= largest),
        }
    return arguments


def environment(num_cpus: float, num_gpus: float) -> dict[str, str]:
    """Environment variables of a replica."""
    if not num_gpus:
        # By default vLLM would use all cores of the machine but one.
        return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(max(1, int(num_cpus)))}
    return {"VLLM_RAY_PER_WORKER_GPUS": str(num_gpus)} if num_gpus < 1 else {}


def check_heads(release_folder: Path | str, num_gpus: float) -> None:
    """Raise RayconteurError if the model's attention heads cannot be divided among the GPUs."""
    config = json.loads((Path(release_folder) / "config.json").read_text())
    heads, parts = config.get("num_attention_heads") or config.get("n_head"), int(num_gpus)
    if parts > 1 and heads is not None and heads % parts:
        fitting = ", ".join(str(count) for count in range(1, parts) if heads % count == 0)
        raise RayconteurError(
            f"serve.gpus_per_replica: the model has {heads} attention heads, which {parts} GPUs cannot share evenly; "
            f"use {fitting}, or more replicas"
        )


def sampling_arguments(request: GenerationRequest) -> dict[str, Any]:
    """Arguments of `vllm.SamplingParams`, without those that are vLLM objects."""
    return {
        "max_tokens": request.max_new_tokens,
        "temperature": 0.0 if request.is_greedy else request.temperature,
        "top_p": 1.0 if request.is_greedy else request.top_p,
        "top_k": 0 if request.is_greedy else request.top_k,
        "min_p": 0.0 if request.is_greedy else request.min_p,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "repetition_penalty": request.repetition_penalty,
        "logit_bias": dict(request.logit_bias) or None,
        "allowed_token_ids": _allowed(request),
        "logprobs": request.num_logprobs,
        # -1 means no seed to vLLM, and torch takes signed 64-bit seeds.
        "seed": secrets.randbits(63) if request.seed is None else request.seed % 2**63,
        "stop_token_ids": sorted(request.end_token_ids),
        "min_tokens": request.min_new_tokens,
        "ignore_eos": True,  # the request has its own end tokens
        "detokenize": False,
    }


def _allowed(request: GenerationRequest) -> list[int] | None:
    allowed = request.allowed_token_ids
    return None if allowed is None else sorted(allowed | request.end_token_ids)


def _rank(name: str, folder: str) -> int:
    try:
        config = json.loads((Path(folder) / "adapter_config.json").read_text())
    except (OSError, ValueError) as error:
        raise RayconteurError(f"adapter {name!r}: {folder} is not a PEFT adapter: {error}") from error
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("modules_to_save"):
        raise RayconteurError(f"adapter {name!r}: vLLM only serves LoRA without DoRA and modules_to_save")
    rank = max(map(int, [config["r"], *config.get("rank_pattern", {}).values()]))
    if rank > _RANKS[-1]:
        raise RayconteurError(f"adapter {name!r}: its rank is {rank}; vLLM serves at most {_RANKS[-1]}")
    return rank
