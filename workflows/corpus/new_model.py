"""`base_model: new`: its tokenizer, learned from the conversations, and its random weights.

Part of the stage `prepare`, which leaves both in `base/` of its artifact.
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

# A tokenizer learns little more from more of them.
_MAX_LINES = 200_000


@dataclass(frozen=True)
class _Reading:
    """What the lines are, and how they are read."""

    examples: str
    fields: dict[str, str]
    same_role: SameRole


def make_base(context: Context, files: list[SourceFile]) -> None:
    """Learn the tokenizer and make the model, in one task on the cluster."""
    import ray  # at the top it would be loaded by every command that reads a pipeline

    spec = context.spec
    task = ray.remote(_make).options(num_cpus=1)
    reading = _Reading(spec.train.objective.examples, spec.data.names, spec.data.same_role)
    found: int = ray.get(task.remote(context.store.uri, context.key, files, reading, spec.new_model))
    context.progress.note(f"prepare: trained a tokenizer of {found:,} tokens; a new model starts with random weights")


def _make(store_uri: str, key: str, files: list[SourceFile], reading: _Reading, new: NewModelSpec) -> int:
    """The number of tokens that the vocabulary came to, those for bytes alone where nothing can be read."""
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
    """What is said in the first lines of each file; lines that cannot be read are `prepare`'s to set aside."""
    most = max(1, _MAX_LINES // len(files))
    for file in files:
        try:
            for record in records(replace(file, limit=min(most, file.limit or most))):
                yield from [] if record.unread else _said(record.text, reading)
        except UnreadableFile:  # prepare's to tell
            continue


def _said(line: bytes, reading: _Reading) -> list[str]:
    how = reading.fields, reading.same_role
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
    """The folder that a discriminator begins with: the base model, or what `new_model` says of it."""
    base = resolve(spec.base_model)
    own = base / DISCRIMINATOR
    return own if own.is_dir() else base


NEW_BASE = "base"
"""where in prepare's artifact a new model's first weights and its tokenizer are"""

CHAT_TEMPLATE = "chat_template.jinja"
"""where in prepare's artifact the template of `data.chat_template` is"""


def with_base(spec: PipelineSpec, store: Store, prepared: str) -> PipelineSpec:
    """`spec` as stages after `prepare` read it: a new model and a chat template are what it has left in the store."""
    changed: dict[str, object] = {}
    if spec.base_model == NEW_MODEL:
        changed = {"base_model": store.address("prepare", prepared, NEW_BASE), "new_model": NewModelSpec()}
    if spec.data.chat_template is not None:
        template = store.address("prepare", prepared, CHAT_TEMPLATE)
        changed["data"] = spec.data.model_copy(update={"chat_template": template})
    return spec.model_copy(update=changed)
