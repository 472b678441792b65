"""Show a search on a terminal: a live table while it runs, the whole search as text, a few figures for one line.

progress.show(lambda: search_table(search, progress.console.width))
print(search_text(search))
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from workflows.progress import duration, figure, table_text
from workflows.search.price_text import price_lines
from workflows.search.records import FAILED, FINISHED, RUNNING, STOPPED, OnProxy, Search, Trial, badness
from workflows.spec.space import Choice, dimension_of

if TYPE_CHECKING:
    from rich.table import Table

_MAX_LIVE_ROWS = 20
_MIN_REMARK_LETTERS = 14
_STYLES = {RUNNING: "cyan", FINISHED: "green", STOPPED: "dim", FAILED: "red"}


def short_names(fields: Iterable[str]) -> dict[str, str]:
    """A short name for each dotted field: its last part, or as many parts as make it unique."""
    parts = {field: field.split(".") for field in fields}
    names = {}
    for field, mine in parts.items():
        for count in range(1, max(map(len, parts.values())) + 1):
            if sum(other[-count:] == mine[-count:] for other in parts.values()) == 1:
                names[field] = ".".join(mine[-count:])
                break
    return names


def fields_of(search: Search) -> list[str]:
    """The searched dotted fields, in the pipeline file's order."""
    return list(dict.fromkeys([*search.space, *(field for trial in search.trials for field in trial.values)]))


def value_word(value: Any) -> str:
    """A trial's value in the pipeline file's notation, numbers with four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def plain(name: str) -> str:
    """The name of a figure or a field, with spaces."""
    return name.replace("_", " ")


def best_value(search: Search, trial: Trial, metric: str) -> float | None:
    """The metric in a trial's best report by the first metric; None if it is not a finite number."""
    report = trial.best(search.metrics[0])
    value = report.figures.get(metric) if report else None
    return value if value is not None and math.isfinite(value) else None


def ranked(search: Search) -> list[Trial]:
    """All trials, the best by the first metric first, those without a report last."""

    def rank(trial: Trial) -> tuple[bool, float, int]:
        value = best_value(search, trial, search.metrics[0])
        return value is None, 0.0 if value is None else badness(search.metrics[0], value), trial.number

    return sorted(search.trials, key=rank)


def running_then_best(search: Search) -> list[Trial]:
    """All trials as a running search shows them: those that run, then the others, the best first."""
    running = [trial for trial in search.trials if trial.state == RUNNING]
    return [*running, *(trial for trial in ranked(search) if trial.state != RUNNING)]


def headings(search: Search) -> list[str]:
    """The columns of `trial_rows`; the last one has remarks of any length."""
    names = short_names(fields_of(search))
    figures = [heading for metric in search.metrics for heading in (plain(metric), "at best")]
    figures[1] = "best"
    return ["trial", *map(plain, names.values()), "state", "step", *figures, ""]


def trial_rows(search: Search, trials: Sequence[Trial]) -> list[list[str]]:
    """The cells of a row for each of these trials, under `headings`."""
    fields, remarks = fields_of(search), _remarks(search)
    rows = []
    for trial in trials:
        last = trial.last
        figures: list[float | None] = []
        for metric in search.metrics:
            figures += [last.figures.get(metric) if last else None, best_value(search, trial, metric)]
        rows.append([
            str(trial.number),
            *(value_word(trial.values[field]) if field in trial.values else "" for field in fields),
            trial.state,
            f"{last.step}/{last.num_steps}" if last else "",
            *("" if value is None else figure(float(value)) for value in figures),
            ", ".join([*remarks.get(trial.key, []), *_own_remarks(trial)]),
        ])  # fmt: skip
    return rows


def _remarks(search: Search) -> dict[str, list[str]]:
    """Remarks by trial key: the winner or leader, and the Pareto front."""
    found: dict[str, list[str]] = {}
    leader = search.leader()
    if search.winner:
        found[search.winner.key] = ["winner"]
    elif leader:
        found[leader[0].key] = ["leads"]
    for trial, _ in search.front() if len(search.metrics) > 1 else []:
        found.setdefault(trial.key, []).append("Pareto front")
    if search.forecast is not None:
        for trial in search.trials:
            found.setdefault(trial.key, []).append(search.forecast.candidates[trial.number])
    return found


def _own_remarks(trial: Trial) -> list[str]:
    remarks = [trial.added] if trial.added else []
    if trial.is_stopped_by_hand:
        remarks.append("stopped by hand")
    if trial.origin:
        remarks.append(f"copy of {trial.origin.number} at step {trial.origin.step}")
    if trial.reused:
        whole = trial.reused >= len(trial.reports) and trial.state != RUNNING
        remarks.append(f"{'known' if whole else f'{trial.reused} reports known'} from an earlier run")
    if trial.failures:
        remarks.append(f"workers lost {trial.failures} time{'s' if trial.failures > 1 else ''}")
    if trial.error:
        remarks.append(" ".join(trial.error.split()))
    return remarks


