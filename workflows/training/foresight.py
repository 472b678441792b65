"""Find mistakes that would make training fail; `plan` reports them, and `run` before its first stage.

troubles(spec)                         # about the base model, if it is on this machine
check_worker(spec, folder, splits)     # in a worker, which has the base model and the corpus
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.base.load import known_folder
from models.base.new_tokens import tokens_without_rows
from models.base.sizes import describe
from models.errors import RayconteurError
from models.training.deepspeed_config import DeepSpeedSettings, deepspeed_config
from models.training.deepspeed_names import mistakes
from workflows.corpus.chat_tokenizer import chat_tokenizer
from workflows.spec import NEW_MODEL, PipelineSpec, TeacherSpec, TrainSpec
from workflows.spec.space import proxy_pipeline

if TYPE_CHECKING:
    from workflows.corpus.reader import Examples

_MAX_NAMED = 5


def troubles(spec: PipelineSpec) -> list[str]:
    """One sentence for each mistake, with its field and the fix; empty if none is found."""
    found = [*_of_deepspeed(spec.train), *_of_teacher(spec)]
    if spec.tune and spec.tune.proxy:
        proxy = troubles(proxy_pipeline(spec))
        found += [f"tune.proxy: {trouble}" for trouble in proxy if trouble not in found]
    folder = known_folder(spec.base_model) if spec.base_model != NEW_MODEL else None
    return found if folder is None else [*found, *troubles_of_model(spec, folder), *_of_template(spec)]


def troubles_of_model(spec: PipelineSpec, folder: Path) -> list[str]:
    """Mistakes of the pipeline about the base model in `folder`."""
    sizes = describe(folder)
    return [
        *_of_positions(spec, sizes["max_positions"]),
        *_of_tokens(spec, folder, sizes["vocab_size"]),
        *_of_layers(spec, folder),
    ]


def check_worker(spec: PipelineSpec, folder: Path, splits: Sequence["Examples"]) -> None:
    """Raise RayconteurError for mistakes about the model, and for tokens of the corpus without an embedding."""
    if found := troubles_of_model(spec, folder):
        raise RayconteurError("\n".join(found))
    rows = describe(folder)["vocab_size"]
    largest = max(split.largest_token() for split in splits)
    if largest >= rows and not spec.data.new_tokens:
        name = chat_tokenizer(spec).convert_ids_to_tokens(largest)
        raise RayconteurError(
            f"base_model: the corpus has the token {name!r} ({largest}), but the model only has {rows} embeddings; "
            "add it to data.new_tokens, which trains an embedding for it"
        )


def deepspeed_settings(train: TrainSpec, precision: str) -> DeepSpeedSettings:
    """Mistakes in `train`'s DeepSpeed settings."""
    return DeepSpeedSettings(
        zero_stage=train.zero.stage,
        precision=precision,
        gradient_clip=train.gradient_clip,
        offload=train.zero.offload,
        offload_folder=train.zero.offload_folder,
        extra=train.deepspeed,
    )


def _of_deepspeed(train: TrainSpec) -> list[str]:
    config = deepspeed_config(deepspeed_settings(train, "fp32" if train.precision == "fp32" else "bf16"))
    return [f"train.deepspeed.{mistake}" for mistake in mistakes(config, train.deepspeed)]


def _of_teacher(spec: PipelineSpec) -> list[str]:
    if not spec.data.new_tokens or not isinstance(spec.train.objective, TeacherSpec):
        return []
    return [
        f"data.new_tokens: the teacher of train.objective {spec.train.objective.name} has no such tokens; "
        "leave them out, or use another objective"
    ]


def _of_positions(spec: PipelineSpec, positions: int) -> list[str]:
    if spec.data.max_length <= positions:
        return []
    return [
        f"data.max_length: {spec.data.max_length} exceeds the {positions} positions of {spec.base_model}; "
        "lower it, or give a base model whose config.json allows more (max_position_embeddings, rope_scaling)"
    ]


def _of_tokens(spec: PipelineSpec, folder: Path, rows: int) -> list[str]:
    """A tokenizer may have a control token without an embedding, such as an image's, if no text contains it."""
    missing = {} if spec.data.new_tokens else tokens_without_rows(folder, rows)  # which all get embeddings
    if not missing:
        return []
    used = {token: text for token, (text, is_special) in missing.items() if not is_special}
    if len(used) < len(missing):
        from models.chat import encode_conversation

        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        written = encode_conversation(chat_tokenizer(spec), probe).input_ids
        used |= {token: missing[token][0] for token in written if token in missing}
    if not used:
        return []
    names = [text for _, text in sorted(used.items())]
    return [
        f"base_model: {len(names)} tokens of the tokenizer have no embedding, since the model has {rows}: "
        f"{', '.join(names[:_MAX_NAMED])}{', ...' if len(names) > _MAX_NAMED else ''}; add them to "
        "data.new_tokens, which trains embeddings for them, or give a tokenizer without them"
    ]


def _of_template(spec: PipelineSpec) -> list[str]:
    """Mistakes in the chat template, or in the changes that `data` makes to it."""
    from models.chat import end_token_ids

    try:
        end_token_ids(chat_tokenizer(spec))
    except (ValueError, OSError) as error:
        return [str(error)]
    return []


def _of_layers(spec: PipelineSpec, folder: Path) -> list[str]:
    """Unknown or unsuitable layer names, checked on a model without weights."""
    train = spec.train
    targets = train.adapter.target_modules if train.adapter else "all-linear"
    if not train.frozen and not (train.adapter and (targets != "all-linear" or spec.data.new_tokens)):
        return []
    from transformers import AutoConfig

    import models.base.lstm  # noqa: F401  # known to transformers from here on
    from models.base import adapters
    from models.base.sizes import empty_model

    try:
        model = empty_model(AutoConfig.from_pretrained(str(folder)))
    except (
        Exception
    ):  # any exception of the architecture's code; models/base/packing_check.py reports models that cannot be opened
        return []
    try:
        adapters.freeze(model, train.frozen, has_new_tokens=bool(spec.data.new_tokens))
        if train.adapter:
            adapters.check_layers(model, targets, new_tokens=[0] if spec.data.new_tokens else [])
            adapters.attach(model, **train.adapter.arguments(), base=spec.base_model)
    except ValueError as error:
        return [str(error)]
    return []
