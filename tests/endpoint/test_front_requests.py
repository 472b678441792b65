"""Well-formed and malformed requests to the front, with a stand-in replica behind it."""

import asyncio
import gzip
import json
import logging
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest
import uvloop
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from serve.access.api_keys import KeyRing, make_key
from serve.front import bodies, exchange
from serve.front.cors import Origins
from serve.front.server import Endpoint, Front, Lease
from serve.protocol.errors import LOST, ApiError

PATH = "/v1/chat/completions"


def stand_in() -> FastAPI:
    """A stand-in replica that echoes the request; the body tells it to wait, fail or stream."""
    app = FastAPI()
    app.state.seen = []
    app.state.left = threading.Event()
    app.state.num_lost = 0

    @app.post(PATH)
    @app.post("/v1/responses")
    async def echo(request: Request) -> Response:
        body = await request.body()
        app.state.seen.append((dict(request.headers), len(body)))
        asked = json.loads(body) if body.startswith(b"{") else {}
        if app.state.num_lost:
            await asyncio.sleep(asked.get("wait", 0))
            app.state.num_lost -= 1
            return Response(status_code=503, headers={LOST: "in"})
        waiting = asyncio.create_task(asyncio.sleep(asked.get("wait", 0)))
        while not waiting.done():
            if await request.is_disconnected():
                app.state.left.set()
                waiting.cancel()
            await asyncio.wait({waiting}, timeout=0.02)
        if "status" in asked:
            return JSONResponse({"error": {"message": "no"}}, asked["status"])
        if asked.get("stream"):
            return StreamingResponse(events(asked.get("events", 3)), media_type="text/event-stream")
        return JSONResponse({"bytes": len(body)})

    async def events(count: int) -> AsyncGenerator[bytes, None]:
        for number in range(count):
            yield b'data: {"number": %d}\n\n' % number
        yield b"data: [DONE]\n\n"

    @app.get("/{path:path}")
    async def anything(path: str) -> Response:
        return JSONResponse({"path": path}) if path != "metrics" else Response("# nothing\n")

    return app


