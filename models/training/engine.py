"""The interface of training engines, `TrainingEngine`, and the one in plain torch for unit tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from models.kernels.lora import fuse_lora
from models.kernels.loss import fuse_head
from models.objectives.base import Loss
from models.packing import PackedBatch
from models.training.snapshot import Write, copied, model_writer, random_state, set_random_state

_BETAS = (0.9, 0.999)
MODEL_FOLDER = "model"
"""the Hugging Face folder inside a checkpoint"""

Sums = dict[str, float]
"""sums over a batch: `loss` in nats, and the objective's figures; dividing by the batch's weight gives means"""


class TrainingEngine(Protocol):
    """A model with its optimizer, distributed over `num_workers` processes of which this is number `rank`."""

    model: Any
    rank: int
    num_workers: int
    device: torch.device

    def accumulate(self, batch: PackedBatch, step_weight: float, is_last: bool = True) -> Sums:
        """Forward and backward of one micro-batch; the step's loss is the sum of all its batches over this weight.

        An infinite weight makes the batch add nothing, for workers with fewer batches than others. `is_last` marks
        this worker's last batch before `update` or `skip`.
        """

    def update(self, learning_rate: float) -> float:
        """Apply the accumulated gradient; returns its norm before clipping.

        If the norm is not finite, nothing is applied.
        """

    def skip(self) -> None:
        """Drop the accumulated gradient."""

    def measure(self, batch: PackedBatch) -> Sums:
        """The same sums for a batch, without gradients and dropout."""

    def total(self, values: list[float]) -> list[float]:
        """Each value summed over all workers."""

    def largest(self, value: float) -> float:
        """The largest of all workers' values."""

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, in the order of their ranks."""

    def gb_to_come(self) -> float:
        """GB (10^9 bytes) that this worker will allocate after its first update.

        They are the optimizer's moments and, if it computes in main memory, a checkpoint's copy.
        """

    def snapshot(self) -> Write:
        """Copy this worker's part of the training state to memory; all workers call it together.

        The returned function writes it into a folder that all workers share; worker 0 also writes `model/`, a Hugging
        Face folder (for LoRA a PEFT adapter).
        """

    def load(self, folder: Path) -> None:
        """Resume from the folder that all workers' snapshots wrote; all workers call it together.

        The number of workers may differ from that of the snapshot.
        """


class _AdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) that can skip a step and keep its state."""

    skips = False

    def step(self, closure: Any = None) -> Any:
        """Called by DeepSpeed, which clears the gradients itself, applied or not."""
        return None if self.skips or not self._is_finite() else super().step(closure)

    def _is_finite(self) -> bool:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        return all(bool(torch.isfinite(gradient.sum(dtype=torch.float32))) for gradient in gradients)


def optimizer_for(model: Any, weight_decay: float) -> _AdamW:
    """AdamW over the trainable weights; its learning rate is set before every update."""
    return adamw([parameter for parameter in model.parameters() if parameter.requires_grad], weight_decay)


def adamw(parameters: Sequence[torch.nn.Parameter], weight_decay: float) -> _AdamW:
    """AdamW over these weights."""
    return _AdamW(parameters, lr=0.0, betas=_BETAS, weight_decay=weight_decay, fused=True)


class TorchEngine:
    """One process, plain torch: for unit tests, and as the reference for DeepSpeed."""

    rank = 0
    num_workers = 1

    def __init__(self, model: Any, objective: Loss, weight_decay: float = 0.0, gradient_clip: float = 1.0) -> None:
        fuse_head(model)
        fuse_lora(model)
        self.model = model.train()
        self._objective = objective
        self.device = next(model.parameters()).device
        self._optimizer = optimizer_for(model, weight_decay)
        self._gradient_clip = gradient_clip
        self._weight_decay = weight_decay

    def accumulate(self, batch: PackedBatch, step_weight: float, is_last: bool = True) -> Sums:
        loss, figures = self._objective.loss_sum(self.model, batch)
        (loss / step_weight).backward()  # type: ignore[no-untyped-call]
        return {"loss": float(loss.detach()), **figures}

    def update(self, learning_rate: float) -> float:
        for group in self._optimizer.param_groups:  # a checkpoint has those of the training that wrote it
            group |= {"lr": learning_rate, "weight_decay": self._weight_decay}
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trainable, self._gradient_clip or float("inf"))
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(norm)

    def skip(self) -> None:
        self._optimizer.zero_grad()

    def measure(self, batch: PackedBatch) -> Sums:
        return measured(self.model, self._objective, batch)

    def total(self, values: list[float]) -> list[float]:
        return values

    def largest(self, value: float) -> float:
        return value

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def gb_to_come(self) -> float:
        trained = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        return float(trained * (8 + 12) / 1e9)

    def snapshot(self) -> Write:
        model = copied(self.model.state_dict())
        state = {"model": model, "optimizer": copied(self._optimizer.state_dict()), "random": random_state()}
        write_model = model_writer(self.model, model)

        def write(folder: Path) -> None:
            torch.save(state, folder / "state.pt")
            write_model(folder / MODEL_FOLDER)

        return write

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "state.pt", weights_only=False)
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        set_random_state(state["random"])


def measured(model: Any, objective: Loss, batch: PackedBatch) -> Sums:
    model.eval()  # no dropout, which would also advance the random state
    try:
        with torch.no_grad():
            loss, figures = objective.loss_sum(model, batch)
            return {"loss": float(loss), **figures}
    finally:
        model.train()
