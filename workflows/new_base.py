"""`base_model: new`: its tokenizer, learned from the conversations, and its random weights.

Part of the stage `prepare`, which leaves both in `base/` of its artifact.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from models.files import open_lines
from workflows.conversations import parse_conversation, parse_judged, parse_pair
from workflows.pipeline import NEW_BASE, Context, SourceFile
from workflows.players import DISCRIMINATOR
from workflows.spec import NewModelSpec
from workflows.store import Store

# A tokenizer learns little more from more of them.
_MOST_LINES = 200_000


def make_base(context: Context, files: list[SourceFile]) -> None:
    """Learn the tokenizer and make the model, in one task on the cluster."""
    spec = context.spec
    read = [(file.source, file.path, file.limit) for file in files]
    settings = spec.new_model.model_dump()
    task = ray.remote(_make).options(num_cpus=1)
    found: int = ray.get(task.remote(context.store.uri, context.key, read, spec.train.objective.examples, settings))
    context.progress.note(
        f"prepare: a tokenizer of {found:,} tokens is learned; a new model begins with random weights"
    )


def _make(
    store_uri: str, key: str, files: list[tuple[str, str, int | None]], examples: str, settings: dict[str, Any]
) -> int:
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


def _texts(files: list[tuple[str, str, int | None]], examples: str) -> Iterator[str]:
    """What is said in the first lines of each file; lines that cannot be read are `prepare`'s to set aside."""
    most = max(1, _MOST_LINES // len(files))
    for source, path, limit in files:
        with open_lines(source, path) as lines:
            for _ in range(min(most, limit or most)):
                try:
                    line = lines.readline()
                except OSError:
                    break
                if not line:
                    break
                yield from _said(line, examples)


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
