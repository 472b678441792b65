"""The training engine on DeepSpeed: any ZeRO stage, with checkpoints for any number of workers."""

import contextlib
import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from models.errors import RayconteurError
from models.kernels.lora import fuse_lora
from models.kernels.loss import fuse_head
from models.objectives.base import Loss
from models.packing import PackedBatch
from models.training.deepspeed_config import DeepSpeedSettings, deepspeed_config
from models.training.deepspeed_names import found_mistakes
from models.training.deepspeed_operator import load_operator
from models.training.deepspeed_universal import to_universal
from models.training.engine import MODEL_FOLDER, Sums, measured, optimizer_for
from models.training.snapshot import DeepSpeedFiles, Write, copied, model_writer, random_state, set_random_state

_TAG = "state"


class DeepSpeedEngine:
    """DeepSpeed over the processes of an initialised torch.distributed group, with any ZeRO stage."""

    def __init__(self, model: Any, objective: Loss, settings: DeepSpeedSettings, weight_decay: float) -> None:
        import deepspeed

        load_operator()
        self.rank = torch.distributed.get_rank()
        self.num_workers = torch.distributed.get_world_size()
        self._zero_stage = settings.zero_stage
        self._offload = settings.offload
        self._has_adapter = hasattr(model, "peft_config")
        self._objective = objective
        self._weight_decay = weight_decay
        fuse_head(model)
        if settings.zero_stage < 3:
            fuse_lora(model)
        config = deepspeed_config(settings)
        if found := found_mistakes(config, settings.extra):
            raise RayconteurError("\n".join(f"train.deepspeed.{mistake}" for mistake in found))
        self._optimizer = optimizer_for(model, weight_decay)
        with contextlib.redirect_stdout(io.StringIO()):  # at stage 1 it prints the memory use six times
            self._engine, *_ = deepspeed.initialize(model=model.train(), optimizer=self._optimizer, config=config)
        self.model = self._engine.module
        self.device = self._engine.device
        self._files = DeepSpeedFiles(self._engine.checkpoint_engine)
        self._engine.checkpoint_engine = self._files
        self._sums: list[torch.nn.Parameter] = []
        if settings.zero_stage == 0 and settings.precision == "bf16":
            # DeepSpeed's optimizer has taken a step with empty gradients here: Adam's bias correction would count
            # one step too many, and stage 0 would learn differently from stages 1 to 3.
            self._engine.optimizer.optimizer.state.clear()
            self._sum_in_float32()

    def accumulate(self, batch: PackedBatch, step_weight: float, is_last: bool = True) -> Sums:
        self._engine.set_gradient_accumulation_boundary(is_last)
        loss, figures = self._objective.loss_sum(self._engine, batch)
        # DeepSpeed averages gradients over workers; the step's loss is a sum over its weight.
        self._engine.backward(loss * (self.num_workers / step_weight), scale_wrt_gas=False)
        if is_last and self._sums:
            self._reduce()
        return {"loss": float(loss.detach()), **figures}

    def update(self, learning_rate: float) -> float:
        for group in self._engine.optimizer.param_groups:  # a checkpoint has those of the training that wrote it
            group |= {"lr": learning_rate, "weight_decay": self._weight_decay}
        if self._zero_stage == 0 and not self._engine.bfloat16_enabled():  # here DeepSpeed does not compute the norm
            norm = float(torch.nn.utils.get_total_norm(self._gradients()))
            self._engine.step()
            return norm
        self._engine.step()
        return float(self._engine.get_global_grad_norm()) if self._engine.was_step_applied() else float("nan")

    def skip(self) -> None:
        self._optimizer.skips = True
        self._engine.step()
        self._optimizer.skips = False

    def measure(self, batch: PackedBatch) -> Sums:
        return measured(self._engine, self._objective, batch)

    def total(self, values: list[float]) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return [float(value) for value in tensor]

    def largest(self, value: float) -> float:
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return float(tensor)

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.num_workers
        torch.distributed.all_gather_object(values, value)
        return values

    def gb_to_come(self) -> float:
        sizes = [getattr(p, "ds_numel", p.numel()) for p in self.model.parameters() if p.requires_grad]
        states = sum(sizes) / (self.num_workers if self._zero_stage else 1) / 1e9
        if self.device.type != "cpu":
            return 0.0 if self._offload else 8 * states
        return float(8 * states + 12 * states + (4 * sum(sizes) / 1e9 if self.rank == 0 else 0.0))

    def snapshot(self) -> Write:
        # DeepSpeed needs a folder for a script and for tensors that are offloaded to files.
        root = Path(tempfile.mkdtemp(prefix="rayconteur-state-"))
        self._engine.save_checkpoint(
            str(root), tag=_TAG, client_state={}, save_latest=False, exclude_frozen_parameters=self._has_adapter
        )
        write_state, state = self._files.taken(root), random_state()
        weights = self.weights()
        write_model = model_writer(self.model, weights)

        def write(folder: Path) -> None:
            write_state(folder)
            shutil.copytree(root, folder, dirs_exist_ok=True)
            shutil.rmtree(root)
            torch.save(state, folder / f"random_{self.rank}.pt")
            if self.rank == 0:
                write_model(folder / MODEL_FOLDER)

        return write

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the model's weights (with an adapter, only the adapter's) on worker 0; empty on the others."""
        import deepspeed

        module = self.model
        if self._zero_stage < 3:
            kept = module.state_dict() if self.rank == 0 else {}
            if self._has_adapter:
                trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
                kept = {name: weight for name, weight in kept.items() if name in trained}
            weights: dict[str, torch.Tensor] = copied(kept)
            return weights
        weights = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if self._has_adapter and not parameter.requires_grad:
                continue
            with deepspeed.zero.GatheredParameters([parameter]):
                if self.rank == 0:
                    weights[name] = copied(parameter)
        return weights

    def load(self, folder: Path) -> None:
        if self._offload == "nvme":
            # The weights are restored, but not the float32 copies in files: the next update would undo the training.
            raise RayconteurError(
                "train.zero.offload: DeepSpeed cannot restore optimizer states offloaded to files (nvme) from a "
                f"checkpoint; use offload: cpu, or remove {folder.parent} to start over"
            )
        num_parts = len(list(folder.glob("random_*.pt")))
        if num_parts == self.num_workers or self._zero_stage == 0:
            self._load(folder)
        else:
            self._load_universal(folder)
        if (random := folder / f"random_{self.rank}.pt").is_file():
            set_random_state(torch.load(random, weights_only=False))

    def close(self) -> None:
        """Free the model and its optimizer, for another engine in this process."""
        self._engine.destroy()
        del self._engine, self._optimizer, self._files, self.model

    def _load(self, folder: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            path, _ = self._engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=not self._has_adapter)
        if path is None:
            raise RuntimeError(f"DeepSpeed cannot read the checkpoint in {folder}")

    def _load_universal(self, folder: Path) -> None:
        """Load a checkpoint of a different number of workers; one worker on each machine joins the parts."""
        names = [tempfile.mkdtemp(prefix="rayconteur-universal-")] if self.rank == 0 else [""]
        torch.distributed.broadcast_object_list(names)
        joined, is_first_here = Path(names[0]), os.environ.get("LOCAL_RANK", "0") == "0"
        if is_first_here:
            joined.mkdir(exist_ok=True)
            to_universal(folder / _TAG, joined / _TAG)
        torch.distributed.barrier()
        self._engine._config.load_universal_checkpoint = True
        self._load(joined)
        self._engine._config.load_universal_checkpoint = False
        torch.distributed.barrier()
        if is_first_here:
            shutil.rmtree(joined)

    def _sum_in_float32(self) -> None:
        """Let torch accumulate the bfloat16 gradients of micro-batches in float32, and give DeepSpeed the sum.

        DeepSpeed would accumulate in bfloat16 here, which loses gradients that are small beside the sum.
        """
        self._sums = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in self._sums:
            parameter.grad_dtype = torch.float32
        # It would give a parameter without a gradient a bfloat16 one, which torch refuses.
        self._engine.enable_backward_allreduce = False

    def _reduce(self) -> None:
        for parameter in self._sums:
            if parameter.grad is None:  # as for an expert that no token of the step used
                parameter.grad = torch.zeros_like(parameter, dtype=torch.float32)
        self._engine.allreduce_gradients()

    def _gradients(self) -> list[torch.Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]
