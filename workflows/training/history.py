"""The history of a training: a line for every step, saved with every checkpoint, and the curves made from it."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from models.training.report import Progress
from workflows.spec.tune import SUITE

HISTORY = "history.jsonl"


@dataclass(kw_only=True)
class HistoryLine:
    """A step as history.jsonl has it, which has no numbers that are not finite: they are None."""

    step: int
    num_steps: int
    loss: float | None
    learning_rate: float
    gradient_norm: float | None = None
    skipped: bool = False
    num_tokens: int = 0
    tokens_per_second: float | None = None
    time: float
    """when it ended, in seconds since 1970"""
    figures: dict[str, float | None] = field(default_factory=dict)
    """what the objective and the worker measured of it, and held-out figures where a checkpoint was due"""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "HistoryLine":
        """The reverse of `to_json`."""
        known = {name: content[name] for name in _FIELDS if name in content}
        return cls(**known, figures={name: value for name, value in content.items() if name not in _FIELDS})

    def to_json(self) -> dict[str, float | None]:
        """All of it side by side."""
        return {**{name: getattr(self, name) for name in _FIELDS}, **self.figures}

    @property
    def progress(self) -> Progress:
        """The step without what was measured beside it."""
        return Progress(
            self.step,
            self.num_steps,
            math.nan if self.loss is None else self.loss,
            self.learning_rate,
            self.gradient_norm,
            self.skipped,
            self.num_tokens,
            self.tokens_per_second or 0.0,
        )


_FIELDS = [each.name for each in fields(HistoryLine) if each.name != "figures"]


class History:
    """For every step: its progress, its time, and the held-out figures measured after it."""

    def __init__(self, text: str = "") -> None:
        self.lines = [HistoryLine.from_json(json.loads(line)) for line in text.splitlines()]

    def add(self, progress: Progress, **more: float) -> None:
        """Add a step that has just ended; `more` are additional figures."""
        content = asdict(progress)
        figures = content.pop("figures") | more
        plain = {name: _plain(value) for name, value in (content | {"time": round(time.time(), 3)} | figures).items()}
        self.lines.append(HistoryLine.from_json(plain))

    def add_held_out(self, figures: Mapping[str, float]) -> None:
        """Add figures measured after the last step."""
        self.lines[-1].figures |= {
            name: _plain(value) for name, value in figures.items() if name.startswith(("held_out_", SUITE))
        }

    def steps(self) -> list[Progress]:
        """The progress of every step so far."""
        return [line.progress for line in self.lines]

    def text(self) -> str:
        """JSON lines."""
        return "".join(json.dumps(line.to_json()) + "\n" for line in self.lines)


def _plain(value: float | None) -> float | None:
    """Replaces numbers that are not finite, which JSON lacks."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shown(progress: Progress) -> dict[str, float]:
    """A step's figures for the display."""
    values: dict[str, float] = {"done": progress.step, "total": progress.num_steps}
    if not math.isnan(progress.loss):  # when the trained model is not the one to release
        values["loss"] = round(progress.loss, 4)
    values |= {name: round(value, 4) for name, value in progress.figures.items()}
    return {**values, "tokens_per_second": round(progress.tokens_per_second, 1)}
