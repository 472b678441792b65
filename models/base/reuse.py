"""Base models kept between one training and the next of the same process.

A LoRA adapter leaves its base's weights as they are: the next training can have them without reading them again.
"""

import copy
from pathlib import Path
from typing import Any

import torch

from models.base.load import load_model


class BaseModels:
    """The base model last used."""

    def __init__(self) -> None:
        self._kept: tuple[Any, ...] = ()
        self._model: Any = None

    def model(
        self, folder: Path, dtype: torch.dtype, attention: str, quantize: str | None = None, stays: bool = False
    ) -> Any:
        """`load_model`; if its weights `stay` as they are, from memory the next time.

        Then every call gives modules of its own, whose parameters are the same tensors.
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
