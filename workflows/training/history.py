"""The history of a training: a line for every step, kept with every checkpoint, and what is drawn from it."""

import json
import math
import time
from dataclasses import asdict, fields
from typing import Any

from models.training.fit import Progress

HISTORY = "history.jsonl"
_FIELDS = {field.name for field in fields(Progress)} - {"figures"}


class History:
    """Every step's progress, when it ended, and the held-out figures measured after it."""

    def __init__(self, text: str = "") -> None:
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]

    def add(self, progress: Progress, **more: float) -> None:
        """A step that has just ended; `more` are further figures of it."""
        line = asdict(progress)
        figures = line.pop("figures")
        line |= {**figures, **more, "time": round(time.time(), 3)}
        self.lines.append({name: _plain(value) for name, value in line.items()})

    def add_held_out(self, metrics: dict[str, Any]) -> None:
        """What was measured after the last step."""
        self.lines[-1] |= {name: _plain(value) for name, value in metrics.items() if name.startswith("held_out_")}

    def steps(self) -> list[Progress]:
        """The progress of every step so far."""
        return [_progress(line) for line in self.lines]

    def text(self) -> str:
        """JSON lines."""
        return "".join(json.dumps(line) + "\n" for line in self.lines)


def _progress(line: dict[str, Any]) -> Progress:
    known: dict[str, Any] = {name: value for name, value in line.items() if name in _FIELDS}
    return Progress(**known | {"loss": math.nan if line["loss"] is None else line["loss"]})


def _plain(value: Any) -> Any:
    """JSON has no numbers that are not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shown(progress: Progress) -> dict[str, Any]:
    """A step as the display has it."""
    values: dict[str, Any] = {"done": progress.step, "total": progress.num_steps}
    if not math.isnan(progress.loss):  # it is where another model than the one to come is trained
        values["loss"] = round(progress.loss, 4)
    values |= {name: round(value, 4) for name, value in progress.figures.items()}
    return {**values, "tokens_per_second": round(progress.tokens_per_second, 1)}
