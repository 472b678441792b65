"""Pipelines as benchmarks run them: with the command line, in a folder with a store of its own.

write_lines(folder / "talks.jsonl", records)
artifact = run("evaluate", folder, {"name": "notes", "data": {"sources": [{"path": "talks.jsonl"}]}, ...})
artifact.figures, scorecard(folder, artifact), items(folder, artifact)
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from workflows.store import Artifact, Store

ROOT = Path(__file__).resolve().parents[1]


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The records of a file with one JSON object a line."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_lines(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records, one JSON object a line."""
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def pipeline_file(folder: Path, pipeline: Mapping[str, Any]) -> Path:
    """The file in the folder, written."""
    file = folder / f"{pipeline['name']}.yaml"
    file.write_text(yaml.safe_dump(dict(pipeline)))
    return file


def store_of(folder: Path) -> Store:
    """The store of the pipelines that ran in the folder."""
    return Store(str(folder / "rayconteur-store"))


def run(stage: str, folder: Path, pipeline: Mapping[str, Any]) -> Artifact:
    """Run a pipeline up to a stage, whose artifact is returned; ends the benchmark if it fails."""
    environment = {"RAY_worker_niceness": "0", **os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "workflows", stage, pipeline_file(folder, pipeline).name]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return store_of(folder).all_of(stage)[-1]


def scorecard(folder: Path, evaluation: Artifact) -> dict[str, Any]:
    """The scorecard of an artifact of `evaluate`."""
    found: dict[str, Any] = json.loads(_file(folder, evaluation, "scorecard.json").read_text())
    return found


def items(folder: Path, evaluation: Artifact) -> list[dict[str, Any]]:
    """The items of its suites, with replies and scores."""
    return read_lines(_file(folder, evaluation, "items.jsonl"))


def _file(folder: Path, artifact: Artifact, name: str) -> Path:
    return Path(store_of(folder).path(artifact.stage, artifact.key, name))
