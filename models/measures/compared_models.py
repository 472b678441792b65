"""The losses of a base model, its tuned version and perhaps the release in service, on the same tokens."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from models.base import adapters
from models.base.load import load_model, load_tokenizer
from models.base.new_tokens import fit_embeddings
from models.kernels.attention import PACKED_ATTENTION
from models.objectives.preference import sequence_log_probabilities
from models.packing import PackedBatch


class ComparedModels:
    """A base model and its trained version, and a plain model beside them. With an adapter, base and trained one are
    one model, with the adapter on or off.
    """

    def __init__(
        self,
        base_folder: Path | str,
        checkpoint_folder: Path | str,
        dtype: torch.dtype,
        device: str = "cpu",
        service_folder: Path | str | None = None,
    ) -> None:
        """`service_folder` has a model that reads the same tokens."""
        self._has_adapter = adapters.is_adapter(checkpoint_folder)
        base = load_model(base_folder, dtype, PACKED_ATTENTION)
        if self._has_adapter:
            self._tuned = adapters.load(base, checkpoint_folder).eval()
            self._base = self._tuned
        else:
            fit_embeddings(base, base_folder, load_tokenizer(checkpoint_folder))
            self._base, self._tuned = base.to(device), load_model(checkpoint_folder, dtype, PACKED_ATTENTION)
        self._tuned.to(device)
        self._service = load_model(service_folder, dtype, PACKED_ATTENTION).to(device) if service_folder else None
        self._device = torch.device(device)

    def log_probabilities(self, batch: PackedBatch) -> dict[str, torch.Tensor]:
        """float32 [C] by model, `base`, `tuned` and perhaps `service`: the summed log-probabilities of each
        sequence's targets, in nats.
        """
        batch = batch.to(self._device)
        with torch.inference_mode():
            with self._base_model() as model:
                found = {"base": sequence_log_probabilities(model, batch).cpu()}
            found["tuned"] = sequence_log_probabilities(self._tuned, batch).cpu()
            if self._service is not None:
                found["service"] = sequence_log_probabilities(self._service, batch).cpu()
        return found

    @contextlib.contextmanager
    def _base_model(self) -> Iterator[Any]:
        with self._base.disable_adapter() if self._has_adapter else contextlib.nullcontext():
            yield self._base
