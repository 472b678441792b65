"""The display of a run: a live line on a terminal, plain lines elsewhere, or JSON lines.

with Progress(json_lines=False) as progress:
    progress.start("train", "LoRA, 2 workers")
    progress.update(done=10, total=100, unit="steps", figures={"loss": 2.1})
    progress.finish("train", {"held_out_loss": 1.2})
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Container, Iterable, Sequence
from types import TracebackType
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from workflows.record import JsonObject

# Without a terminal, one line of progress at most this often.
_PLAIN_EVERY_S = 5.0
# The first of many items often waits for a model to load: an estimate from it alone was two hours for two minutes.
_LEAST_SHARE = 0.02

_CONTROLS = dict.fromkeys([*range(32), *range(127, 160)], " ")
"""characters that would break a line of a table"""


def duration(seconds: float) -> str:
    """`95` as `1m35s`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def figure(value: Any) -> str:
    """Format a number for people."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def table_text(
    headings: Sequence[str], rows: Iterable[Sequence[str]], right: Container[int] = (), indent: int = 0
) -> str:
    """Rows of words under their headings, a line each; columns whose number is in `right` end at their right edge.

    rich.Table does the same, too slowly for ten thousand rows.
    """
    table = [[word.translate(_CONTROLS) for word in row] for row in (headings, *rows)]
    sizes = [[cell_len(word) for word in row] for row in table]
    widths = [max(column) for column in zip(*sizes, strict=True)]
    lines = []
    for row, mine in zip(table, sizes, strict=True):
        gaps = [" " * (width - size) for width, size in zip(widths, mine, strict=True)]
        words = (gap + word if number in right else word + gap
                 for number, (word, gap) in enumerate(zip(row, gaps, strict=True)))  # fmt: skip
        lines.append((" " * indent + "  ".join(words)).rstrip())
    return "\n".join(lines)


class Progress:
    """The display of one command. Prints notes and results to stdout in order, each once."""

    def __init__(self, json_lines: bool = False) -> None:
        self.json_lines = json_lines
        self.console = Console(highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._below: Callable[[], RenderableType] | None = None
        self._stage = ""
        self._began = time.monotonic()
        self._first_done: tuple[float, float] | None = None
        self._last_done = 0.0
        self._last_plain = 0.0
        self._last_line = ""
        self._lock = threading.Lock()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_live()

    def start(self, stage: str, detail: str = "") -> None:
        """Begin a stage."""
        self._stage, self._began, self._first_done = stage, time.monotonic(), None
        self._last_plain, self._last_line, self._below = 0.0, "", None
        if self.json_lines:
            self._event("started", detail=detail)
            return
        self._print(f"[bold]{stage:<9}[/] {detail or 'started'}")
        if self.console.is_terminal:
            self._live = Live(
                console=self.console, refresh_per_second=4, transient=True, get_renderable=self._live_view
            )
            self._live.start()

    def update(
        self,
        done: float,
        total: float | None,
        unit: str,
        figures: JsonObject | None = None,
        seconds_left: float | None = None,
    ) -> None:
        """Show the progress of the stage with current figures; estimates `seconds_left` if it is not given."""
        figures = figures or {}
        now = time.monotonic()
        if self._first_done is None or done < self._last_done:  # a worker was lost, and some steps are repeated
            self._first_done = (now, done)
        self._last_done = done
        began, first = self._first_done
        left = seconds_left
        if left is None and total and done - first >= _LEAST_SHARE * total:
            left = (total - done) * (now - began) / (done - first)
        with self._lock:
            if self.json_lines:
                self._event("progress", done=done, total=total, unit=unit, seconds_left=left, **figures)
                return
            line = self._line(done, total, unit, figures, left)
            is_due = now - self._last_plain >= _PLAIN_EVERY_S and line != self._last_line
            if self._live is None and is_due:
                self._last_plain = now
                self._print(f"  {self._stage}: {line}", markup=False)
            if self._live is not None or is_due:
                self._last_line = line

    def show(self, make: Callable[[], RenderableType]) -> None:
        """Show this below the stage's live line, rendered again at every refresh; only on a terminal."""
        self._below = make

    def finish(self, stage: str, figures: JsonObject, up_to_date: bool = False, seconds: float | None = None) -> None:
        """End a stage, or show that it is up to date; `seconds` defaults to the time since its start."""
        self._stop_live()
        if self.json_lines:
            self._event("up_to_date" if up_to_date else "done", stage=stage, figures=figures)
            return
        shown = ", ".join(
            f"{name.replace('_', ' ')} {figure(value)}"
            for name, value in figures.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        )
        seconds = time.monotonic() - self._began if seconds is None else seconds
        word = "up to date" if up_to_date else f"done in {duration(seconds)}"
        self._print(f"[bold]{stage:<9}[/] [green]{word}[/]{': ' if shown else ''}", end="")
        self._print(shown, markup=False)

    def note(self, text: str, **fields: Any) -> None:
        """Print a line that stays."""
        if self.json_lines:
            self._event("note", text=text, **fields)
        else:
            self._print(text, markup=False)

    def result(self, name: str, content: JsonObject, text: str) -> None:
        """Print a result: `text` for people, `content` for machines."""
        if self.json_lines:
            self._event(name, **content, text=text)
        else:
            self._print(text, markup=False)

    def _line(self, done: float, total: float | None, unit: str, figures: JsonObject, left: float | None) -> str:
        parts = [f"{figure(int(done))}/{figure(int(total))} {unit}" if total else f"{figure(int(done))} {unit}"]
        if total:
            parts.append(f"{min(1.0, done / total):.0%}")
        parts += [f"{name.replace('_', ' ')} {figure(value)}" for name, value in figures.items()]
        if left is not None:
            parts.append(f"{duration(left)} left")
        return ", ".join(parts)

    def _live_view(self) -> RenderableType:
        """The stage's elapsed time, its progress once known, and what `show` was given."""
        line = Text(f"  {self._stage} {duration(time.monotonic() - self._began)}: {self._last_line or 'starting'}")
        return Group(line, self._below()) if self._below else line

    def _event(self, event: str, **fields: Any) -> None:
        record = {"event": event, "time": round(time.time(), 3), "stage": self._stage or None, **fields}
        sys.stdout.write(json.dumps(record) + "\n")
        sys.stdout.flush()

    def _print(self, text: str, markup: bool = True, end: str = "\n") -> None:
        self.console.print(text, markup=markup, end=end)
        self.console.file.flush()

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
