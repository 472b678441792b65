"""What a training step stands on: DeepSpeed, or plain torch for unit tests. Both are a `TrainingEngine`."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol

import torch

from models.lora import fuse_lora
from models.loss import fuse_head
from models.objectives import Objective
from models.operator import load_operator
from models.packing import PackedBatch
from models.snapshot import DeepSpeedFiles, Write, copied, model_writer, random_state, set_random_state

_BETAS = (0.9, 0.999)
_TAG = "state"
MODEL_FOLDER = "model"
"""where in a checkpoint the Hugging Face folder is"""

Sums = dict[str, float]
"""sums over a batch: `loss` in nats, and the objective's figures; divided by the batch's weight they are means"""


class TrainingEngine(Protocol):
    """A model with its optimizer, spread over `num_workers` processes of which this is number `rank`."""

    rank: int
    num_workers: int
    device: torch.device

    def accumulate(self, batch: PackedBatch, step_weight: int) -> Sums:
        """Forward and backward of one micro-batch; the step's loss is the sum of all its batches over this weight."""

    def update(self, learning_rate: float) -> float:
        """Apply the accumulated gradient; returns its norm before clipping."""

    def measure(self, batch: PackedBatch) -> Sums:
        """The same of a batch without a gradient and without dropout."""

    def total(self, values: list[float]) -> list[float]:
        """Each value summed over all workers."""

    def snapshot(self) -> Write:
        """Copy this worker's part of the training state to memory; all workers call it together.

        What is returned writes it into a folder that all workers' parts go into; worker 0 also writes `model/`, a
        Hugging Face folder (for LoRA a PEFT adapter).
        """

    def load(self, folder: Path) -> None:
        """Go on from what all workers' snapshots wrote; all workers call it together."""


def optimizer_for(model: Any, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW over the trainable weights; its learning rate is set anew before every update."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trainable, lr=0.0, betas=_BETAS, weight_decay=weight_decay)


class TorchEngine:
    """One process, plain torch: what unit tests train with, and what DeepSpeed is compared to."""

    rank = 0
    num_workers = 1

    def __init__(
        self, model: Any, objective: Objective, weight_decay: float = 0.0, gradient_clip: float = 1.0
    ) -> None:
        fuse_head(model)
        fuse_lora(model)
        self.model = model.train()
        self._objective = objective
        self.device = next(model.parameters()).device
        self._optimizer = optimizer_for(model, weight_decay)
        self._gradient_clip = gradient_clip

    def accumulate(self, batch: PackedBatch, step_weight: int) -> Sums:
        loss, figures = self._objective.loss_sum(self.model, batch)
        (loss / step_weight).backward()  # type: ignore[no-untyped-call]
        return {"loss": float(loss.detach()), **figures}

    def update(self, learning_rate: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trainable, self._gradient_clip or float("inf"))
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(norm)

    def measure(self, batch: PackedBatch) -> Sums:
        return _measure(self.model, self._objective, batch)

    def total(self, values: list[float]) -> list[float]:
        return values

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


class DeepSpeedEngine:
    """DeepSpeed over the processes of an initialised torch.distributed group, with any ZeRO stage."""

    def __init__(
        self,
        model: Any,
        objective: Objective,
        *,
        zero_stage: int,
        precision: str,
        gradient_accumulation: int,
        weight_decay: float,
        gradient_clip: float,
    ) -> None:
        import deepspeed

        load_operator()
        self.rank = torch.distributed.get_rank()
        self.num_workers = torch.distributed.get_world_size()
        self._gradient_accumulation = gradient_accumulation
        self._zero_stage = zero_stage
        self._has_adapter = hasattr(model, "peft_config")
        self._objective = objective
        fuse_head(model)
        if zero_stage < 3:
            fuse_lora(model)
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": gradient_accumulation,
            "gradient_clipping": gradient_clip,
            "zero_optimization": {"stage": zero_stage},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": precision == "bf16"},
            "steps_per_print": 2**31,
            "wall_clock_breakdown": False,
        }
        self._engine, *_ = deepspeed.initialize(
            model=model.train(), optimizer=optimizer_for(model, weight_decay), config=config
        )
        self.device = self._engine.device
        self._files = DeepSpeedFiles(self._engine.checkpoint_engine)
        self._engine.checkpoint_engine = self._files
        if zero_stage == 0 and precision == "bf16":
            # DeepSpeed's optimizer of this case has taken a step with empty gradients: Adam's bias correction
            # would count one step too many, and stage 0 would learn otherwise than stages 1 to 3.
            self._engine.optimizer.optimizer.state.clear()

    def accumulate(self, batch: PackedBatch, step_weight: int) -> Sums:
        loss, figures = self._objective.loss_sum(self._engine, batch)
        # DeepSpeed averages gradients over workers and micro-batches; the step's loss is a sum over its weight.
        scale = self.num_workers * self._gradient_accumulation / step_weight
        self._engine.backward(loss * scale)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
        return {"loss": float(loss.detach()), **figures}

    def update(self, learning_rate: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        return float(self._engine.get_global_grad_norm() or 0.0)

    def measure(self, batch: PackedBatch) -> Sums:
        return _measure(self._engine, self._objective, batch)

    def total(self, values: list[float]) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return [float(value) for value in tensor]

    def snapshot(self) -> Write:
        root = (
            Path(tempfile.gettempdir()) / f"rayconteur-{os.getpid()}"
        )  # DeepSpeed wants a folder, and a script in it
        root.mkdir(exist_ok=True)
        self._engine.save_checkpoint(
            str(root), tag=_TAG, client_state={}, save_latest=False, exclude_frozen_parameters=self._has_adapter
        )
        shutil.rmtree(root, ignore_errors=True)
        write_state, state = self._files.taken(root), random_state()
        weights = self._weights()
        write_model = model_writer(self._engine.module, weights)

        def write(folder: Path) -> None:
            write_state(folder)
            torch.save(state, folder / f"random_{self.rank}.pt")
            if self.rank == 0:
                write_model(folder / MODEL_FOLDER)

        return write

    def load(self, folder: Path) -> None:
        path, _ = self._engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=not self._has_adapter)
        if path is None:
            raise RuntimeError(f"the checkpoint in {folder} cannot be read by this DeepSpeed")
        set_random_state(torch.load(folder / f"random_{self.rank}.pt", weights_only=False))

    def _weights(self) -> dict[str, torch.Tensor]:
        """A copy of the model's weights (of an adapter, its own) on worker 0; empty on the others."""
        import deepspeed

        module = self._engine.module
        if self._zero_stage < 3:
            return copied(module.state_dict()) if self.rank == 0 else {}
        weights = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if self._has_adapter and not parameter.requires_grad:
                continue
            with deepspeed.zero.GatheredParameters([parameter]):
                if self.rank == 0:
                    weights[name] = copied(parameter)
        return weights


def _measure(model: Any, objective: Objective, batch: PackedBatch) -> Sums:
    model.eval()  # no dropout, and no random numbers used up
    try:
        with torch.no_grad():
            loss, figures = objective.loss_sum(model, batch)
            return {"loss": float(loss), **figures}
    finally:
        model.train()
