"""Searches replayed from recorded trainings (benchmarks/search_table.py): the best loss by tokens spent.

    python benchmarks/search_replay.py [--seeds 50] [--at-once 2,8] [--figure docs/search_replay.svg]

The searchers and schedulers are those of a search, driven as Ray Tune drives them, without Ray. A searcher's settings
become those of the nearest training of the table that is still untried. All searches may spend as many tokens as 16
whole trainings; with the same seed, they draw the same random settings. The last line is one JSON object.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ray.tune.schedulers import FIFOScheduler
from recorded_trainings import METRIC, Pool, RandomRows, Replayed, Table, TpeOfRows, read_table, replay

from workflows.search.brackets import GRACE_SHARE, Brackets
from workflows.search.hyperband import Hyperband
from workflows.search.priced import UntilGainIsSmall
from workflows.search.records import Search
from workflows.search.schedulers import Asha, Median

WHOLE_TRAININGS = 16
PRICED_TRAININGS = 48
PRICES = (0.002, 0.005, 0.01, 0.02)
"""of the tokens of a whole training, in nats"""


Maker = Callable[[Table, int], tuple[Any, Any]]


def random_with(scheduler: Callable[[Table], Any]) -> Maker:
    return lambda table, seed: (RandomRows(Pool(table, seed)), scheduler(table))


def tpe_with(scheduler: Callable[[Table], Any]) -> Maker:
    return lambda table, seed: (TpeOfRows(Pool(table, seed), table, seed), scheduler(table))


def asha(share: float | None = None) -> Callable[[Table], Any]:
    """The first rung at this share of the longest training's steps, or at the first checkpoint."""
    return lambda table: Asha(_grace_steps(table, share), max_t=_longest(table), reduction_factor=3.0)


def median(share: float | None = None) -> Callable[[Table], Any]:
    return lambda table: Median(_grace_steps(table, share), min_samples_required=3)


def _grace_steps(table: Table, share: float | None) -> int:
    return min(row.steps[0] for row in table.rows) if share is None else round(share * _longest(table))


def _longest(table: Table) -> int:
    return max(row.steps[-1] for row in table.rows)


def none(table: Table) -> Any:
    return FIFOScheduler()


def hyperband(share: float = GRACE_SHARE, factor: float = 2.0, count: int = 1) -> Callable[[Table], Any]:
    return lambda table: Hyperband(Brackets(share * table.whole, factor, count), METRIC)


def priced(maker: Maker, price: float) -> Maker:
    def make(table: Table, seed: int) -> tuple[Any, Any]:
        searcher, scheduler = maker(table, seed)
        search = Search("replay", "", [METRIC], {}, "", "", None)
        return UntilGainIsSmall(searcher, price, METRIC, search), scheduler

    return make


POLICIES: dict[str, Maker] = {
    "random": random_with(none),
    "asha": random_with(asha()),
    "asha from 0.4": random_with(asha(GRACE_SHARE)),
    "median": random_with(median()),
    "median from 0.4": random_with(median(GRACE_SHARE)),
    "hyperband": random_with(hyperband()),
    "hyperband from 0.1, third": random_with(hyperband(0.1, 3.0)),
    "hyperband from 0.1, third, 3 brackets": random_with(hyperband(0.1, 3.0, 3)),
    "tpe": tpe_with(none),
    "tpe hyperband": tpe_with(hyperband()),
    "tpe hyperband from 0.1, third, 3 brackets": tpe_with(hyperband(0.1, 3.0, 3)),
}


def figures_of(runs: dict[str, list[Replayed]], best: float, budget: float) -> Iterator[tuple[str, dict[str, float]]]:
    """For each policy: its regrets, and how it compares with asha and random, seed by seed."""
    for name, mine in runs.items():
        shares = [run.until(other.at(budget)) / budget for run, other in zip(mine, runs["asha"], strict=True)]
        worse = [run.at(budget) > other.at(budget) for run, other in zip(mine, runs["random"], strict=True)]
        worse_at_half = [
            run.at(budget / 2) > other.at(budget / 2) for run, other in zip(mine, runs["random"], strict=True)
        ]
        yield (
            name,
            {
                "regret_at_half": statistics.fmean(run.at(budget / 2) - best for run in mine),
                "regret": statistics.fmean(run.at(budget) - best for run in mine),
                "median_regret": statistics.median(run.at(budget) - best for run in mine),
                "share_of_ashas_tokens": statistics.median(shares),
                "worse_than_random": statistics.fmean(worse),
                "worse_than_random_at_half": statistics.fmean(worse_at_half),
                "trials": statistics.fmean(run.trials for run in mine),
            },
        )


