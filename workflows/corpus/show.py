"""Print conversations of the corpus: their tokens as text, with the supervised part marked."""

import json
import sys
from typing import Any

import click

from models.trees import tree_of
from workflows.corpus.new_model import with_base
from workflows.corpus.rows import CorpusRow
from workflows.spec import PipelineSpec
from workflows.store import Store

# Marks the supervised part if there is no colour.
_OPEN, _CLOSE = "\u27e6", "\u27e7"


def show_conversations(spec: PipelineSpec, store: Store, key: str, count: int, json_lines: bool) -> None:
    """Print training conversations as the model reads them, with supervised text marked."""
    from workflows.corpus.chat_tokenizer import chat_tokenizer
    from workflows.corpus.reader import corpus_files

    tokenizer = chat_tokenizer(with_base(spec, store, key))
    for row in corpus_files(store, key, "train").head(count).to_pylist():
        texts = [_spans(tokenizer, *sequence) for sequence in _sequences(row)]
        if json_lines:
            event: dict[str, object] = {"event": "conversation", "source": row["source"], "line": row["line"]}
            for name, _, spans in texts:
                event[name] = [{"supervised": supervised, "text": text} for supervised, text in spans]
            click.echo(json.dumps(event))
            continue
        click.echo(f"--- source {row['source']}, line {row['line']}: {row['num_tokens']} tokens, "
                   f"{row['num_targets']} supervised")  # fmt: skip
        for _, title, spans in texts:
            if len(texts) > 1:
                click.echo(f"-- {title}:")
            click.echo("".join(_marked(text) if supervised else text for supervised, text in spans))


def _sequences(row: CorpusRow) -> list[tuple[str, str, list[int], list[bool]]]:
    """The token sequences of a row with their names: each piece of a tree, both replies of a pair."""
    other, other_supervised = row["other_input_ids"], row["other_supervised"]
    if other is not None and other_supervised is not None:
        first, second = _titles(row["desirable"])
        return [
            ("spans", first, row["input_ids"], row["supervised"]),
            ("other_spans", second, other, other_supervised),
        ]
    tree = tree_of(row)
    if len(tree.pieces) == 1:
        return [("spans", "", row["input_ids"], row["supervised"])]
    titles = [
        f"piece {n}" + (f", after piece {parent}" if parent >= 0 else "") for n, parent in enumerate(tree.parents)
    ]
    names = [f"piece_{n}" for n in range(len(tree.pieces))]
    return list(zip(names, titles, tree.pieces, tree.supervised, strict=True))  # type: ignore[arg-type]


def _titles(desirable: bool | None) -> tuple[str, str]:
    """The names of a row's two sequences."""
    if desirable is None:
        return "chosen", "rejected"
    return "desirable" if desirable else "undesirable", "with a reply to another prompt"


def _spans(
    tokenizer: Any, name: str, title: str, input_ids: list[int], supervised: list[bool]
) -> tuple[str, str, list[tuple[bool, str]]]:
    """A sequence as texts, each supervised or not."""
    spans: list[tuple[bool, str]] = []
    start = 0
    for index in range(1, len(input_ids) + 1):
        if index == len(input_ids) or supervised[index] != supervised[start]:
            spans.append((supervised[start], tokenizer.decode(input_ids[start:index])))
            start = index
    return name, title, spans


def _marked(text: str) -> str:
    return click.style(text, fg="green", bold=True) if sys.stdout.isatty() else f"{_OPEN}{text}{_CLOSE}"
