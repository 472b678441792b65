"""Checkpoint to release: merge the adapter, convert the weights, and measure what that changed."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from models import adapters
from models.attention import PACKED_ATTENTION
from models.base import load_model, load_tokenizer
from models.loss import supervised_logits
from models.openvino_export import Weights, export
from models.openvino_runtime import ExportedModel
from models.packing import PackedBatch, pack

# Of the Hugging Face folder: 8-bit rows are a matter of the export.
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "int8": torch.bfloat16}


@dataclass(frozen=True)
class Probe:
    """Conversations on which a release is compared with the unmerged float32 checkpoint, and what that says."""

    conversations: Sequence[Any]
    """(input_ids, supervised)"""
    batch: PackedBatch
    reference: torch.Tensor
    """float32 [S, V]: the checkpoint's logits at the supervised positions"""
    max_perplexity_increase: float

    def compare(self, logits: torch.Tensor, what: str) -> dict[str, float]:
        """`greedy_agreement` (share of supervised tokens at which both put the same token first),
        `largest_logit_change` and `perplexity_increase` (0.01 is 1 %).

        Raises ValueError if that is above what is allowed.
        """
        before, after = (self._perplexity(found) for found in (self.reference, logits))
        increase = after / before - 1
        if not increase <= self.max_perplexity_increase:
            raise ValueError(
                f"optimize.max_perplexity_increase: {what} has a perplexity of {after:.4f} on held-out "
                f"conversations, the checkpoint {before:.4f}: {increase:.2%} more, at most "
                f"{self.max_perplexity_increase:.2%} are allowed; allow more, or choose more exact optimize.weights"
            )
        agreement = (logits.argmax(-1) == self.reference.argmax(-1)).float().mean()
        return {
            "greedy_agreement": round(float(agreement), 4),
            "largest_logit_change": round(float((logits - self.reference).abs().max()), 4),
            "perplexity_increase": round(increase, 5),
        }

    def _perplexity(self, logits: torch.Tensor) -> float:
        return math.exp(float(F.cross_entropy(logits, self.batch.targets)))


def release(
    base_folder: Path,
    checkpoint_folder: Path,
    target: Path,
    weights: Weights,
    conversations: Sequence[Any],
    max_perplexity_increase: float,
) -> tuple[Probe, dict[str, float]]:
    """Write the checkpoint as a plain Hugging Face folder, loadable without PEFT; int8 stands for bf16 here.

    The adapter is merged in float32. Returns what `Probe.compare` says of it on `conversations`, with its `size_mb`,
    and the probe. Raises ValueError if the perplexity rises by more than `max_perplexity_increase`.
    """
    batch, dtype = pack(conversations), _DTYPES[weights]
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
    probe = Probe(conversations, batch, reference, max_perplexity_increase)
    return probe, {**probe.compare(logits, "the release"), "size_mb": _size_mb(target)}


def release_for_openvino(folder: Path, target: Path, weights: Weights, probe: Probe) -> dict[str, float]:
    """Write the release in `folder` as an OpenVINO model too, and compare that, computed as OpenVINO chooses to.

    Returns the same figures and `load_s`, the seconds until it could compute; their names begin with `openvino_`.
    Raises ValueError as `release` and `models.openvino_export.export` do.
    """
    export(folder, target, weights)
    began = time.monotonic()
    model = ExportedModel(target, "auto")
    load_s = time.monotonic() - began
    figures = {
        **probe.compare(
            _supervised_logits(model, probe.conversations), f"the OpenVINO export with {weights} weights"
        ),
        "size_mb": _size_mb(target),
        "load_s": round(load_s, 2),
    }
    return {f"openvino_{name}": value for name, value in figures.items()}


def _supervised_logits(model: ExportedModel, conversations: Sequence[Any]) -> torch.Tensor:
    """float32 [S, V], as `models.loss.supervised_logits` of the packed conversations."""
    found = []
    for input_ids, supervised in conversations:
        model.restart()
        predicts = torch.tensor(supervised, dtype=torch.bool)[1:]
        found.append(torch.from_numpy(model.read(input_ids))[:-1][predicts])
    return torch.cat(found)


def _size_mb(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6, 1)
