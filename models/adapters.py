"""LoRA (Hu et al. 2021, arXiv:2106.09685) through PEFT: attach to a model, load, merge."""

from pathlib import Path
from typing import Any


def attach(model: Any, rank: int, alpha: float, dropout: float, target_modules: str | list[str], base: str) -> Any:
    """A PEFT model whose only trainable weights are new LoRA factors; `base` names the model it belongs to."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=target_modules
    )
    model.name_or_path = base
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ValueError(f"train.adapter.target_modules: {error}") from error


def load(model: Any, folder: Path | str) -> Any:
    """`model` with the adapter saved in `folder`."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder))


def merge(model: Any) -> Any:
    """The plain model with its adapter's W + (alpha / rank) B A added into W."""
    return model.merge_and_unload()


def is_adapter(folder: Path | str) -> bool:
    """Whether a checkpoint folder holds a PEFT adapter and no whole model."""
    return (Path(folder) / "adapter_config.json").is_file()
