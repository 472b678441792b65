"""A run's page in headless Chromium: replies are filtered, plots are drawn, and a phone shows it without scrolling
sideways. It is a file; no endpoint is asked.
"""

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait
from stored import EVALUATED, run_record

from workflows.runs.page.report import write_comparison, write_report
from workflows.scorecard.records import Compared, ScoredItem
from workflows.store import Artifact, Store

ITEMS = 30


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run with a training, and a suite of which the first items are worse than before."""
    store = Store(str(tmp_path_factory.mktemp("report") / "store"))
    items = [
        ScoredItem(
            suite="prices", id=f"item-{place}", place="", group="", tags={"topic": "tents" if place % 2 else "boots"},
            asked=["What is the price?"], replies={model: [f"{place} euros"] for model in ("base", "tuned")},
            scores={"base": 1.0 if place < 3 else 0.0, "tuned": 0.0 if place < 10 else 1.0}, failed=[],
        )
        for place in range(ITEMS)
    ]  # fmt: skip
    compared = [
        Compared(
            measure="prices", slice=name, against="base", unit="share", lower_is_better=False, golden=True, items=30,
            clusters=30, other=0.1, tuned=0.7, difference=0.6, low=0.4, high=0.8, p_value=0.001, smallest=0.2,
            confidence=0.95,
        )
        for name in (None, "topic=tents", "topic=boots")
    ]  # fmt: skip
    suite = {"name": "prices", "scorer": "facts", "golden": True, "unit": "share", "items": ITEMS, "scores": []}
    card = {**EVALUATED, "suites": [suite], "comparisons": [each.to_json() for each in compared]}
    store.write_json(store.path("evaluate", "key", "scorecard.json"), card)
    lines = "".join(json.dumps(item.to_json()) + "\n" for item in items)
    store.write_file(store.path("evaluate", "key", "items.jsonl"), lines.encode())
    history = [
        {"step": step, "num_steps": 9, "loss": 3.0 / step, "learning_rate": 1e-3, "time": step} for step in (1, 2)
    ]
    store.write_file(store.path("train", "key", "history.jsonl"), "\n".join(map(json.dumps, history)).encode())
    stages = {}
    for stage, figures in (("train", {"steps": 2}), ("evaluate", EVALUATED)):
        store.finish(Artifact(stage, "key", "shop", {}, {}, figures))
        stages[stage] = {"key": "key", "seconds": 1.0}
    store.write_run(run_record(stages=stages))
    return store


@pytest.fixture(scope="module")
def file(store: Store) -> Path:
    """The page of the run."""
    return write_report(store, "shop", None, f"{store.root}/page.html")[0]


@pytest.fixture(scope="module")
def comparison(store: Store) -> Path:
    """The page that compares the run with two later ones: right at one item in two, and at one in three."""
    for step in (2, 3):
        items = [
            json.loads(line) for line in Path(store.path("evaluate", "key", "items.jsonl")).read_text().splitlines()
        ]
        for place, item in enumerate(items):
            item["scores"]["tuned"] = float(place % step == 0)
        key = f"every-{step}"
        lines = "".join(json.dumps(item) + "\n" for item in items)
        store.write_file(store.path("evaluate", key, "items.jsonl"), lines.encode())
        card = store.read_json(store.path("evaluate", "key", "scorecard.json"))
        store.write_json(store.path("evaluate", key, "scorecard.json"), card)
        store.finish(Artifact("evaluate", key, "shop", {}, {}, EVALUATED))
        stages = {"evaluate": {"key": key, "seconds": 1.0}}
        store.write_run(run_record(run=key, started=f"2026-02-0{step}", stages=stages))
    first = next(record.run for record in store.runs() if not record.run.startswith("every"))
    return write_comparison(store, "shop", [first, "every-2"], "every-3", f"{store.root}/comparison.html")[0]


@pytest.fixture
def opened(driver: webdriver.Chrome, file: Path) -> Iterator[webdriver.Chrome]:
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.get(file.as_uri())
    driver.get_log("browser")  # Reading the log clears it.
    yield driver
    driver.get("about:blank")


def until(driver: webdriver.Chrome, condition: Callable[[], Any]) -> Any:
    return WebDriverWait(driver, 20, 0.02).until(lambda _: condition())


def shown(driver: webdriver.Chrome) -> list[str]:
    return [each.text.split("\n")[0] for each in driver.find_elements(By.CSS_SELECTOR, "#shown-replies .item h3")]


def choose(driver: webdriver.Chrome, field: str, text: str) -> None:
    Select(driver.find_element(By.CSS_SELECTOR, f"#filters [name={field}]")).select_by_visible_text(text)


def test_replies_are_filtered_and_plots_are_drawn(opened: webdriver.Chrome) -> None:
    until(opened, lambda: len(shown(opened)) == 20)
    assert [title.split()[1] for title in shown(opened)[:3]] == ["item-0", "item-1", "item-2"], "the worst first"
    opened.find_element(By.ID, "more").click()
    assert len(shown(opened)) == ITEMS
    assert not opened.find_element(By.ID, "more").is_displayed()
    choose(opened, "show", "worse than before")
    assert len(shown(opened)) == 3
    choose(opened, "tag", "topic=tents")
    assert [title.split()[1] for title in shown(opened)] == ["item-1"]
    assert opened.find_element(By.CSS_SELECTOR, "#filters output").text == "1 of 30, the worst first"
    choose(opened, "tag", "all")
    choose(opened, "show", "not fully right")
    assert len(shown(opened)) == 10
    opened.find_element(By.NAME, "text").send_keys("7 EUROS")
    assert [title.split()[1] for title in shown(opened)] == ["item-7"]
    fold = opened.find_element(By.CSS_SELECTOR, ".forest button.fold")
    rows = opened.find_elements(By.CSS_SELECTOR, ".forest .slice")
    assert all(row.is_displayed() for row in rows)
    fold.click()
    assert fold.get_attribute("aria-expanded") == "false"
    assert not any(row.is_displayed() for row in rows)
    opened.find_element(By.ID, "training").location_once_scrolled_into_view  # noqa: B018
    until(opened, lambda: opened.find_elements(By.CSS_SELECTOR, ".plot .main-svg"))
    assert [line for line in opened.get_log("browser") if line["level"] == "SEVERE"] == []


def test_runs_are_compared_reply_by_reply(opened: webdriver.Chrome, comparison: Path) -> None:
    opened.get(comparison.as_uri())
    until(opened, lambda: len(shown(opened)) == 20)
    choose(opened, "show", "worse than before")
    # The first run is right from item 10 on, the next at even numbers.
    assert [int(title.split()[1].removeprefix("item-")) for title in shown(opened)] == list(range(11, ITEMS, 2))
    first = opened.find_element(By.CSS_SELECTOR, "#shown-replies .item .sides").text.split("\n")
    assert [line.rpartition(": ")[2] for line in first[::2]] == ["100 %", "0 %", "0 %"]
    assert "(before)" in first[0]
    choose(opened, "now", "every-3")
    assert len(shown(opened)) == sum(place % 3 > 0 for place in range(10, ITEMS))
    choose(opened, "show", "better than before")
    assert [title.split()[1] for title in shown(opened)] == ["item-0", "item-3", "item-6", "item-9"]
    assert [line for line in opened.get_log("browser") if line["level"] == "SEVERE"] == []


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_shows_a_runs_page_and_all_fields_have_names(opened: webdriver.Chrome, width: int) -> None:
    size = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    until(opened, lambda: shown(opened))
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    controls = opened.find_elements(By.CSS_SELECTOR, "button, input, select, nav")
    assert len(controls) > 6
    assert [
        each.get_attribute("outerHTML") for each in controls if not each.accessible_name and each.is_displayed()
    ] == []
    levels = [int(each.tag_name[1]) for each in opened.find_elements(By.CSS_SELECTOR, "h1, h2, h3")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
