"""Find and list runs."""

import os
import socket
from collections.abc import Sequence

from models.errors import RayconteurError
from workflows.progress import duration, table_text
from workflows.store import RunRecord, Store


def runs_text(records: Sequence[RunRecord]) -> str:
    """A table of runs, oldest first."""
    if not records:
        return "no runs yet"
    rows = []
    for record in records:
        stages = ", ".join(
            f"{name} {entry.key[:8]} {duration(entry.seconds)}" for name, entry in record.stages.items()
        )
        rows.append((record.run, record.pipeline, record.to, status_of(record), stages))
    return table_text(("run", "pipeline", "to", "status", "stages"), rows)


def status_of(record: RunRecord) -> str:
    """The status of a run; one that is recorded as running but whose program is gone was interrupted."""
    if record.status == "running" and record.host == socket.gethostname():
        try:
            os.kill(record.process, 0)
        except ProcessLookupError:
            return "interrupted"
        except PermissionError:
            pass
    return record.status


def find_run(command: str, store: Store, pipeline: str, run: str | None) -> RunRecord:
    """The record of a run, by default the pipeline's last one; raises RayconteurError with the command's name."""
    records = [record for record in store.runs() if record.pipeline == pipeline]
    if not records:
        raise RayconteurError(
            f"{command}: the store {store.uri} has no runs of pipeline {pipeline}; start one with rayconteur run"
        )
    if run is None:
        return records[-1]
    found = next((record for record in records if record.run == run), None)
    if found is None:
        known = ", ".join(record.run for record in records[-5:])
        raise RayconteurError(f"{command}: there is no run {run!r} of pipeline {pipeline}; the last ones are {known}")
    return found
