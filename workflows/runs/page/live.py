"""The page of a running search: what the terminal's table shows, with curves, 200 trials at a time.

page = LivePage(search)
html = page.whole(0)        # then page.part(0) every few seconds

It reads the search while another thread adds to it, and takes a bounded share of the time, however many readers and
trials there are.
"""

import math
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from workflows.pace import Pace
from workflows.progress import figure
from workflows.runs.page.html import render, styled
from workflows.search.price_text import price_lines
from workflows.search.records import Search, Trial
from workflows.search.table import (
    headings,
    headline,
    running_then_best,
    trial_rows,
    winner_line,
    winner_values,
)

ROWS = 200
"""trials on a page"""

_MAX_SHARE = 0.1
_SECONDS_OF_PART, _SECONDS_OF_PLOTS = 1.0, 5.0
_MAX_PARTS = 16
_MAX_CURVES = 60
_MAX_POINTS = 100
_MAX_TRIALS_OF_IMPORTANCE = 2000


@dataclass(frozen=True)
class _Row:
    state: str
    cells: list[str]
    leads: bool


class LivePage:
    """A search as HTML. All methods may be called from any thread."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._lock = threading.Lock()
        self._part_pace, self._plot_pace = Pace(_SECONDS_OF_PART, _MAX_SHARE), Pace(_SECONDS_OF_PLOTS, _MAX_SHARE)
        self._parts: dict[int, tuple[str, float]] = {}
        self._plots = "[]"

    def whole(self, start: int) -> str:
        """The page, with the first state of its part."""
        search = self._search
        return render("live.html.j2", pipeline=search.pipeline, key=search.key, host=socket.gethostname(),
                      part=self.part(start))  # fmt: skip

    def part(self, start: int) -> str:
        """What changes of the page: `ROWS` trials from this place on, and what stands above them."""
        with self._lock:
            known, until = self._parts.get(start, ("", 0.0))
            now = time.monotonic()
            if known and now < max(until, self._part_pace.free_at):
                return known
            time.sleep(max(0.0, self._part_pace.free_at - now))  # a second or so: the readers wait, not the search
            self._parts.pop(start, None)
            with self._part_pace.taking():
                made = self._made(start)
            self._parts[start] = made, self._part_pace.due_at
            if len(self._parts) > _MAX_PARTS:
                del self._parts[next(iter(self._parts))]
            return made

    def _made(self, start: int) -> str:
        search = replace(self._search, trials=[*self._search.trials])
        trials = running_then_best(search)
        shown = trials[start : start + ROWS]
        leader = search.leader()
        rows = [
            _Row(trial.state, [*cells[:-1], _tokens(trial), cells[-1]], leader is not None and leader[0] is trial)
            for trial, cells in zip(shown, trial_rows(search, shown), strict=True)
        ]
        if self._plot_pace.is_due:
            with self._plot_pace.taking():
                self._plots = _plots(search)
        titles = headings(search)
        return render(
            "live_part.html.j2",
            how=f"{search.searcher}, {search.scheduler}",
            headline=headline(search),
            winner=winner_line(search),
            values=winner_values(search),
            notes=[*filter(None, [_tokens_read(search)]), *price_lines(search)],
            headings=[*titles[:-1], "tokens", titles[-1]],
            rows=rows,
            total=len(trials),
            start=start,
            end=start + len(shown),
            per_page=ROWS,
            plots=self._plots,
        )


def _tokens(trial: Trial) -> str:
    return f"{int(trial.last.figures['num_tokens']):,}" if trial.last and "num_tokens" in trial.last.figures else ""


def _tokens_read(search: Search) -> str:
    """The tokens that the trials have read; empty for a population, whose members continue from each other."""
    read = [trial.last.figures.get("num_tokens", 0.0) for trial in search.trials if trial.last]
    if not any(read) or any(trial.origin for trial in search.trials):
        return ""
    return f"{figure(int(sum(read)))} tokens read by all trials"


def _plots(search: Search) -> str:
    """The plots as JSON: the curves of running and of the best trials, importance, with two metrics the front."""
    from workflows.search.plot_lines import metric_over_steps
    from workflows.search.plots import importance_bars, pareto

    best = running_then_best(search)
    drawn = replace(search, trials=[_thinned(search, trial) for trial in best[:_MAX_CURVES]])
    figures = [metric_over_steps(drawn), pareto(drawn)]
    if len(best) <= _MAX_TRIALS_OF_IMPORTANCE:
        figures.append(importance_bars(search))
    if figures[0] is not None and len(best) > _MAX_CURVES:
        figures[0].update_layout(title=f"{figures[0].layout.title.text}: running and best trials")
    texts = [
        styled(each).to_json().replace("<", "\\u003c") for each in figures if each is not None
    ]  # inside of a script
    return f"[{','.join(texts)}]"


def _thinned(search: Search, trial: Trial) -> Trial:
    """A trial with at most so many reports that its curve looks the same; the best and the last one stay."""
    reports = trial.reports
    every = math.ceil(len(reports) / _MAX_POINTS)
    if every <= 1:
        return trial
    kept: Sequence[Any] = [trial.best(search.metrics[0]), reports[-1]]
    return replace(trial, reports=[each for n, each in enumerate(reports) if n % every == 0 or each in kept])
