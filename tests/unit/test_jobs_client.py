"""The jobs client behind proxies: websockets that do not get through, headers, certificates, login pages."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from aiohttp import web
from click.testing import CliRunner

from workflows.cli.commands import command
from workflows.cluster.errors import ClusterError
from workflows.jobs import client, log
from workflows.jobs.client import Jobs

FACTS = {"rayconteur": "1", "pipeline": "shop", "store": "s3://b/s", "to": "train", "settings": "0"}
LINES = ['{"event": "one"}', "two", "", '{"event": "four"}', "no newline"]


class Dashboard:
    """A Ray dashboard with one job, which is over once its log was asked for three times."""

    def __init__(self, websocket: str, header: str = "") -> None:
        self.websocket, self.header = websocket, header
        self.asked = 0
        self.handshakes = 0

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._checked])
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/jobs/", self._jobs)
        app.router.add_get("/api/jobs/j/logs", self._logs)
        app.router.add_get("/api/jobs/j/logs/tail", self._tail)
        return app

    @web.middleware
    async def _checked(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.header and request.headers.get("X-Pass") != self.header:
            return web.Response(status=403, text="not you")
        return await handler(request)  # type: ignore[no-any-return]

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": ray.__version__, "ray_commit": ""})

    async def _jobs(self, request: web.Request) -> web.Response:
        status = "SUCCEEDED" if self.asked >= 3 else "RUNNING"
        job = {"type": "SUBMISSION", "submission_id": "j", "status": status, "entrypoint": "x", "metadata": FACTS}
        return web.json_response([{**job, "start_time": 1000}])

    async def _logs(self, request: web.Request) -> web.Response:
        self.asked += 1
        return web.json_response({"logs": "\n".join(LINES[: 2 * self.asked])})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        self.handshakes += 1
        if self.websocket == "refused":
            return web.Response(status=400, text="no upgrade")
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if self.websocket == "silent":
            await asyncio.sleep(60)
        elif self.websocket == "cut":
            assert request.transport is not None
            request.transport.abort()
        else:
            self.asked = 3
            await socket.send_str("\n".join(LINES))
            await socket.close()
        return socket


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Dashboard, str]]]:
    """Serves dashboards; returns them with their addresses."""
    for name, value in (("_ASKED_EVERY_S", 0.3), ("_POLLED_EVERY_S", 0.05), ("_GONE_AFTER_S", 20.0)):
        monkeypatch.setattr(log, name, value)
    monkeypatch.setattr(client, "show_token", lambda: None)
    monkeypatch.delenv("RAY_JOB_HEADERS", raising=False)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    runners: list[web.AppRunner] = []

    async def start(dashboard: Dashboard) -> int:
        runner = web.AppRunner(dashboard.application(), shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return int(runner.addresses[0][1])

    def serve(websocket: str, header: str = "") -> tuple[Dashboard, str]:
        dashboard = Dashboard(websocket, header)
        port = asyncio.run_coroutine_threadsafe(start(dashboard), loop).result(10)
        return dashboard, f"http://127.0.0.1:{port}"

    yield serve
    for runner in runners:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    logging.disable(logging.NOTSET)  # the client silences warnings for its process


@pytest.mark.parametrize(("websocket", "handshakes"), [("works", 1), ("refused", 1), ("silent", 1), ("cut", 3)])
def test_a_job_is_followed_whatever_happens_to_websockets(
    served: Callable[..., tuple[Dashboard, str]], websocket: str, handshakes: int
) -> None:
    dashboard, address = served(websocket)
    assert list(Jobs(address).follow("j")) == LINES
    assert dashboard.handshakes == handshakes


def test_headers_reach_the_dashboard_and_its_websocket(
    served: Callable[..., tuple[Dashboard, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dashboard, address = served("works", header="let me in")
    with pytest.raises(ClusterError, match="give the header that it wants with --header 'NAME: VALUE' or RAY_JOB"):
        Jobs(address)
    options = ["logs", "shop", "-f", "--address", address]
    done = CliRunner().invoke(command, [*options, "--header", "x-pass:let me in"])
    assert (done.exit_code, done.output.splitlines()) == (0, LINES)
    monkeypatch.setenv("RAY_JOB_HEADERS", '{"X-Pass": "let me in"}')
    done = CliRunner().invoke(command, options)
    assert (done.exit_code, done.output.splitlines()) == (0, LINES)
    assert dashboard.handshakes == 2


@pytest.mark.parametrize(("variable", "options", "words"), [
    ("{", [], 'RAY_JOB_HEADERS must be a JSON object of strings, such as {"Authorization": "..."}'),
    ('["secret"]', [], "RAY_JOB_HEADERS must be"),
    ('{"X-Pass": 1}', [], "RAY_JOB_HEADERS must be"),
    ("", ["--header", "secret"], "--header must be 'NAME: VALUE'"),
    ("", ["--header", ": secret"], "--header must be 'NAME: VALUE'"),
    ("", ["--ca-bundle", "nowhere.pem"], "nowhere.pem"),
])  # fmt: skip
def test_wrong_headers_are_refused_without_their_values(
    monkeypatch: pytest.MonkeyPatch, variable: str, options: list[str], words: str
) -> None:
    monkeypatch.setenv("RAY_JOB_HEADERS", variable)
    done = CliRunner().invoke(command, ["jobs", *options])
    assert done.exit_code == 2
    assert words in done.output
    assert "secret" not in done.output


@pytest.mark.parametrize(("answer", "words"), [
    ({"text": "<html>Log in</html>"}, "is not a Ray dashboard (.*); .*login page, give the header that it wants"),
    ({"text": "{}"}, r"is not a Ray dashboard \('ray_version'\)"),
    ({"status": 401}, "refuses this user's token; .*; if a proxy before the cluster refuses, give the header"),
    ({"status": 502}, "answers with an error: 502 Server Error"),
])  # fmt: skip
def test_answers_of_a_proxy_are_told_apart(
    served: Callable[..., tuple[Dashboard, str]], monkeypatch: pytest.MonkeyPatch, answer: Any, words: str
) -> None:
    async def version(self: Dashboard, request: web.Request) -> web.Response:
        return web.Response(**answer)

    monkeypatch.setattr(Dashboard, "_version", version)
    _, address = served("works")
    with pytest.raises(ClusterError, match=words):
        Jobs(address)


def test_a_certificate_that_is_not_trusted_is_named(
    served: Callable[..., tuple[Dashboard, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from requests.exceptions import SSLError

    def refuse(*_: Any, **__: Any) -> None:
        raise SSLError("certificate verify failed: self-signed certificate")

    monkeypatch.setattr("requests.request", refuse)
    with pytest.raises(ClusterError, match=r"certificate of https://x is not trusted \(.*self-signed.*--ca-bundle"):
        Jobs("https://x")


def test_websockets_that_break_after_lines_are_opened_again(
    served: Callable[..., tuple[Dashboard, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a laptop has slept: the lines that were shown are not shown again."""

    async def tail(self: Dashboard, request: web.Request) -> web.StreamResponse:
        self.handshakes += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str("\n".join(LINES[: self.handshakes + 1]) + "\n" * (self.handshakes < 4))
        if self.handshakes < 4:
            await asyncio.sleep(0.1)
            assert request.transport is not None
            request.transport.abort()
        else:
            self.asked = 3
            await socket.close()
        return socket

    monkeypatch.setattr(Dashboard, "_tail", tail)
    dashboard, address = served("works")
    assert list(Jobs(address).follow("j")) == LINES
    assert dashboard.handshakes == 4
