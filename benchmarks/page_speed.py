"""The size of a run's page, and the time until a reader can use it, in headless Chromium.

    python benchmarks/page_speed.py [--suites 20] [--items 250] [--opens 5] [--keep FOLDER]

Makes up a store with two runs: suites of items with tags, the replies of three models of 300 characters each, and a
training of 2,000 steps. Writes the page of the second run and the page that compares both, and opens each several
times in a new browser. Seconds: `usable`: from the navigation's start until the figures are on the screen and the
first replies in the list; `plot`: from a reader's coming to the plots until the first is drawn; `filter`: of a search
over all replies. Words are drawn evenly from a vocabulary, so they compress less than real replies do. The last line
is one JSON object: the medians of the opens. `--keep` leaves the store and both pages in a folder.
"""

import argparse
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selenium import webdriver

from models.statistics.interval import interval
from workflows.record import Record
from workflows.runs.page.report import write_comparison, write_report
from workflows.scorecard.comparisons import Measure, compare_all, finite
from workflows.scorecard.records import ModelScore, Scorecard, ScoredItem, SuiteFigures
from workflows.store import Artifact, RunRecord, Store

MODELS = {"base": 0.55, "service": 0.7, "tuned": 0.73}
TAGS = {"topic": ("returns", "prices", "opening hours", "delivery"), "language": ("de", "en", "fr", "zh")}
REPLY_CHARACTERS = 300
SYLLABLES = ("ba", "ter", "lin", "mo", "ka", "ren", "sti", "vo", "den", "pla", "us", "ni", "gra", "tel", "or", "sha")
VOCABULARY = ["".join(parts) for count in (1, 2, 3) for parts in itertools.product(SYLLABLES, repeat=count)]
SWITCHES = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"


def text(draw: random.Random, characters: int) -> str:
    words: list[str] = []
    while sum(map(len, words)) + len(words) < characters:
        words.append(draw.choice(VOCABULARY))
    return " ".join(words).capitalize() + "."


def items_of(suite: str, number: int, seed: int, run: int, gains: dict[str, float]) -> list[ScoredItem]:
    """The same items in every run, with other replies."""
    draw, replying = random.Random(seed), random.Random(f"{seed} {run}")
    return [
        ScoredItem(
            suite=suite, id=f"item-{place}", place=f"suites/{suite}.jsonl:{place + 1}", group=f"{place // 2}",
            tags={name: draw.choice(values) for name, values in TAGS.items()}, asked=[text(draw, 80)],
            replies={model: [text(replying, REPLY_CHARACTERS)] for model in MODELS},
            scores={model: float(draw.random() < share + gains.get(model, 0)) for model, share in MODELS.items()},
            failed=[],
        )
        for place in range(number)
    ]  # fmt: skip


def scorecard_of(suites: dict[str, list[ScoredItem]]) -> Scorecard:
    measures = [
        Measure(
            name=name, unit="share", scores={model: [item.scores[model] for item in items] for model in MODELS},
            clusters=[item.group for item in items], tags=[item.tags for item in items], golden=name == "suite 1",
        )
        for name, items in suites.items()
    ]  # fmt: skip
    compared = [each.record for each in compare_all(measures, ["base", "service"], 0.95)]
    figures = [
        SuiteFigures(
            name=each.name, scorer="facts", golden=each.golden, unit="share", items=len(each.clusters),
            scores=tuple(model_score(model, values, each.clusters) for model, values in each.scores.items()),
        )
        for each in measures
    ]  # fmt: skip
    return Scorecard(
        base_loss=3.82, tuned_loss=1.44, loss_reduction=2.38, base_perplexity=45.6, tuned_perplexity=4.2,
        scored_tokens=624, passed=True, verdict="passed: held-out loss lower by 2.3800 nats a token",
        suites=tuple(figures), comparisons=tuple(compared), service="0123456789abcdef",
    )  # fmt: skip


def model_score(model: str, values: Sequence[float], clusters: Sequence[str]) -> ModelScore:
    found = interval(values, clusters, confidence=0.95)
    return ModelScore(model=model, mean=found.mean, low=finite(found.low), high=finite(found.high), failed=0)


def lines_of(records: Sequence[Record | dict[str, Any]]) -> bytes:
    plain = (each.to_json() if isinstance(each, Record) else each for each in records)
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in plain).encode()


