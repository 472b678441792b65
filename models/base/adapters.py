"""Adapters through PEFT, and frozen layers: which weights of a model are trained.

LoRA (Hu et al. 2021, arXiv:2106.09685), rsLoRA (Kalajdzievski 2023, arXiv:2312.03732), DoRA (Liu et al. 2024,
arXiv:2402.09353), muA (Chen, Villar and Hayou 2026, arXiv:2602.06204).
"""

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.base.new_tokens import fit_rows
from models.errors import RayconteurError, nearest


def attach(
    model: Any,
    rank: int,
    alpha: float,
    dropout: float,
    target_modules: str | list[str],
    base: str,
    method: str = "lora",
    new_tokens: Sequence[int] = (),
) -> Any:
    """A PEFT model whose only trainable weights are the adapter's; `base` names its base model.

    `method` is `lora`, `rslora`, `dora`, or `mua`, which is LoRA with other initial weights; its scale is 1 with
    `alpha` equal to `rank`. The embeddings and the head's rows of `new_tokens` are trained and saved
    with the adapter. Raises RayconteurError if no layer has one of the names in `target_modules`.
    """
    from peft import LoraConfig, get_peft_model

    check_layers(model, target_modules, new_tokens)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules,
        use_rslora=method == "rslora",
        use_dora=method == "dora",
        trainable_token_indices=_token_rows(model, new_tokens),
    )
    model.name_or_path = base
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise RayconteurError(f"train.adapter.target_modules: {error}") from error
    if method == "mua":
        _start_at_random_b(adapted, rank)
    return adapted


def _start_at_random_b(model: Any, rank: int) -> None:
    """A = 0 and B random with variance 1 / rank (arXiv:2602.06204, Init[B]), where LoRA has A random and B = 0.

    Adam's first step changes each element of A by the learning rate, and so each element of B A by about as much,
    whatever the rank, as a step of the whole matrix would.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for down in [*(each.weight for each in layer.lora_A.values()), *layer.lora_embedding_A.values()]:
                torch.nn.init.zeros_(down)
            for up in [*(each.weight for each in layer.lora_B.values()), *layer.lora_embedding_B.values()]:
                torch.nn.init.normal_(up, std=rank**-0.5)


def check_layers(model: Any, target_modules: str | list[str], new_tokens: Sequence[int] = ()) -> None:
    """Raise RayconteurError for names that match no layer, and for layers whose adapter could not be merged exactly.

    Does not read the model's weights.
    """
    names = [] if isinstance(target_modules, str) else target_modules
    layers = dict(model.named_modules())
    where = "train.adapter.target_modules"
    ends = {name.rpartition(".")[2] for name, layer in layers.items() if hasattr(layer, "weight")}
    for wanted in names:
        if not any(_is_named(name, wanted) for name in layers):
            close = nearest(wanted, ends)
            raise RayconteurError(
                f"{where}: no layer has the name {wanted!r}"
                + (f" (did you mean {close}?)" if close else "")
                + f"; the model has {', '.join(sorted(ends))}"
            )
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    are_tied = head is not None and head.weight is embedding.weight
    for name, layer in layers.items():
        if layer not in (embedding, head) or not any(_is_named(name, wanted) for wanted in names):
            continue
        if are_tied:
            raise RayconteurError(
                f"{where}: {name} shares its matrix with the {'head' if layer is embedding else 'embedding'} of this "
                "model (tie_word_embeddings), so an adapter of one cannot be merged without changing the other; "
                "leave it out, or train all weights (train.adapter: null)"
            )
        if new_tokens:
            raise RayconteurError(
                f"{where}: {name} has the rows of data.new_tokens, which are trained directly; leave it out, or "
                "train all weights (train.adapter: null)"
            )
    if new_tokens and not are_tied and getattr(head, "bias", None) is not None:
        raise RayconteurError(
            "data.new_tokens: the head of this model has a bias, which PEFT drops when it trains single rows; "
            "train all weights (train.adapter: null)"
        )


def _is_named(name: str, wanted: str) -> bool:
    """PEFT's rule for a list of layer names."""
    return name == wanted or name.endswith(f".{wanted}")


def _token_rows(model: Any, new_tokens: Sequence[int]) -> dict[str, list[int]] | None:
    """The rows to train, by layer name; if layers are tied, PEFT ties the rows."""
    if not new_tokens:
        return None
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    layers = [embedding] if head is None or head.weight is embedding.weight else [embedding, head]
    return {name: list(new_tokens) for name, module in model.named_modules() if module in layers}


def freeze(model: Any, patterns: list[str], has_new_tokens: bool = False) -> None:
    """Freeze the parameters whose names match a pattern (`*` for anything).

    Raises RayconteurError if a pattern matches no parameter, or if nothing, or no row of new tokens, is left to
    train.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        names = fnmatch.filter(parameters, pattern)
        if not names:
            raise RayconteurError(
                f"train.frozen: {pattern!r} matches no parameter; there are {', '.join(list(parameters)[:3])}, ..."
            )
        for name in names:
            parameters[name].requires_grad_(False)
    if patterns and has_new_tokens and not model.get_input_embeddings().weight.requires_grad:
        raise RayconteurError(
            f"train.frozen: {', '.join(patterns)} freeze the embeddings, and those of data.new_tokens must be "
            "trained; freeze less"
        )
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise RayconteurError(f"train.frozen: {', '.join(patterns)} leave nothing to train; freeze less")


def load(model: Any, folder: Path | str) -> Any:
    """`model` with the adapter saved in `folder`, and with rows for the adapter's new tokens."""
    from peft import PeftConfig, PeftModel

    rows = getattr(PeftConfig.from_pretrained(str(folder)), "trainable_token_indices", None)
    if rows:
        fit_rows(model, sorted({token for each in rows.values() for token in each}))
    return PeftModel.from_pretrained(model, str(folder))


def load_weights(model: Any, folder: Path | str) -> None:
    """Give a PEFT model the weights of the adapter saved in `folder`, which has the same settings."""
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))


def load_several(model: Any, folders: Mapping[str, Path | str]) -> Any:
    """`model` with the LoRA adapters saved in `folders`, none of them active: the argument `adapter_names` selects
    one for each row of a batch. Raises RayconteurError for a folder that is not a LoRA adapter of this model.
    """
    from peft import LoraConfig, PeftConfig, PeftModel

    several = model
    for name, folder in folders.items():
        try:
            config = PeftConfig.from_pretrained(str(folder))
            if not isinstance(config, LoraConfig) or config.use_dora or config.modules_to_save:
                raise RayconteurError(
                    "only LoRA without DoRA and modules_to_save can share a batch with other adapters"
                )
            if config.trainable_token_indices:
                raise RayconteurError("it has new tokens, which the tokenizer of the other adapters lacks")
            if several is model:
                several = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
            else:
                several.load_adapter(str(folder), name)
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            raise RayconteurError(f"{folder}: the adapter cannot be served on this model: {error}") from error
    return several.eval()


def merge(model: Any) -> Any:
    """The plain model with the adapter merged into its weights."""
    return model.merge_and_unload()


def is_adapter(folder: Path | str) -> bool:
    """Whether a checkpoint folder holds a PEFT adapter, not a whole model."""
    return (Path(folder) / "adapter_config.json").is_file()
