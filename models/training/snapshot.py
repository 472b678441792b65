"""A training state copied to memory, to be written to disk while training continues."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Write = Callable[[Path], None]
"""Writes a copied state into a folder; may run on another thread."""


def copied(value: Any) -> Any:
    """`value` with every tensor in it copied to main memory."""
    if isinstance(value, torch.Tensor):
        # Tensors on the CPU are copied too, since training changes them.
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((name, copied(item)) for name, item in value.items()) if value else value
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(copied(item) for item in value)
    return value


def model_writer(model: Any, state: dict[str, torch.Tensor]) -> Write:
    """Writes a Hugging Face folder, for LoRA a PEFT adapter, with these weights."""
    options = {}
    if hasattr(model, "peft_config"):
        # Otherwise PEFT asks the Hub whether the base model's vocabulary has grown; ours never does.
        options["save_embedding_layers"] = False
    return lambda folder: model.save_pretrained(folder, state_dict=state, **options)


def random_state() -> dict[str, Any]:
    """The states of all random generators in this process."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore the states from `random_state`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class DeepSpeedFiles:
    """Replaces DeepSpeed's checkpoint engine: files that DeepSpeed saves are copied to memory instead."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._files: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def save(self, state_dict: Any, path: str) -> None:
        """Called by DeepSpeed for every file of this worker."""
        self._files.append((path, copied(state_dict)))

    def taken(self, root: Path) -> Write:
        """A function that writes the files saved since the last call, whose paths start with `root`."""
        files, self._files = self._files, []

        def write(folder: Path) -> None:
            for path, state in files:
                target = folder / Path(path).relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                torch.save(state, target)

        return write