def headline(search: Search) -> str:
    """The number of trials by state, the elapsed and the remaining time, and the best figure so far."""
    counts = Counter(trial.state for trial in search.trials)
    begun = len({trial.number for trial in search.trials})
    of = "" if search.wanted is None else f" of {search.wanted}"
    words = [f"{begun}{of} trials", *(f"{counts[state]} {state}" for state in _STYLES if counts[state])]
    copies = sum(trial.origin is not None for trial in search.trials)
    if copies:
        words.append(f"{copies} copied another trial")
    words.append(duration(search.seconds))
    left = None if search.winner else time_left(search)
    if left is not None:
        words.append(f"{duration(left)} left")
    leader = search.leader()
    if leader:
        metric = search.metrics[0]
        words.append(f"best {plain(metric)} {figure(float(leader[1].figures[metric]))} (trial {leader[0].number})")
    return ", ".join(words)


def time_left(search: Search) -> float | None:
    """Seconds until the requested trials are done or the time limit is over; None if neither is known."""
    found = [_seconds_of_trials_left(search)]
    if search.seconds_allowed is not None:
        found.append(max(0.0, search.seconds_allowed - search.seconds))
    if search.max_cost is not None and search.price_per_hour is not None and search.spent is not None:
        found.append(max(0.0, (search.max_cost - search.spent) / search.price_per_hour * 3600))
    return min((seconds for seconds in found if seconds is not None), default=None)


def _seconds_of_trials_left(search: Search) -> float | None:
    """Running trials continue at their own pace; further trials take the average time of the ended ones."""
    if search.wanted is None:
        return None
    ended = [trial.last.figures.get("seconds") for trial in search.trials if trial.last and trial.state != RUNNING]
    known = [seconds for seconds in ended if seconds is not None]
    mean = fmean(known) if known else None
    to_come = max(0, search.wanted - len({trial.number for trial in search.trials}))
    each = [_seconds_left(trial) for trial in search.trials if trial.state == RUNNING] + [None] * to_come
    work = [mean if seconds is None else seconds for seconds in each]
    certain = [seconds for seconds in work if seconds is not None]
    if len(certain) < len(work):
        return None
    return max(sum(certain) / search.at_once, max(certain, default=0.0))


def _seconds_left(trial: Trial) -> float | None:
    last, begun = trial.last, trial.origin.step if trial.origin else 0
    if last is None or last.step <= begun or "seconds" not in last.figures:
        return None
    return last.figures["seconds"] / (last.step - begun) * (last.num_steps - last.step)


def search_summary(search: Search) -> dict[str, float]:
    """Figures for one line of progress."""
    counts = Counter(trial.state for trial in search.trials)
    figures: dict[str, float] = {"trials_done": len(search.trials) - counts[RUNNING]}
    figures |= {state: counts[state] for state in (RUNNING, STOPPED, FAILED)}
    leader = search.leader()
    if leader:
        figures[f"best_{search.metrics[0]}"] = leader[1].figures[search.metrics[0]]
    return figures


def search_table(search: Search, width: int, max_rows: int = _MAX_LIVE_ROWS) -> "Table":
    """The current state of the search, for a terminal of this width: running trials first, then the best ones.

    Lines below it show how many more trials there are, and which columns do not fit.
    """
    from rich.table import Table
    from rich.text import Text

    trials = running_then_best(search)
    shown, leader = trials[:max_rows], search.leader()
    names, rows = headings(search), trial_rows(search, shown)
    columns, left_out, widths = _columns_with_room(search, names, rows, width)
    table = Table(title=Text(headline(search)), title_style="", title_justify="left", caption_justify="left",
                  box=None, padding=(0, 2, 0, 0), pad_edge=False)  # fmt: skip
    for column in columns:
        is_number = _are_numbers([row[column] for row in rows])
        table.add_column(Text(names[column]), justify="right" if is_number else "left", width=widths[column])
    for trial, row in zip(shown, rows, strict=True):
        styles = [_STYLES[trial.state] if names[column] == "state" else "" for column in columns]
        cells = [Text(row[column], style, no_wrap=True, overflow="ellipsis")
                 for column, style in zip(columns, styles, strict=True)]  # fmt: skip
        table.add_row(*cells, style="bold" if leader and leader[0] is trial else None)
    below = price_lines(search)
    if more := Counter(trial.state for trial in trials[max_rows:]):
        below.append(f"and {sum(more.values())} more: " + ", ".join(f"{more[state]} {state}" for state in more))
    if left_out:
        below.append(f"no room for {', '.join(left_out)}")
    table.caption = Text("\n".join(below)) if below else None
    return table


