"""Checkpoint to release: merge the adapter, convert the weights, and measure what that changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from models import adapters
from models.attention import PACKED_ATTENTION
from models.base import load_model, load_tokenizer
from models.loss import supervised_logits
from models.packing import pack


def release(
    base_folder: Path, checkpoint_folder: Path, target: Path, dtype: torch.dtype, probe: Sequence[Any]
) -> dict[str, float]:
    """Write the checkpoint as a plain Hugging Face folder in `dtype`, loadable without PEFT.

    The adapter is merged in float32. `probe` are conversations (input_ids, supervised) on which the release is
    compared with the unmerged float32 model. Returns `greedy_agreement` (share of supervised tokens at which both
    put the same token first), `largest_logit_change` and `size_mb`.
    """
    batch = pack(probe)
    with torch.inference_mode():
        if adapters.is_adapter(checkpoint_folder):
            unmerged = adapters.load(load_model(base_folder, torch.float32, PACKED_ATTENTION), checkpoint_folder)
            reference = supervised_logits(unmerged.eval(), batch)
            model = adapters.merge(unmerged)
        else:
            model = load_model(checkpoint_folder, torch.float32, PACKED_ATTENTION)
            reference = supervised_logits(model, batch)
        model.to(dtype).save_pretrained(target)
        load_tokenizer(checkpoint_folder).save_pretrained(target)
        del model
        logits = supervised_logits(load_model(target, dtype, PACKED_ATTENTION), batch)
    agreement = (logits.argmax(-1) == reference.argmax(-1)).float().mean()
    return {
        "greedy_agreement": round(float(agreement), 4),
        "largest_logit_change": round(float((logits - reference).abs().max()), 4),
        "size_mb": round(sum(file.stat().st_size for file in target.rglob("*") if file.is_file()) / 1e6, 1),
    }
