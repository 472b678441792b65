"""Artifacts and runs as a person looks at them."""

from typing import Any

from models.errors import RayconteurError
from workflows.progress import duration
from workflows.store import Store


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


def find_run(command: str, store: Store, pipeline: str, run: str | None) -> dict[str, Any]:
    """The record of a run, by default the pipeline's last one; raises RayconteurError in the command's name."""
    records = [record for record in store.runs() if record["pipeline"] == pipeline]
    if not records:
        raise RayconteurError(
            f"{command}: the store {store.uri} has no runs of pipeline {pipeline}; start one with rayconteur run"
        )
    if run is None:
        return records[-1]
    found = next((record for record in records if record["run"] == run), None)
    if found is None:
        known = ", ".join(record["run"] for record in records[-5:])
        raise RayconteurError(f"{command}: there is no run {run!r} of pipeline {pipeline}; the last ones are {known}")
    return found