def _columns_with_room(
    search: Search, names: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> tuple[list[int], list[str], list[int]]:
    """The columns that fit, in their order; the names of the others; and all widths.

    Cuts remarks instead of leaving them out.
    """
    num_fields = len(fields_of(search))
    state, remarks = 1 + num_fields, len(names) - 1
    first, best, *others = range(state + 2, remarks)
    by_worth = [0, state, state + 1, best, *range(1, state), *others[1::2], first, *others[::2]]
    widths = [max([*map(len, name.split()), *(len(row[column]) for row in rows)], default=0)
              for column, name in enumerate(names)]  # fmt: skip
    room = width - min(widths[remarks], _MIN_REMARK_LETTERS)
    columns: list[int] = []
    for column in by_worth:
        room -= widths[column] + 2
        if room >= 0:
            columns.append(column)
    left_out = [names[column] for column in sorted(by_worth) if column not in columns]
    widths[remarks] = min(widths[remarks], width - sum(widths[column] + 2 for column in columns))
    return [*sorted(columns), *([remarks] if widths[remarks] > 0 else [])], left_out, widths


def search_text(search: Search) -> str:
    """The whole search as text: every trial, the best first, reasons of failures, the winner, the Pareto front."""
    lines = [f"search {search.key} of {search.pipeline}: {search.searcher}, {search.scheduler}", headline(search), ""]
    trials = ranked(search)
    rows = trial_rows(search, trials)
    numbers = [number for number, column in enumerate(zip(*rows, strict=True)) if _are_numbers(column)]
    lines += [table_text(headings(search), rows, right=numbers), "", *_outcome(search)]
    if search.forecast is not None:
        mixtures, candidates = forecast_rows(search)
        lines += ["", table_text(mixtures, candidates, right=range(1, len(mixtures)))]
        lines += [f"rank correlation of predicted and measured losses of {len(search.forecast.measured_of_proxies)} "
                  f"small models: {search.forecast.spearman:.2f}"]  # fmt: skip
    return "\n".join(lines).rstrip()


def region_text(proxy: OnProxy, space: Mapping[str, object]) -> str:
    """The region of the best trials of the search on a small model."""
    region = ", ".join(f"{field} {_entry_text(entry)}" for field, entry in space.items())
    moved = f" (rates times {proxy.rate_factor:g} for the width)" if proxy.rate_factor != 1 else ""
    return f"the best {proxy.best} of {proxy.trials} trials on {proxy.base_model} span the region {region}{moved}"


def _entry_text(entry: Any) -> str:
    dimension = dimension_of(entry)
    if isinstance(dimension, Choice):
        return " or ".join(map(value_word, dimension.values))
    return f"{dimension.low:.4g} to {dimension.high:.4g}"


def _are_numbers(words: Sequence[str]) -> bool:
    return any(words) and all(word[-1:].isdigit() or not word for word in words)


def winner_line(search: Search) -> str:
    """The winner, with the value that it reported and the value measured again on its checkpoint."""
    won, metric = search.winner, plain(search.metrics[0])
    if won is None:
        leader = search.leader()
        return f"no winner yet: trial {leader[0].number} leads" if leader else "no trial has reported yet"
    measured = f"reported {won.reported:.4f}, measured again {won.remeasured:.4f}"
    return f"winner: trial {won.trial} at step {won.step}, {metric} {measured}"


def forecast_rows(search: Search) -> tuple[list[str], list[list[str]]]:
    """For a search over mixtures, headings and a row for each candidate: its weights, its losses."""
    forecast, metric = search.forecast, search.metrics[0]
    if forecast is None:
        return [], []
    rows = []
    for trial in sorted(search.trials, key=lambda trial: trial.number):
        measured = best_value(search, trial, metric)
        rows.append([
            forecast.candidates[trial.number],
            *(f"{float(str(weight)):.1%}" for weight in trial.values.values()),
            f"{forecast.predicted[trial.number]:.4f}",
            "" if measured is None else f"{measured:.4f}",
        ])  # fmt: skip
    return ["mixture", *forecast.sources, "small model, predicted", f"{plain(metric)}, measured"], rows


def winner_values(search: Search) -> dict[str, str]:
    """The settings of the winner, or without one of the leader: dotted field -> full value."""
    leader = search.leader()
    key = search.winner.key if search.winner else leader[0].key if leader else None
    found = next((trial for trial in search.trials if trial.key == key), None)
    values = found.values if found else {}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def _outcome(search: Search) -> list[str]:
    lines = [winner_line(search), *(f"  {field}: {value}" for field, value in winner_values(search).items())]
    lines += price_lines(search)
    if search.proxy is not None:
        lines.append(f"proxy: {region_text(search.proxy, search.space)}")
    if len(search.metrics) > 1 and (front := search.front()):
        numbers = ", ".join(str(trial.number) for trial, _ in front)
        lines.append(f"Pareto front of {' and '.join(map(plain, search.metrics))}: trials {numbers}")
    return lines
