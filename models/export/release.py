"""Checkpoint to release: merge the adapter, convert the weights, and measure the change.

A release has one or more forms: a plain Hugging Face folder, an OpenVINO export for CPUs, a folder of compressed
tensors for GPUs, a GGUF file. Each is compared with the checkpoint on the same held-out conversations.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from models.base import adapters
from models.base.load import load_model, load_tokenizer, save_tokenizer
from models.base.precision import dtype_of
from models.errors import RayconteurError
from models.export.compressed_tensors import load_compressed, write_compressed
from models.export.gguf import load_gguf, write_gguf
from models.export.gptq import round_layers
from models.export.openvino_export import Weights, export_each
from models.export.openvino_runtime import ExportedModel
from models.kernels.attention import PACKED_ATTENTION
from models.kernels.loss import supervised_logits
from models.packing import PackedBatch, pack

# Of the Hugging Face folder; only the other forms have fewer bits.
_FOLDER_WEIGHTS = {"bf16": "bf16", "fp32": "fp32", "int8": "bf16", "int4": "bf16"}

Figures = dict[str, Any]
"""measurements of a form: `weights`, `size_mb`, `perplexity`, and the figures of `Probe.compare`"""


@dataclass(frozen=True)
class Probe:
    """Conversations on which the forms of a release are compared with the unmerged float32 checkpoint."""

    conversations: Sequence[Any]
    """(input_ids, supervised)"""
    batch: PackedBatch
    reference: torch.Tensor
    """float32 [S, V]: the checkpoint's logits at the supervised positions"""
    max_perplexity_increase: float

    @cached_property
    def perplexity(self) -> float:
        """The checkpoint's."""
        return self._perplexity_of(self.reference)

    def compare(self, logits: torch.Tensor) -> Figures:
        """`perplexity`, `perplexity_increase` (0.01 is 1 %), `greedy_agreement` (share of supervised tokens for which
        both have the same most likely token) and `largest_logit_change`."""
        return self._compared(logits, self._perplexity_of(logits))

    def _compared(self, logits: torch.Tensor, after: float) -> Figures:
        agreement = (logits.argmax(-1) == self.reference.argmax(-1)).float().mean()
        return {
            "perplexity": round(after, 4),
            "perplexity_increase": round(after / self.perplexity - 1, 5),
            "greedy_agreement": round(float(agreement), 4),
            "largest_logit_change": round(float((logits - self.reference).abs().max()), 4),
        }

    def check(self, logits: torch.Tensor, what: str) -> Figures:
        """`compare`; raises RayconteurError if the perplexity rises above its limit."""
        after = self._perplexity_of(logits)
        figures = self._compared(logits, after)
        increase = after / self.perplexity - 1
        if not increase <= self.max_perplexity_increase:  # also if it is NaN
            raise RayconteurError(
                f"optimize.max_perplexity_increase: {what} has a perplexity of {after:.4f} on held-out "
                f"conversations, the checkpoint {self.perplexity:.4f}: an increase of {increase:.2%}, where at most "
                f"{self.max_perplexity_increase:.2%} are allowed (greedy agreement "
                f"{figures['greedy_agreement']:.1%}); raise the limit, or choose optimize.weights with more bits"
            )
        return figures

    def _perplexity_of(self, logits: torch.Tensor) -> float:
        return math.exp(float(F.cross_entropy(logits, self.batch.targets)))


