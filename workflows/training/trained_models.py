"""Make the models of a training from the base model, and their DeepSpeed engines."""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch

from models.base import adapters
from models.base.load import resolve
from models.base.new_tokens import fit_embeddings
from models.base.precision import dtype_of
from models.base.reuse import BaseModels
from models.kernels.attention import PACKED_ATTENTION
from models.kernels.liger import use_liger
from models.objectives.base import Loss
from models.training.deepspeed_engine import DeepSpeedEngine
from models.training.deepspeed_operator import check_build_tools, check_file_offload
from models.training.pack import Pack, PackedEngine, PackedSettings
from workflows.corpus.chat_tokenizer import chat_tokenizer
from workflows.corpus.new_model import discriminator_base
from workflows.spec import PipelineSpec
from workflows.training.foresight import deepspeed_settings


@dataclass(frozen=True)
class TrainedModels:
    """Makes models and engines with the settings of `train`."""

    bases: BaseModels
    """kept for the next training in this process"""
    spec: PipelineSpec
    precision: str
    """`bf16` or `fp32`"""
    pack: Pack | None = None
    """with which this training shares its passes"""
    process_group: Any = None
    """the torch.distributed group of its workers, if it is not the default one"""

    def base(self, discriminates: bool = False) -> Any:
        """The base model; those of trainings with an adapter share the frozen weights."""
        spec, train = self.spec, self.spec.train
        model = self.bases.model(
            discriminator_base(spec) if discriminates else resolve(spec.base_model),
            dtype_of(self.precision),
            PACKED_ATTENTION,
            quantize=train.adapter.quantize if train.adapter else None,
            stays=train.adapter is not None and train.zero.stage < 3,
        )
        if train.gpus_per_worker:
            use_liger(model)
        return model

    def model(self, discriminates: bool = False) -> Any:
        """The base model, prepared for training."""
        spec, train, model = self.spec, self.spec.train, self.base(discriminates)
        new = fit_embeddings(model, resolve(spec.base_model), chat_tokenizer(spec)) if spec.data.new_tokens else []
        if train.adapter is not None:
            model = adapters.attach(model, **train.adapter.arguments(), base=spec.base_model, new_tokens=new)
        adapters.freeze(model, train.frozen, has_new_tokens=bool(new))
        return model

    def check_tools(self) -> None:
        """Raise RayconteurError, before loading a model, if DeepSpeed lacks a tool on this machine."""
        if not self.spec.train.gpus_per_worker and self.pack is None:
            check_build_tools()
        if self.spec.train.zero.offload == "nvme":
            check_file_offload()

    def first_engine(self, objective: Loss) -> DeepSpeedEngine | PackedEngine:
        """An engine that trains a new model; its weights and its dropout depend on the seed."""
        rank, seed = torch.distributed.get_rank(), self.spec.train.seed
        with self.pack.loading if self.pack else contextlib.nullcontext():
            torch.manual_seed(seed)  # equal initial adapter weights on all workers
            model = self.model()
        if self.pack is not None:
            settings = PackedSettings(
                self.spec.train.weight_decay, self.spec.train.gradient_clip, seed + 1 + rank, self.process_group
            )
            return PackedEngine(self.pack, model, objective, settings)
        engine = self.engine(model, objective)
        torch.manual_seed(seed + 1 + rank)  # dropout
        return engine

    def engine(self, model: Any, objective: Loss) -> DeepSpeedEngine:
        """DeepSpeed's engine for `model`."""
        train = self.spec.train
        return DeepSpeedEngine(model, objective, deepspeed_settings(train, self.precision), train.weight_decay)
