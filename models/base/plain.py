"""A checkpoint as a plain Hugging Face folder that every engine loads: without PEFT, with rows for new tokens."""

from pathlib import Path

import torch

from models.base import adapters
from models.base.load import load_model, load_tokenizer, save_tokenizer
from models.base.new_tokens import fit_embeddings


def plain_checkpoint(base_folder: Path, checkpoint_folder: Path, target: Path, dtype: torch.dtype) -> Path:
    """The folder of a trained model: the checkpoint itself, or `target`, to which a model in `dtype` is written with
    the adapter merged in float32.
    """
    if not adapters.is_adapter(checkpoint_folder):
        return checkpoint_folder
    model = adapters.load(load_model(base_folder, torch.float32), checkpoint_folder).eval()
    return _written(adapters.merge(model), checkpoint_folder, target, dtype)


def plain_base(base_folder: Path, tokenizer_folder: Path, target: Path, dtype: torch.dtype) -> Path:
    """The folder of a base model that reads the tokens of another folder's tokenizer: the base model's own, or
    `target`, to which a model in `dtype` is written with rows for the tokens that it lacks.
    """
    model = load_model(base_folder, dtype)
    if not fit_embeddings(model, base_folder, load_tokenizer(tokenizer_folder)):
        return base_folder
    return _written(model, tokenizer_folder, target, dtype)


def _written(model: object, tokenizer_folder: Path, target: Path, dtype: torch.dtype) -> Path:
    model.to(dtype).save_pretrained(target)  # type: ignore[attr-defined]
    save_tokenizer(load_tokenizer(tokenizer_folder), target)
    return target
