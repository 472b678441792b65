"""Streams of a replica without a front: when headers are sent, and the comments while there are no events."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from serve.api import streams
from serve.protocol import errors
from serve.protocol.errors import ApiError


def slow(seconds: float, failure: ApiError | None = None) -> FastAPI:
    """An app that streams two events, or fails, after this many seconds."""
    app = FastAPI()
    errors.install(app)
    app.state.ended = []

    @app.post("/")
    async def stream(request: Request) -> Response:
        await request.body()
        answer = await streams.stream_of(request, events())
        if answer is None:
            return Response(status_code=499)
        answer.at_end = lambda: app.state.ended.append("answer")
        return answer

    async def events() -> AsyncGenerator[str, None]:
        try:
            await asyncio.sleep(seconds)
            if failure is not None:
                raise failure
            yield "data: one\n\n"
            yield "data: [DONE]\n\n"
        finally:
            app.state.ended.append("events")

    return app


Serving = Callable[[Any], AbstractContextManager[str]]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "EARLY_SECONDS", 0.1)
    monkeypatch.setattr(streams, "COMMENT_SECONDS", 0.1)


def test_a_waiting_stream_begins_with_comments(serving: Serving) -> None:
    app = slow(0.5)
    with serving(app) as url:
        response = httpx.post(url)
    comments, data, rest = response.text.partition("data: ")
    assert comments.count(": keep-alive\n\n") >= 2
    assert data + rest == "data: one\n\ndata: [DONE]\n\n"
    assert response.headers["x-accel-buffering"] == "no"
    assert app.state.ended == ["events", "answer"]


def test_a_stream_that_does_not_wait_has_no_comments(serving: Serving) -> None:
    with serving(slow(0)) as url:
        assert httpx.post(url).text == "data: one\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize(("seconds", "headers", "status"), [
    (0.0, {}, 429), (0.3, {}, 200), (0.3, {"rayconteur-lease": "x"}, 429),
])  # fmt: skip
def test_a_failure_has_a_status_until_headers_are_sent(
    serving: Serving, seconds: float, headers: dict[str, str], status: int
) -> None:
    app = slow(seconds, ApiError(429, "busy", code="queue_full"))
    with serving(app) as url:
        response = httpx.post(url, headers=headers)
    assert response.status_code == status
    assert '"code":"queue_full"' in response.text
    assert response.text.endswith("data: [DONE]\n\n") == (status == 200)
    assert app.state.ended[0] == "events"


def test_a_failure_of_typed_events_has_a_type_and_a_number() -> None:
    body = ApiError(500, "gone\n", code="replica_lost").body()
    name, data, *rest = streams.failure(body, "/v1/responses", 7).splitlines()
    assert (name, rest) == ("event: error", [""])
    assert json.loads(data.removeprefix("data: ")) == {
        "type": "error", "sequence_number": 7, "code": "replica_lost", "message": "gone\n", "param": None,
    }  # fmt: skip


@pytest.mark.parametrize("read", [0.05, 0.3])
def test_a_client_that_leaves_ends_the_events(serving: Serving, read: float) -> None:
    streams.COMMENT_SECONDS = 30  # otherwise the client reads comments and does not time out
    app = slow(30)
    with serving(app) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, timeout=httpx.Timeout(5, read=read))
        asyncio.run(_until(lambda: "events" in app.state.ended))


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_so():
            await asyncio.sleep(0.02)
