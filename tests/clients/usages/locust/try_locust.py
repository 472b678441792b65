"""Locust as a library: users that chat and stream, without its web page."""

import json
from typing import Any

# Imported first, because it replaces sockets and threads by gevent's.
import locust  # isort: skip
import gevent
from locust.contrib.fasthttp import FastHttpUser
from locust.env import Environment
from trial import Endpoint, run_all, usage

HELLO = [{"role": "user", "content": "Hello"}]


def run(kind: Any, endpoint: Endpoint, num_users: int, seconds: float) -> Any:
    """The statistics of users of this kind."""
    kind.host, kind.wait_time = endpoint.root, locust.constant(0.1)
    environment = Environment(user_classes=[kind])
    runner = environment.create_local_runner()
    runner.start(num_users, spawn_rate=num_users)
    gevent.sleep(seconds)
    runner.stop()
    total = environment.stats.total
    errors = [str(error.error) for error in environment.stats.errors.values()]
    assert total.num_requests, "no request was answered"
    assert not errors, errors
    return total


def body(endpoint: Endpoint, **fields: Any) -> dict[str, Any]:
    return {"model": endpoint.model, "messages": HELLO, "max_tokens": 3, **fields}


@usage("HttpUser: chats, the answer looked at")
def _(endpoint: Endpoint) -> None:
    class Talker(locust.HttpUser):
        @locust.task
        def talk(self) -> None:
            with self.client.post("/v1/chat/completions", json=body(endpoint), catch_response=True) as answer:
                if not answer.ok or not answer.json()["choices"]:
                    answer.failure(answer.text)

    run(Talker, endpoint, 3, 8)


@usage("HttpUser: streams, the first event timed")
def _(endpoint: Endpoint) -> None:
    class Listener(locust.HttpUser):
        @locust.task
        def listen(self) -> None:
            asked = body(endpoint, stream=True)
            with self.client.post("/v1/chat/completions", json=asked, stream=True, catch_response=True) as answer:
                events = [line for line in answer.iter_lines() if line.startswith(b"data: ")]
                if not events or events[-1] != b"data: [DONE]":
                    answer.failure("not to its end")

    run(Listener, endpoint, 3, 8)


@usage("FastHttpUser: completions")
def _(endpoint: Endpoint) -> None:
    class Writer(FastHttpUser):
        @locust.task
        def write(self) -> None:
            self.client.post("/v1/completions", json={"model": endpoint.model, "prompt": "Once", "max_tokens": 3})

    run(Writer, endpoint, 3, 8)


@usage("FastHttpUser: rest() with the fields of an error")
def _(endpoint: Endpoint) -> None:
    class Wrong(FastHttpUser):
        @locust.task
        def ask(self) -> None:
            with self.rest("POST", "/v1/chat/completions", json=body(endpoint, temperature=9)) as answer:
                if answer.js["error"]["param"] == "temperature":
                    answer.success()

    run(Wrong, endpoint, 2, 3)


@usage("models and health, 20 users")
def _(endpoint: Endpoint) -> None:
    class Looker(FastHttpUser):
        @locust.task
        def look(self) -> None:
            self.client.get("/v1/models")
            self.client.get("/health")

    run(Looker, endpoint, 20, 4)


@usage("users that leave in the middle of a stream")
def _(endpoint: Endpoint) -> None:
    class Leaver(locust.HttpUser):
        @locust.task
        def leave(self) -> None:
            asked = body(endpoint, stream=True, max_tokens=200)
            with self.client.post("/v1/chat/completions", json=asked, stream=True, catch_response=True) as answer:
                first = next(line for line in answer.iter_lines() if line.startswith(b"data: "))
                assert json.loads(first[6:])["choices"]
                answer.success()

    run(Leaver, endpoint, 3, 6)


run_all()