def history(draw: random.Random, steps: int) -> list[dict[str, Any]]:
    return [
        {
            "step": step, "num_steps": steps, "loss": 1 + 2 / step**0.3 + 0.1 * draw.random(),
            "learning_rate": 1e-3 / step, "gradient_norm": draw.random(), "tokens_per_second": 90 + draw.random(),
            "time": 1.0 * step, "memory_gb": 3.0, **({"held_out_loss": 1 + 2 / step**0.3} if step % 100 == 0 else {}),
        }
        for step in range(1, steps + 1)
    ]  # fmt: skip


def fill(store: Store, suites: int, items: int) -> list[str]:
    """Two runs; the second one's checkpoint is better in some suites and worse in one."""
    names = [f"suite {number}" for number in range(1, suites + 1)]
    runs = []
    for number in range(2):
        made = {}
        for place, name in enumerate(names):
            gain = number * (-0.15 if place == 1 else 0.1 if place % 3 == 0 else 0.0)
            made[name] = items_of(name, items, place, number, {"tuned": gain})
        card = scorecard_of(made)
        store.write_json(store.path("evaluate", f"evaluate-{number}", "scorecard.json"), card.to_json())
        everything = [item for found in made.values() for item in found]
        store.write_file(store.path("evaluate", f"evaluate-{number}", "items.jsonl"), lines_of(everything))
        steps = history(random.Random(number), 2000)
        store.write_file(store.path("train", f"train-{number}", "history.jsonl"), lines_of(steps))
        store.finish(Artifact("train", f"train-{number}", "page", {}, {}, {"held_out_loss": 1.44 + number / 9}))
        store.finish(Artifact("evaluate", f"evaluate-{number}", "page", {}, {}, card.figures.to_json()))
        stages = {stage: {"key": f"{stage}-{number}", "seconds": 60.0} for stage in ("train", "evaluate")}
        record = {
            "run": f"run-{number}", "pipeline": "page", "to": "evaluate", "status": "finished",
            "started": f"2026-01-0{number + 1}", "ended": "2026-01-03", "stages": stages,
            "spec": {"train": {"learning_rate": 0.001 * (1 + number), "epochs": 2}},
        }  # fmt: skip
        store.write_run(RunRecord.from_json(record))
        runs.append(f"run-{number}")
    return runs


def browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    for switch in SWITCHES.split():
        options.add_argument(switch)
    found = webdriver.Chrome(options=options)
    found.set_window_size(1440, 900)
    return found


def mark(driver: webdriver.Chrome, name: str) -> float:
    """Seconds from the navigation's start to a mark that the page sets."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = driver.execute_script("return performance.getEntriesByName(arguments[0])[0]?.startTime", name)
        if found is not None:
            return float(found) / 1000
        time.sleep(0.02)
    raise SystemExit(f"the page never set the mark {name!r}")


SEARCH = """
const text = document.querySelector('#filters [name="text"]');
const before = performance.now();
text.value = "gra"; text.dispatchEvent(new Event("input", {bubbles: true}));
document.body.offsetHeight;
return performance.now() - before;
"""


def opened(file: Path) -> dict[str, float]:
    driver = browser()
    try:
        driver.get(file.as_uri())
        found = {"usable_s": mark(driver, "usable"), "filter_s": driver.execute_script(SEARCH) / 1000}
        before = driver.execute_script("return performance.now()") / 1000
        driver.execute_script("document.getElementById('training').scrollIntoView()")
        found["plot_s"] = mark(driver, "drawn") - before
        return found
    finally:
        driver.quit()


def medians(file: Path, opens: int) -> dict[str, float]:
    found = [opened(file) for _ in range(opens)]
    for each in found:
        print(file.name, {name: round(value, 2) for name, value in each.items()}, flush=True)
    middle = {name: statistics.median(each[name] for each in found) for name in found[0]}
    return {"mb": round(file.stat().st_size / 1e6, 2), **{name: round(value, 3) for name, value in middle.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", type=int, default=20)
    parser.add_argument("--items", type=int, default=250, help="of each suite")
    parser.add_argument("--opens", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="a folder for the store and both pages")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        store = Store(str(folder / "store"))
        runs = fill(store, options.suites, options.items)
        seconds, pages = {}, {}
        for name in ("run", "comparison"):
            began = time.monotonic()
            output = str(folder / f"{name}.html")
            if name == "run":
                pages[name], _ = write_report(store, "page", runs[1], output)
            else:
                pages[name], _ = write_comparison(store, "page", runs[:1], runs[1], output)
            seconds[name] = round(time.monotonic() - began, 2)
        result = {name: {"write_s": seconds[name], **medians(file, options.opens)} for name, file in pages.items()}
    print(json.dumps({"suites": options.suites, "items": options.suites * options.items, **result}))


if __name__ == "__main__":
    main()
