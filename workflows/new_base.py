"""`base_model: new`: its tokenizer, learned from the conversations, and its random weights.

Part of the stage `prepare`, which leaves both in `base/` of its artifact.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from workflows.conversations import parse_conversation, parse_judged, parse_pair
from workflows.file_formats import UnreadableFile, records
from workflows.pipeline import NEW_BASE, Context
from workflows.players import DISCRIMINATOR
from workflows.sources import SourceFile
from workflows.spec import NewModelSpec
from workflows.store import Store

# A tokenizer learns little more from more of them.
_MOST_LINES = 200_000


def make_base(context: Context, files: list[SourceFile]) -> None:
    """Learn the tokenizer and make the model, in one task on the cluster."""
    spec = context.spec
    settings = spec.new_model.model_dump()
    task = ray.remote(_make).options(num_cpus=1)
    found: int = ray.get(task.remote(context.store.uri, context.key, files, spec.train.objective.examples, settings))
    context.progress.note(
        f"prepare: a tokenizer of {found:,} tokens is learned; a new model begins with random weights"
    )


def _make(store_uri: str, key: str, files: list[SourceFile], examples: str, settings: dict[str, Any]) -> int:
    """The number of tokens that the vocabulary came to, those for bytes alone where nothing can be read."""
    from models.new_model import learn_tokenizer, make_new_model

    with tempfile.TemporaryDirectory() as name:
        sizes = NewModelSpec.model_validate(settings).model_dump()
        size = sizes.pop("discriminator_hidden_size")
        tokenizer = learn_tokenizer(_texts(files, examples), sizes.pop("vocabulary"))
        make_new_model(tokenizer, Path(name), **sizes)
        if size is not None:
            make_new_model(tokenizer, Path(name) / DISCRIMINATOR, **sizes | {"hidden_size": size, "noise_size": 0})
        Store(store_uri).add_folder(name, "prepare", key, NEW_BASE)
        return len(tokenizer)


def _texts(files: list[SourceFile], examples: str) -> Iterator[str]:
    """What is said in the first lines of each file; lines that cannot be read are `prepare`'s to set aside."""
    most = max(1, _MOST_LINES // len(files))
    for file in files:
        try:
            for record in records(replace(file, limit=min(most, file.limit or most))):
                yield from [] if record.unread else _said(record.text, examples)
        except UnreadableFile:  # prepare's to tell
            continue


def _said(line: bytes, examples: str) -> list[str]:
    try:
        if examples == "pairs":
            chosen, rejected = parse_pair(line)
            messages = [*chosen, rejected[-1]]
        else:
            messages = parse_conversation(line) if examples == "conversations" else parse_judged(line)[0]
    except ValueError:
        return []
    return [message["content"].strip() for message in messages]
