"""Base models that one process keeps from one training to the next.

A LoRA adapter does not change the weights of its base model, so the next training can use them without loading them.
"""

import copy
from pathlib import Path
from typing import Any

import torch

from models.base.load import load_model


class BaseModels:
    """Keeps the base model that was used last."""

    def __init__(self) -> None:
        self._kept: tuple[Any, ...] = ()
        self._model: Any = None

    def model(
        self, folder: Path, dtype: torch.dtype, attention: str, quantize: str | None = None, stays: bool = False
    ) -> Any:
        """`load_model`; if its weights `stay` unchanged, the next call takes them from memory.

        Each call then returns new modules with the same tensors as parameters.
        """
        if not stays:
            self._kept, self._model = (), None
            return load_model(folder, dtype, attention, quantize)
        wanted = (folder, dtype, attention, quantize)
        if self._kept != wanted:
            self._kept, self._model = (), None  # before the next one is loaded: there may be no room for two
            self._model = load_model(*wanted)
            self._kept = wanted
        weights = [*self._model.parameters(), *self._model.buffers()]
        return copy.deepcopy(self._model, {id(weight): weight for weight in weights})
