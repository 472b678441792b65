"""The page of a running search: its content, its bounded work, and who may read it."""

import gzip
import http.client
import json
import math
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest

from models.training.report import Report
from workflows.runs.page import live
from workflows.runs.page.live import ROWS, LivePage
from workflows.runs.page.live_server import live_page
from workflows.search.records import Search, Trial

SPACE = {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}, "train.adapter.method": ["lora", "rslora"]}


def search_of(count: int, metrics: tuple[str, ...] = ("held_out_loss",)) -> Search:
    search = Search("shop<b>", "key", [*metrics], SPACE, "tpe", "asha", count, at_once=2)
    for number in range(count):
        values = {"train.learning_rate": 1e-5 * (number + 1), "train.adapter.method": "lora"}
        trial = Trial(number, f"key{number}", values, "running" if number >= count - 2 else "finished")
        for step in (10, 20):
            figures = {"held_out_loss": 3.0 + number / count - step / 100, "num_tokens": 100.0 * step, "seconds": 1.0}
            trial.reports.append(Report(step, 20, figures, None))
        search.trials.append(trial)
    return search


class Rows(HTMLParser):
    """The words of each row of a page's table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._is_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        self._is_cell = tag in ("td", "th")
        if self._is_cell:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._is_cell = False

    def handle_data(self, data: str) -> None:
        if self._is_cell:
            self.rows[-1][-1] += data


def rows(text: str) -> list[list[str]]:
    return Rows(text).rows


def figures(text: str) -> list[dict[str, object]]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.S)
    assert found
    return list(json.loads(found[1]))


def test_the_page_shows_what_the_terminals_table_shows_and_tokens() -> None:
    search = search_of(6)
    search.trials[1].state, search.trials[1].is_stopped_by_hand = "stopped", True
    search.trials[2].added = "added by hand"
    text = LivePage(search).whole(0)
    head, *table = rows(text)
    assert head == ["trial", "learning rate", "method", "state", "step", "held out loss", "best", "tokens", ""]
    assert [row[0] for row in table] == ["4", "5", "0", "1", "2", "3"], "running, then the best"
    assert table[2] == ["0", "1e-05", "lora", "finished", "20/20", "2.8", "2.8", "2,000", "leads"]
    assert (table[3][-1], table[4][-1]) == ("stopped by hand", "added by hand")
    assert "12,000 tokens read by all trials" in text
    assert "no winner yet: trial 0 leads" in text
    assert "6 of 6 trials, 2 running" in text
    assert "shop&lt;b&gt;" in text
    titles = [figure["layout"]["title"]["text"] for figure in figures(text)]  # type: ignore[index]
    assert titles == ["held out loss over steps", "importance for held out loss (rough: 6 trials)"]


def test_values_and_errors_are_text() -> None:
    search = search_of(2)
    search.trials[0].values["train.adapter.method"] = "</script><script>alert(1)</script>"
    search.trials[0].error = "<img src=x>"
    text = LivePage(search).whole(0)
    assert "<script>alert" not in text
    assert "<img" not in text
    assert len(figures(text)) == 1


def test_a_search_that_has_just_begun_has_a_page() -> None:
    search = search_of(0)
    text = LivePage(search).whole(0)
    assert "No trial has begun yet." in text
    assert figures(text) == []


def test_many_trials_are_shown_by_two_hundred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_MAX_SHARE", math.inf)  # the test waits for nothing
    count = 5 * ROWS
    page = LivePage(search_of(count))
    first = page.whole(0)
    assert len(rows(first)) == 1 + ROWS
    assert [row[0] for row in rows(first)[1:4]] == [f"{count - 2}", f"{count - 1}", "0"]
    assert f'href="?from={ROWS}" rel="next"' in first
    last = page.part(count - ROWS // 2)
    assert [row[0] for row in rows(last)[1:]] == [f"{n}" for n in range(count - ROWS // 2 - 2, count - 2)]
    assert 'rel="next"' not in last
    assert "There is no trial from this place on." in page.part(2 * count)


def test_the_plots_do_not_grow_with_the_trials() -> None:
    """They have the curves of the running and the best trials, and no importance where that takes long."""
    search = search_of(live._MAX_TRIALS_OF_IMPORTANCE + 1)
    [curves] = json.loads(live._plots(search))
    assert len(curves["data"]) <= live._MAX_CURVES + 2
    assert curves["layout"]["title"]["text"] == "held out loss over steps: running and best trials"


def test_long_curves_are_thinned_and_keep_their_best_and_last_points() -> None:
    search = search_of(1)
    losses = [3.0] * 5000
    losses[1234] = 1.0
    search.trials[0].reports = [Report(n + 1, 5000, {"held_out_loss": loss}, None) for n, loss in enumerate(losses)]
    [plot] = figures(LivePage(search).part(0))
    curve = plot["data"][0]  # type: ignore[index]
    assert len(curve["x"]) <= live._MAX_POINTS + 2
    assert (min(curve["y"]), curve["x"][-1]) == (1.0, 5000)


def test_many_readers_cost_one_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = LivePage._made
    monkeypatch.setattr(LivePage, "_made", lambda page, start: made.append(start) or original(page, start))
    monkeypatch.setattr(live, "_SECONDS_OF_PART", 3600.0)
    page = LivePage(search_of(50))
    with ThreadPoolExecutor(8) as readers:
        texts = [*readers.map(lambda _: page.part(0), range(100))]
    assert len({*texts}) == 1
    assert made == [0]


def test_further_pages_wait_for_their_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [0.0], list[float]()
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(
        live.time, "sleep", lambda seconds: (slept.append(seconds), now.__setitem__(0, now[0] + seconds))
    )

    def made(page: LivePage, start: int) -> str:
        now[0] += 2.0  # each takes two seconds
        return f"{start}"

    monkeypatch.setattr(LivePage, "_made", made)
    page = LivePage(search_of(1))
    for start in range(0, 10 * ROWS, ROWS):
        assert page.part(start) == f"{start}"
    assert now[0] >= 9 * 2.0 / live._MAX_SHARE
    assert page.part(9 * ROWS) == f"{9 * ROWS}"
    assert len(slept) == 10, "what was made a moment ago is not made again"


@pytest.fixture
def address() -> Iterator[str]:
    with live_page(search_of(5)) as found:
        yield found


Ask = Callable[..., tuple[http.client.HTTPResponse, bytes]]


@pytest.fixture
def get(address: str) -> Ask:
    def ask(path: str = "/", method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()

    return ask


def test_the_page_and_its_files_are_served(get: Ask) -> None:
    answer, body = get()
    assert (answer.status, answer.getheader("Content-Type")) == (200, "text/html; charset=utf-8")
    assert len(rows(body.decode())) == 6
    assert not re.search(r'(?:src|href)="(?:https?:)?//', body.decode()), "nothing comes from elsewhere"
    for name in re.findall(r'(?:src|href)="([\w.]+\.(?:js|css))"', body.decode()):
        answer, body = get(f"/{name}")
        assert answer.status == 200
        assert len(body) > 500
    packed = get("/part", **{"Accept-Encoding": "gzip"})
    assert packed[0].getheader("Content-Encoding") == "gzip"
    assert len(rows(gzip.decompress(packed[1]).decode())) == 6


@pytest.mark.parametrize("query", ["from=-3", "from=x", "from=9999999999999999999999", "from=", "from=%C2%B2", "%00"])
def test_other_queries_get_the_first_trials(get: Ask, query: str) -> None:
    answer, body = get(f"/part?{query}")
    assert answer.status == 200
    assert len(rows(body.decode())) == 6


@pytest.mark.parametrize(("host", "status"), [
    ("evil.example", 403), ("evil.example:80", 403), ("127.0.0.1.evil.example:8080", 403), ("", 403),
    ("localhost:9000", 200), ("127.0.0.1:1", 200), ("[::1]:5", 200), ("localhost", 200),
])  # fmt: skip
def test_only_names_of_this_machine_are_answered(get: Ask, host: str, status: int) -> None:
    assert get(Host=host)[0].status == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"])
def test_the_page_only_reads(get: Ask, method: str) -> None:
    answer, _ = get("/", method)
    assert answer.status == 501
    assert answer.getheader("Access-Control-Allow-Origin") is None


@pytest.mark.parametrize("path", ["/run.html.j2", "/../live.py", "/page.css/..", "/%2e%2e/html.py", "/live.py"])
def test_other_files_are_not_served(get: Ask, path: str) -> None:
    assert get(path)[0].status == 404


def test_the_page_ends_with_the_search() -> None:
    with live_page(search_of(1)) as address:
        pass
    with pytest.raises(ConnectionError):
        http.client.HTTPConnection(urlsplit(address).netloc, timeout=5).request("GET", "/")


def test_a_page_that_cannot_be_made_is_an_error_of_its_reader(get: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.runs.page.live.running_then_best", lambda *_: {}["planted"])
    answer, body = get("/part?from=1")
    assert (answer.status, body) == (500, b"The page cannot be made: KeyError: 'planted'\n")


def test_without_a_free_port_the_search_runs_without_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no sockets here")

    monkeypatch.setattr("workflows.runs.page.live_server._Server", refuse)
    with live_page(search_of(1)) as address:
        assert address == ""