class Before:
    """A front for the stand-in replica, in its own event loop."""

    def __init__(self, address: str, app: FastAPI) -> None:
        self.replica = app.state
        self.num_leased = 0
        self.lease_takes = 0.0
        self.refusal: ApiError | None = None
        self._address = address
        self.keys: list[Any] = []
        self.loop = uvloop.new_event_loop()  # as on a cluster
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.front = Front(self.lease, 20, Origins(["https://shop.example"]))
        self.do(self.front.listen("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.front.port}"

    def do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    @asynccontextmanager
    async def lease(self, seconds: float) -> AsyncIterator[Lease]:
        self.num_leased += 1
        await asyncio.sleep(self.lease_takes)
        if self.refusal is not None:
            raise self.refusal
        yield Lease(self._address, "0" * 32)

    def raw(self, data: bytes, half_close: bool = False) -> bytes:
        """Everything received on a new connection until the front closes it."""
        with socket.create_connection(("127.0.0.1", self.front.port), timeout=20) as connection:
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := connection.recv(1 << 16):
                answer += piece
        return answer

    def head(self, *headers: str, length: int = 2) -> bytes:
        lines = [f"POST {PATH} HTTP/1.1", "Host: a", "Connection: close", f"Content-Length: {length}", *headers]
        return "\r\n".join(lines).encode() + b"\r\n\r\n"

    def post(self, body: Any = None, **options: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        return httpx.post(self.url + PATH, content=content, timeout=20, **options)


@pytest.fixture
def before(serving: Callable[[Any], AbstractContextManager[str]]) -> Iterator[Before]:
    app = stand_in()
    with serving(app) as url:
        made = Before(url.removeprefix("http://"), app)
        yield made
        made.do(made.front.close())
        made.loop.call_soon_threadsafe(made.loop.stop)


def parts_of(answer: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of a raw response."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in lines}
    return int(first.split()[1]), headers, json.loads(body)


JSON = b'{"messages": []}'


def packed(data: bytes) -> bytes:
    """As gzip, without the time: tests that run in several processes need the same names in each."""
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(("encoding", "body", "status"), [
    ("gzip", packed(JSON), 200),
    ("X-Gzip", packed(JSON), 200),
    ("deflate", zlib.compress(JSON), 200),
    ("deflate", zlib.compress(JSON, wbits=-15), 200),
    ("identity", JSON, 200),
    ("gzip", JSON, 400),
    ("deflate", JSON, 400),
    ("gzip", packed(JSON)[:-9], 400),
    ("gzip", packed(JSON) * 2, 400),
    ("br", JSON, 415),
    ("zstd", JSON, 415),
    ("nonsense", JSON, 415),
    ("gzip, gzip", packed(packed(JSON)), 415),
    ("gzip", packed(b" " * (60 << 20)), 413),
    ("", b" " * ((4 << 20) + 1), 413),
])  # fmt: skip
def test_bodies_are_bounded_by_their_decompressed_size(
    before: Before, encoding: str, body: bytes, status: int
) -> None:
    response = before.post(body, headers={"Content-Encoding": encoding} if encoding else {})
    assert response.status_code == status
    if status == 200:
        assert response.json() == {"bytes": len(JSON)}
        assert "content-encoding" not in before.replica.seen[0][0]
    else:
        assert response.json()["error"]["type"] == "invalid_request_error"
        assert not before.num_leased
    assert before.front._bodies.held == 0


@pytest.mark.parametrize(("data", "status", "words"), [
    (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "first line"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * 20_000 + b"\r\n\r\n", 431, "8192 bytes"),
    (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431, "128 headers"),
    (b"what is this?\r\n\r\n", 400, "not a valid HTTP/1.1 request"),
    (b"GET / HTTP/1.1\r\n\r\n", 400, "Host"),
    (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 400, "target"),
    (b"POST /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "chunk"),
    (b"POST /v1/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: magic\r\n\r\n", 417, "Expect"),
])  # fmt: skip
def test_an_invalid_request_is_refused_in_json(
    before: Before, data: bytes, status: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "rayconteur.requests"):
        found, headers, body = parts_of(before.raw(data))
    assert found == status
    assert words in body["error"]["message"]
    assert headers["x-request-id"].startswith("req-")
    [line] = [json.loads(record.message) for record in caplog.records if record.name == "rayconteur.requests"]
    assert (line["id"], line["status"], line["by"]) == (headers["x-request-id"], status, "front")
    metrics = httpx.get(f"{before.url}/metrics").text
    assert f'rayconteur_front_refused_total{{status="{status}"}} 1.0' in metrics


def test_an_address_as_target_is_served_by_its_path(before: Before) -> None:
    httpx.post(before.url + PATH, json={})  # so that the front knows a replica
    answer = before.raw(b"GET http://other.example/v1/models?a=b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert parts_of(answer)[::2] == (200, {"path": "v1/models"})


def test_a_body_declared_too_large_is_not_read(before: Before) -> None:
    with socket.create_connection(("127.0.0.1", before.front.port), timeout=5) as connection:
        connection.sendall(before.head("Expect: 100-continue", length=64 << 20))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
    assert before.raw(before.head("Expect: 100-continue") + b"{}").startswith(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200"
    )


def test_keys_are_asked_for_before_bodies(before: Before) -> None:
    secret, key = make_key("alice")
    keys = [key]
    before.front.keys = KeyRing(lambda: list(keys), reload_s=0.01)
    post = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n"
    for wrong in (b"", b"Authorization: Bearer rk-wrong\r\n", b"Authorization: Basic abc\r\n"):
        with socket.create_connection(("127.0.0.1", before.front.port), timeout=5) as connection:
            connection.sendall(post + wrong + b"\r\n")  # but not the body
            status, headers, body = parts_of(connection.recv(1 << 16))
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")
        assert headers["www-authenticate"].startswith("Bearer ")
    assert before.num_leased == 0
    assert before.post(headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    assert httpx.get(f"{before.url}/health").status_code == 200
    assert httpx.head(f"{before.url}/v1/models").status_code == 401
    assert httpx.options(f"{before.url}/v1/models").status_code == 204
    keys.clear()
    end = time.monotonic() + 10
    while before.post(headers={"Authorization": f"Bearer {secret}"}).status_code != 401:
        assert time.monotonic() < end


def test_all_bodies_together_are_bounded(before: Before) -> None:
    before.front._bodies = bodies.Budget(3 << 20)
    large = {"wait": 1.5, "text": "a" * (2 << 20)}
    asking = threading.Thread(target=before.post, args=(large,))
    asking.start()
    end = time.monotonic() + 10
    while before.front._bodies.held < 2 << 20:
        assert time.monotonic() < end
        time.sleep(0.01)
    refused = before.post(large)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["error"]["code"] == "overloaded"
    assert before.post({}).status_code == 200, "a small one has room"
    asking.join()
    assert before.front._bodies.held == 0
    assert before.post(large).status_code == 200


def test_many_large_bodies_without_a_key_are_never_held(before: Before) -> None:
    before.front.keys = KeyRing(list, reload_s=60)
    held: list[int] = []
    before.front._bodies.take = lambda num_bytes: held.append(num_bytes)  # type: ignore[method-assign]
    threads = [threading.Thread(target=before.post, args=(b"a" * (8 << 20),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held == []
    assert 'refused_total{status="401"} 8.0' in before.front._metrics.text({}).decode()


def test_a_missing_body_is_not_waited_for(before: Before, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_BODY_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", before.front.port), timeout=5) as connection:
        connection.sendall(before.head(length=9) + b"{")
        assert parts_of(connection.recv(1 << 16))[0] == 408


@pytest.mark.parametrize(("given", "is_kept"), [
    ("mine", True), ("a" * 128, True), ("a" * 129, False), ("with space", False), ("ä", False), ("", False),
])  # fmt: skip
def test_the_clients_request_id_is_echoed_and_passed_on(before: Before, given: str, is_kept: bool) -> None:
    response = before.post(headers=[(b"x-request-id", given.encode())])
    [(headers, _)] = before.replica.seen
    assert response.headers.get_list("x-request-id") == [headers["x-request-id"]]
    assert (headers["x-request-id"] == given) == is_kept
    assert is_kept or headers["x-request-id"].startswith("req-")
    refused = before.post(b"{}", headers=[(b"x-request-id", given.encode()), (b"content-encoding", b"br")])
    assert (refused.headers["x-request-id"] == given) == is_kept


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/metrics"])
def test_head_is_answered_without_a_lease(before: Before, path: str) -> None:
    before.front.serve(Endpoint("tiny", "3f2a"))
    for _ in range(2):
        response = httpx.head(before.url + path)
        assert (response.status_code, response.content) == (200, b"")
        assert before.num_leased == 0
        before.front._replicas[before._address] = None  # from now on, the front knows one
    assert httpx.head(f"{before.url}/health").headers["content-length"] == str(len('{"path":"health"}'))


def test_only_pages_of_known_origins_may_ask(before: Before) -> None:
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-stainless-os",
    }
    known, other = ({"Origin": f"https://{name}.example"} for name in ("shop", "other"))
    answer = httpx.options(before.url + PATH, headers={**known, **asked})
    assert (answer.status_code, before.num_leased) == (204, 0)
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    assert answer.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    refused = httpx.options(before.url + PATH, headers={**other, **asked})
    assert not [name for name in refused.headers if name.startswith("access-control-")]
    for response in (before.post(headers=known), before.post(b"", headers={**known, "Content-Encoding": "br"})):
        assert response.headers["access-control-allow-origin"] == "https://shop.example"
        assert "x-request-id" in response.headers["access-control-expose-headers"]
        assert response.headers["vary"] == "Origin"
    assert "access-control-allow-origin" not in before.post(headers=other).headers
    assert Origins(["*"]).headers("https://any.example")["Access-Control-Allow-Origin"] == "*"
    assert Origins().headers("https://any.example") == {}


@pytest.mark.parametrize("body", [b"{}", b'{"wait": 0.3}', b'{"stream": true}', b'{"stream": true, "wait": 0.3}'])
def test_a_half_closed_connection_gets_its_answer(before: Before, body: bytes) -> None:
    answer = before.raw(before.head(length=len(body)) + body, half_close=True)
    assert b"HTTP/1.1 200 OK\r\n" in answer
    assert answer.endswith((b"}", b"0\r\n\r\n"))
    early = answer.partition(b"HTTP/1.1 200")[0]
    assert early in (b"", b"HTTP/1.1 100 Continue\r\n\r\n")


def test_a_disconnected_client_is_distinguished_from_a_waiting_one(before: Before) -> None:
    body = b'{"wait": 15}'
    with socket.create_connection(("127.0.0.1", before.front.port), timeout=5) as connection:
        connection.sendall(before.head(length=len(body)) + body)
        while not before.replica.seen:
            time.sleep(0.01)
    assert before.replica.left.wait(5)


def test_a_waiting_stream_begins_at_once(before: Before, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "EARLY_SECONDS", 0.1)
    monkeypatch.setattr(exchange, "COMMENT_SECONDS", 0.1)
    before.lease_takes = 0.25
    with httpx.stream("POST", before.url + PATH, json={"stream": True, "wait": 0.3}, timeout=20) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["cache-control"] == "no-cache"
        assert before.replica.seen == [], "it waits for its replica still"
        text = response.read().decode()
    comments, _, rest = text.partition("data: ")
    assert comments.count(": keep-alive\n\n") >= 2
    assert comments.replace(": keep-alive\n\n", "") == ""
    assert rest.endswith('{"number": 2}\n\ndata: [DONE]\n\n')


def test_a_request_without_stream_has_a_status_however_late(before: Before, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "EARLY_SECONDS", 0.05)
    for late in ({}, {"stream": False}, {"tools": [{"stream": True}]}, {"text": '"stream": true'}):
        assert before.post({"wait": 0.2, "status": 400, **late}).status_code == 400


def test_failures_have_a_status_first_and_are_events_later(before: Before, monkeypatch: pytest.MonkeyPatch) -> None:
    assert before.post({"stream": True, "status": 400}).status_code == 400
    monkeypatch.setattr(exchange, "EARLY_SECONDS", 0.05)
    late = before.post({"stream": True, "wait": 0.2, "status": 400})
    assert late.status_code == 200
    assert late.text.partition("data: ")[2] == '{"error":{"message":"no"}}\n\ndata: [DONE]\n\n'
    before.lease_takes, before.refusal = 0.2, ApiError(429, "busy", code="queue_full")
    late = before.post({"stream": True})
    error, done = [line for line in late.text.splitlines() if line.startswith("data: ")]
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "queue_full"
    assert done == "data: [DONE]"


def test_a_late_failure_of_typed_events_has_a_type(before: Before, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "EARLY_SECONDS", 0.05)
    answers = []
    body = {"stream": True, "wait": 0.2, "status": 400}
    answers.append(httpx.post(f"{before.url}/v1/responses", json=body, timeout=20))
    before.lease_takes, before.refusal = 0.2, ApiError(429, "busy", "input", code="queue_full")
    answers.append(httpx.post(f"{before.url}/v1/responses", json=body, timeout=20))
    for answer in answers:
        name, data = [line for line in answer.text.splitlines() if line and line[0] != ":"]
        assert name == "event: error"
        told = json.loads(data.removeprefix("data: "))
        assert told.keys() == {"type", "sequence_number", "code", "message", "param"}
        assert (told["type"], told["sequence_number"]) == ("error", 0)
    assert (told["code"], told["message"], told["param"]) == ("queue_full", "busy", "input")


def test_a_request_whose_replica_sent_only_comments_is_retried(
    before: Before, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "EARLY_SECONDS", 0.05)
    before.replica.num_lost = 1
    response = before.post({"stream": True, "wait": 0.2})
    assert response.text.startswith(": keep-alive\n\n")
    assert response.text.endswith('data: {"number": 2}\n\ndata: [DONE]\n\n')
    assert len(before.replica.seen) == 2


def test_a_slow_reader_holds_its_stream_up_and_loses_nothing(before: Before, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_MAX_UNSENT_BYTES", 1 << 12)
    monkeypatch.setattr(exchange, "_FEW_UNSENT_BYTES", 1 << 10)
    with httpx.stream("POST", before.url + PATH, json={"stream": True, "events": 200_000}, timeout=20) as response:
        time.sleep(0.5)
        lines = [line for line in response.iter_lines() if line]
    assert lines == [*(f'data: {{"number": {number}}}' for number in range(200_000)), "data: [DONE]"]


def test_request_log_lines_are_written_without_a_handler() -> None:
    code = "from serve.log import logger, write_log; write_log(); write_log(); logger.info('a line')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "a line\n"