def prices_of(table: Table, seeds: Sequence[int], at_once: int, budget: float) -> Iterator[dict[str, float]]:
    """What `tune.min_gain` spends and loses, beside the same search with the whole budget."""
    maker = POLICIES["tpe hyperband"]
    whole = [replay(table, *maker(table, seed), at_once, budget) for seed in seeds]
    for price in PRICES:
        runs = [replay(table, *priced(maker, price)(table, seed), at_once, budget) for seed in seeds]
        lost = [run.best[-1] - other.best[-1] for run, other in zip(runs, whole, strict=True)]
        yield {
            "min_gain": price,
            "spent": statistics.fmean(run.spent[-1] for run in runs) / table.whole,
            "budget": budget / table.whole,
            "lost": statistics.fmean(lost),
            "most_lost": max(lost),
            "saved_for_it": price * (budget - statistics.fmean(run.spent[-1] for run in runs)) / table.whole,
        }


def draw(runs: dict[str, list[Replayed]], best: float, table: Table, file: Path) -> None:
    """The mean regret by tokens spent, as an SVG."""
    import plotly.graph_objects as go

    shares = [WHOLE_TRAININGS * (index + 4) / 100 for index in range(97)]
    figure = go.Figure(layout={"template": "simple_white", "width": 860, "height": 480})
    for name, mine in runs.items():
        regrets = [statistics.fmean(run.at(share * table.whole) - best for run in mine) for share in shares]
        figure.add_scatter(x=shares, y=regrets, name=name, mode="lines")
    figure.update_xaxes(title="tokens spent, in whole trainings")
    figure.update_yaxes(title="best loss above the table's best, mean", type="log")
    file.write_text(svg_of(figure))


def svg_of(figure: Any) -> str:
    """A plot as SVG, drawn by plotly.js in Chromium without a window."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "plot.html"
        figure.write_html(page, include_plotlyjs=True, div_id="plot")
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            browser.get(page.as_uri())
            script = "Plotly.toImage('plot', {format: 'svg', width: 860, height: 480}).then(arguments[0])"
            browser.set_script_timeout(120)
            address: str = browser.execute_async_script(script)
        finally:
            browser.quit()
    return unquote(address.partition(",")[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=Path(__file__).parent / "search_table.json.gz")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--at-once", default="2,8")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    table, seeds = read_table(options.table), range(options.seeds)
    budget, best = WHOLE_TRAININGS * table.whole, min(min(row.losses) for row in table.rows)
    output: dict[str, Any] = {"trainings": len(table.rows), "whole_tokens": table.whole, "best": best}
    for at_once in map(int, options.at_once.split(",")):
        runs = {}
        for name, maker in POLICIES.items():
            began = time.perf_counter()
            runs[name] = [replay(table, *maker(table, seed), at_once, budget) for seed in seeds]
            print(
                f"{at_once} at once, {name}: {(time.perf_counter() - began) / len(seeds):.2f} s a search", flush=True
            )
        output[f"{at_once} at once"] = {
            name: {figure: round(value, 4) for figure, value in figures.items()}
            for name, figures in figures_of(runs, best, budget)
        }
        for name, figures in output[f"{at_once} at once"].items():
            print(f"  {name:32} {figures}")
        prices = [
            {name: round(value, 4) for name, value in row.items()}
            for row in prices_of(table, seeds, at_once, PRICED_TRAININGS * table.whole)
        ]
        output[f"{at_once} at once, with a price"] = prices
        print("\n".join(f"  {row}" for row in prices))
        if options.figure and at_once == 2:
            shown = ("random", "asha", "median", "hyperband", "tpe", "tpe hyperband")
            draw({name: runs[name] for name in shown}, best, table, options.figure)
    print(json.dumps(output))


if __name__ == "__main__":
    main()
