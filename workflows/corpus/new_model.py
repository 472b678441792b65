"""`base_model: new`: a tokenizer trained on the conversations, and random weights.

A part of the stage `prepare`, which stores both in `base/` of its artifact.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from models.base.load import resolve
from models.chat.messages import SameRole
from workflows.corpus.conversations import parse_conversation, parse_judged, parse_pair
from workflows.corpus.files.formats import UnreadableFile, records
from workflows.corpus.files.sources import SourceFile
from workflows.spec import NEW_MODEL, NewModelSpec, PipelineSpec
from workflows.stage import DISCRIMINATOR, Context
from workflows.store import Store

# More conversations hardly improve a tokenizer.
_MAX_LINES = 200_000


@dataclass(frozen=True)
class _Reading:
    """The kind of the lines, and how to read them."""

    examples: str
    fields: dict[str, str]
    same_role: SameRole
    knowledge: str | None


def make_base(context: Context, files: list[SourceFile]) -> None:
    """Train the tokenizer and make the model, in one task on the cluster."""
    import ray  # not at the top, so that commands that only read a pipeline do not import it

    spec = context.spec
    task = ray.remote(_make).options(num_cpus=1)
    data = spec.data
    reading = _Reading(spec.train.objective.examples, data.names, data.same_role, data.knowledge)
    found: int = ray.get(task.remote(context.store.uri, context.key, files, reading, spec.new_model))
    context.progress.note(f"prepare: trained a tokenizer of {found:,} tokens; a new model starts with random weights")


def _make(store_uri: str, key: str, files: list[SourceFile], reading: _Reading, new: NewModelSpec) -> int:
    """The size of the vocabulary; only byte tokens if no line can be read."""
    from models.base.new_model import learn_tokenizer, make_new_model

    with tempfile.TemporaryDirectory() as name:
        sizes = new.model_dump()
        size = sizes.pop("discriminator_hidden_size")
        tokenizer = learn_tokenizer(_texts(files, reading), sizes.pop("vocabulary"))
        make_new_model(tokenizer, Path(name), **sizes)
        if size is not None:
            make_new_model(tokenizer, Path(name) / DISCRIMINATOR, **sizes | {"hidden_size": size, "noise_size": 0})
        Store(store_uri).add_folder(name, "prepare", key, NEW_BASE)
        return len(tokenizer)


def _texts(files: list[SourceFile], reading: _Reading) -> Iterator[str]:
    """The texts of the first lines of each file; skips unusable lines, which `prepare` sets aside."""
    most = max(1, _MAX_LINES // len(files))
    for file in files:
        try:
            for record in records(replace(file, limit=min(most, file.limit or most))):
                yield from [] if record.unread else _said(record.text, reading)
        except UnreadableFile:  # `prepare` reports it
            continue


def _said(line: bytes, reading: _Reading) -> list[str]:
    how = reading.fields, reading.same_role, reading.knowledge
    try:
        if reading.examples == "pairs":
            chosen, rejected = parse_pair(line, *how)
            messages = [*chosen.messages, rejected.messages[-1]]
        elif reading.examples == "conversations":
            messages = parse_conversation(line, *how).messages
        else:
            messages = parse_judged(line, *how)[0].messages
    except ValueError:
        return []
    said = [(message.get("reasoning_content", ""), message["content"]) for message in messages]
    return [text.strip() for texts in said for text in texts if text]


def discriminator_base(spec: PipelineSpec) -> Path:
    """The initial model of a discriminator: the base model, or the one that `new_model` describes."""
    base = resolve(spec.base_model)
    own = base / DISCRIMINATOR
    return own if own.is_dir() else base


NEW_BASE = "base"
"""the folder of a new model's initial weights and its tokenizer in prepare's artifact"""

CHAT_TEMPLATE = "chat_template.jinja"
"""the file of `data.chat_template`'s template in prepare's artifact"""


def with_base(spec: PipelineSpec, store: Store, prepared: str) -> PipelineSpec:
    """`spec` for the stages after `prepare`: a new model and a chat template are those in prepare's artifact."""
    changed: dict[str, object] = {}
    if spec.base_model == NEW_MODEL:
        changed = {"base_model": store.address("prepare", prepared, NEW_BASE), "new_model": NewModelSpec()}
    if spec.data.chat_template is not None:
        template = store.address("prepare", prepared, CHAT_TEMPLATE)
        changed["data"] = spec.data.model_copy(update={"chat_template": template})
    return spec.model_copy(update=changed)
