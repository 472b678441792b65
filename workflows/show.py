"""Artifacts and runs as a person looks at them."""

import json
import sys
from typing import Any

import click

from workflows.pipeline import with_base
from workflows.progress import duration
from workflows.spec import PipelineSpec
from workflows.store import Store

# Around the supervised part where there is no colour.
_OPEN, _CLOSE = "\u27e6", "\u27e7"


def show_conversations(spec: PipelineSpec, store: Store, key: str, count: int, json_lines: bool) -> None:
    """Print training conversations as the model reads them, what it learns from marked."""
    import pyarrow.dataset

    from models.base import load_tokenizer, resolve

    tokenizer = load_tokenizer(resolve(with_base(spec, store, key).base_model))
    path = store.path("prepare", key, "corpus", "split=train")
    parts = pyarrow.dataset.dataset(path, filesystem=store.filesystem, format="parquet")
    for row in parts.head(count).to_pylist():
        texts = [_spans(tokenizer, row["input_ids"], row["supervised"])]
        if row["other_input_ids"] is not None:
            texts.append(_spans(tokenizer, row["other_input_ids"], row["other_supervised"]))
        if json_lines:
            event: dict[str, Any] = {"event": "conversation", "source": row["source"], "line": row["line"]}
            names = ("spans", "other_spans")
            for name, spans in zip(names, texts, strict=False):
                event[name] = [{"supervised": supervised, "text": text} for supervised, text in spans]
            click.echo(json.dumps(event))
            continue
        click.echo(f"--- source {row['source']}, line {row['line']}: {row['num_tokens']} tokens, "
                   f"{row['num_targets']} supervised")  # fmt: skip
        for title, spans in zip(_titles(row["desirable"]), texts, strict=False):
            if len(texts) > 1:
                click.echo(f"-- {title}:")
            click.echo("".join(_marked(text) if supervised else text for supervised, text in spans))


def _titles(desirable: bool | None) -> tuple[str, str]:
    """What a row's two sequences are."""
    if desirable is None:
        return "chosen", "rejected"
    return "desirable" if desirable else "undesirable", "with a reply to another prompt"


def _spans(tokenizer: Any, input_ids: list[int], supervised: list[bool]) -> list[tuple[bool, str]]:
    spans: list[tuple[bool, str]] = []
    start = 0
    for index in range(1, len(input_ids) + 1):
        if index == len(input_ids) or supervised[index] != supervised[start]:
            spans.append((supervised[start], tokenizer.decode(input_ids[start:index])))
            start = index
    return spans


def _marked(text: str) -> str:
    return click.style(text, fg="green", bold=True) if sys.stdout.isatty() else f"{_OPEN}{text}{_CLOSE}"


def runs_text(records: list[dict[str, Any]]) -> str:
    """A table of runs, oldest first."""
    if not records:
        return "no runs yet"
    lines = [f"{'run':<21} {'pipeline':<16} {'to':<9} {'status':<12} stages"]
    for record in records:
        stages = ", ".join(
            f"{name} {entry['key'][:8]} {duration(entry['seconds'])}" for name, entry in record["stages"].items()
        )
        lines.append(
            f"{record['run']:<21} {record['pipeline']:<16} {record['to']:<9} {status_of(record):<12} {stages}"
        )
    return "\n".join(lines)


def status_of(record: dict[str, Any]) -> str:
    """A run that says it is running but whose program is gone was interrupted."""
    import os
    import socket

    if record["status"] == "running" and record["host"] == socket.gethostname():
        try:
            os.kill(record["process"], 0)
        except ProcessLookupError:
            return "interrupted"
        except PermissionError:
            pass
    return str(record["status"])
