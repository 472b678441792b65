"""Show a run on another machine, from the JSON lines that it prints.

display = JobDisplay(progress)
for line in lines: display.take(line)
"""

import contextlib
import json
from typing import Any

import click

from workflows.progress import Progress

# Number of the last lines that are not events to keep: they show why a run ended without an error event.
_LAST_LINES = 20


class JobDisplay:
    """Replays a run's events on this machine's display."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._started = 0.0
        self.said_why = False
        """whether the run printed an error event"""
        self.other: list[str] = []
        """the last lines that are not events"""

    def take(self, line: str) -> None:
        """Show one line of the run's output."""
        event = _event(line)
        if event is None:
            self.other = [*self.other, line][-_LAST_LINES:]
            return
        if self._progress.json_lines:
            self.said_why |= event["event"] == "error"
            click.echo(line)
            return
        kind, at = event.pop("event"), event.pop("time", 0.0)
        stage, text = event.pop("stage", None), event.pop("text", None)
        if kind == "error":
            self.said_why = True
            where = " (a file on the cluster's head)" if event.get("traceback") else ""
            click.echo(f"error: {text}{where}", err=True)
        elif kind == "started":
            self._started = at
            self._progress.start(stage, event["detail"])
        elif kind == "progress":
            left = event.pop("seconds_left", None)
            self._progress.update(event.pop("done"), event.pop("total"), event.pop("unit"), event, left)
        elif kind in ("done", "up_to_date"):
            self._progress.finish(stage, event["figures"], kind == "up_to_date", at - self._started)
        elif kind == "note":
            self._progress.note(str(text))
        else:
            self._progress.result(kind, event, str(text))


def _event(line: str) -> dict[str, Any] | None:
    if not line.startswith('{"event"'):
        return None
    with contextlib.suppress(ValueError):
        return dict(json.loads(line))
    return None