def release(
    base_folder: Path,
    checkpoint_folder: Path,
    target: Path,
    weights: Weights,
    conversations: Sequence[Any],
    max_perplexity_increase: float,
) -> tuple[Probe, Figures]:
    """Write the checkpoint as a plain Hugging Face folder, loadable without PEFT; in bf16 for int8 and int4.

    The adapter is merged in float32. Returns the probe, and the figures of the folder, computed in the floating-point
    format that is faster here. Raises RayconteurError if the perplexity rises by more than `max_perplexity_increase`.
    """
    batch, kept = pack(conversations), _FOLDER_WEIGHTS[weights]
    with torch.inference_mode():
        if adapters.is_adapter(checkpoint_folder):
            unmerged = adapters.load(load_model(base_folder, torch.float32, PACKED_ATTENTION), checkpoint_folder)
            reference = supervised_logits(unmerged.eval(), batch)
            model = adapters.merge(unmerged)
        else:
            model = load_model(checkpoint_folder, torch.float32, PACKED_ATTENTION)
            reference = supervised_logits(model, batch)
        model.to(dtype_of(kept)).save_pretrained(target)
        save_tokenizer(load_tokenizer(checkpoint_folder), target)
        del model
        computed = dtype_of("fp32" if kept == "fp32" else "auto")
        logits = supervised_logits(load_model(target, computed, PACKED_ATTENTION), batch)
    probe = Probe(conversations, batch, reference, max_perplexity_increase)
    return probe, {"weights": kept, "size_mb": _size_mb(target), **probe.check(logits, "the release")}


def round_to_steps(folder: Path, target: Path, conversations: Sequence[Any]) -> None:
    """Write the release in `folder` to `target` in float32, with its layers rounded to the steps of 4-bit weights so
    that their outputs on these conversations change least."""
    model = load_model(folder, torch.float32, PACKED_ATTENTION)
    round_layers(model, pack(conversations))
    model.save_pretrained(target)
    save_tokenizer(load_tokenizer(folder), target)


def release_for_openvino(
    folder: Path, targets: Mapping[Weights, Path], chosen: Weights, probe: Probe
) -> dict[Weights, Figures]:
    """Write the release in `folder` as OpenVINO models, a folder for each weight format; returns their figures,
    computed with OpenVINO's default precision.

    Raises RayconteurError as `models.export.openvino_export.export_each` does, and if the perplexity of the `chosen`
    format rises above its limit; the others are only for comparison.
    """
    export_each(folder, targets)
    found: dict[Weights, Figures] = {}
    for weights, target in targets.items():
        logits = _exported_logits(ExportedModel(target, "auto"), probe.conversations)
        if weights == chosen:
            figures = probe.check(logits, f"the OpenVINO export with {weights} weights")
        else:
            figures = probe.compare(logits)
        found[weights] = {"weights": weights, "size_mb": _size_mb(target), **figures}
    return found


def release_as_gguf(folder: Path, target: Path, weights: Weights, name: str, probe: Probe) -> Figures:
    """Write the release in `folder` as `model.gguf` into `target`; returns the figures of the model that transformers
    reads from it.

    `load_s` is the time of reading in seconds. Raises RayconteurError if `models.export.gguf` cannot write the model,
    or if the perplexity rises above its limit.
    """
    write_gguf(folder, target, weights, name)
    return _read_back(load_gguf, target, weights, "the GGUF file", probe)


def release_for_vllm(folder: Path, target: Path, weights: Weights, probe: Probe) -> Figures:
    """Write the release in `folder` as a folder of compressed tensors; otherwise like `release_as_gguf`."""
    write_compressed(folder, target, weights)
    return _read_back(load_compressed, target, weights, "the folder of compressed tensors", probe)


def _read_back(load: Callable[[Path, str], Any], target: Path, weights: Weights, what: str, probe: Probe) -> Figures:
    began = time.monotonic()
    model = load(target, PACKED_ATTENTION)
    load_s = round(time.monotonic() - began, 2)
    with torch.inference_mode():
        logits = supervised_logits(model, probe.batch)
    figures = probe.check(logits, f"{what} with {weights} weights")
    return {"weights": weights, "size_mb": _size_mb(target), "load_s": load_s, **figures}


def _exported_logits(model: ExportedModel, conversations: Sequence[Any]) -> torch.Tensor:
    """float32 [S, V], like `models.kernels.loss.supervised_logits` of the packed conversations."""
    found = []
    for input_ids, supervised in conversations:
        model.restart()
        predicts = torch.tensor(supervised, dtype=torch.bool)[1:]
        found.append(torch.from_numpy(model.read(input_ids))[:-1][predicts])
    return torch.cat(found)


def _size_mb(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6, 1)
