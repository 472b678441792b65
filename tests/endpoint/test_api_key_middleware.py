"""An endpoint that requires API keys, called with OpenAI's own client: valid keys, rate limits."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from models.base.load import load_tokenizer
from serve.access.api_keys import ApiKey, KeyRing, make_key
from serve.access.rate_limits import Limits
from serve.api.routes import create_app
from serve.engines.torch import TorchEngine
from serve.protocol.errors import duration

HELLO = [{"role": "user", "content": "Hello"}]
ASK: dict[str, Any] = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 10}


@dataclass
class Endpoint:
    """A served app, its engine, the valid keys, and the stopped clock of their rate limits."""

    url: str
    engine: TorchEngine
    keys: list[ApiKey]
    ring: KeyRing
    clock: Callable[[], float] = lambda: 0.0
    said: str = ""
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=20))

    def key(self, **limits: int) -> str:
        """Create a key; returns its secret."""
        secret, key = make_key(f"key{len(self.keys)}", **limits)
        self.keys.append(key)
        wait_until(lambda: self.ring.find(secret.encode()) is not None)
        return secret

    def client(self, secret: str, max_retries: int = 0) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=secret, max_retries=max_retries, timeout=20)

    def post(self, secret: str, path: str = "/v1/chat/completions", **change: Any) -> httpx.Response:
        fields = {"model"} if path == "/tokenize" else ASK.keys() - ({"messages"} if "prompt" in change else set())
        headers = {"Authorization": f"Bearer {secret}"}
        body = {name: ASK[name] for name in fields} | change
        return self.http.post(self.url + path, json=body, headers=headers)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "20 s are over"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def endpoint(serving: Callable[[Any], AbstractContextManager[str]], tiny_llama: Path) -> Iterator[Endpoint]:
    keys: list[ApiKey] = []
    ring = KeyRing(lambda: list(keys), reload_s=0.01)
    engine = TorchEngine(tiny_llama, precision="fp32", max_active=4, num_threads=1)
    endpoint = Endpoint("", engine, keys, ring)
    limits = Limits(clock=lambda: endpoint.clock())
    app = create_app(engine, load_tokenizer(tiny_llama), "tiny", keys=ring, limits=limits)
    with serving(app) as endpoint.url:
        endpoint.said = endpoint.post(endpoint.key()).json()["choices"][0]["message"]["content"]
        yield endpoint
    endpoint.http.close()
    engine.close()
    ring.close()


def headers_of(response: httpx.Response, kind: str) -> tuple[str | None, ...]:
    return tuple(response.headers.get(f"x-ratelimit-{name}-{kind}") for name in ("limit", "remaining", "reset"))


def test_openais_client_needs_a_key_and_gets_the_reason_without_one(endpoint: Endpoint) -> None:
    with endpoint.client(endpoint.key()) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.chat.completions.create(**ASK).usage.completion_tokens == 10
        assert len(list(client.chat.completions.create(**ASK, stream=True))) > 1
    wrong, _ = make_key("wrong")
    with endpoint.client(wrong) as client, pytest.raises(openai.AuthenticationError) as raised:
        client.chat.completions.create(**ASK)
    error = raised.value
    assert (error.code, error.type) == ("invalid_api_key", "invalid_request_error")
    assert 'error="invalid_token"' in error.response.headers["www-authenticate"]
    assert wrong[3:] not in error.response.text
    nothing = endpoint.http.post(f"{endpoint.url}/v1/chat/completions", json=ASK)
    assert nothing.status_code == 401
    assert nothing.headers["www-authenticate"] == 'Bearer realm="rayconteur"'
    assert "Authorization: Bearer rk-" in nothing.json()["error"]["message"]
    assert nothing.headers["x-request-id"]


@pytest.mark.parametrize(("path", "status"), [
    ("/", 200), ("/health", 200),
    ("/metrics", 401), ("/v1/models", 401), ("/v1/models/tiny", 401), ("/v1/chat/completions", 401),
    ("/v1/completions", 401), ("/tokenize", 401), ("/nothing", 401), ("//v1/models", 401), ("/v1/../v1/models", 401),
    ("/health/", 401), ("/V1/models", 401), ("/%76%31/models", 401),
])  # fmt: skip
def test_what_is_open_and_what_is_not(endpoint: Endpoint, path: str, status: int) -> None:
    assert endpoint.http.get(endpoint.url + path).status_code == status
    headers = {"Authorization": f"Bearer {endpoint.key()}"}
    assert endpoint.http.get(endpoint.url + path, headers=headers).status_code != 401


@pytest.mark.parametrize("form", [
    "", "{}", "Bearer", "Basic {}", "Bearer {}x", "Bearer x{}", "Bearer,{}", "Bearer \xff\xfe", "Bearer {} {}",
])  # fmt: skip
def test_an_invalid_key_is_refused(endpoint: Endpoint, form: str) -> None:
    value = form.replace("{}", endpoint.key()).encode("latin-1")
    assert endpoint.http.get(f"{endpoint.url}/v1/models", headers={b"Authorization": value}).status_code == 401


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER  {}"])
def test_schemes_have_no_case(endpoint: Endpoint, form: str) -> None:
    headers = {"Authorization": form.format(endpoint.key())}
    assert endpoint.http.get(f"{endpoint.url}/v1/models", headers=headers).status_code == 200


def test_a_revoked_key_is_invalid(endpoint: Endpoint) -> None:
    secret = endpoint.key()
    assert endpoint.post(secret).status_code == 200
    endpoint.keys.pop()
    wait_until(lambda: endpoint.post(secret).status_code == 401)


def test_requests_a_minute(endpoint: Endpoint) -> None:
    secret = endpoint.key(requests_per_minute=3)
    first = endpoint.post(secret)
    assert headers_of(first, "requests") == ("3", "2", "20s")
    assert headers_of(first, "tokens") == (None, None, None)
    assert endpoint.post(secret, temperature=9).status_code == 400, "what is refused counts too"
    assert endpoint.post(secret, "/tokenize", prompt="a").status_code == 200
    with endpoint.client(secret) as client:
        with pytest.raises(openai.RateLimitError) as raised:
            client.chat.completions.create(**ASK)
        assert client.models.list().data, "looking costs nothing"
    error, response = raised.value, raised.value.response
    assert (error.code, error.type) == ("rate_limit_exceeded", "requests")
    assert "3 requests a minute: 0 are left, and this request needs 1. Retry in 20s." in error.message
    assert response.headers["retry-after"] == "20"
    assert headers_of(response, "requests") == ("3", "0", "1m0s")
    assert endpoint.post(endpoint.key(requests_per_minute=1)).status_code == 200, "another key is not touched"


def test_openais_client_obeys_retry_after(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "clock", time.monotonic)
    secret = endpoint.key(requests_per_minute=40)
    wait_until(lambda: endpoint.post(secret, temperature=9).status_code == 429)
    began = time.monotonic()
    with endpoint.client(secret, max_retries=1) as client:
        assert client.chat.completions.create(**ASK).choices
    assert time.monotonic() - began > 1, "a request in 1.5 s"


def test_tokens_a_minute_are_what_was_used(endpoint: Endpoint) -> None:
    secret, left = endpoint.key(tokens_per_minute=500), 500
    usage = endpoint.post(secret).json()["usage"]
    left -= usage["total_tokens"]
    prompt = usage["prompt_tokens"]

    def spend(may_come_to: int, path: str = "/v1/chat/completions", **change: Any) -> int:
        """The tokens that a request uses. Until it ends, the maximum that it may use is reserved."""
        nonlocal left
        answer = endpoint.post(secret, path, **change)
        assert headers_of(answer, "tokens")[:2] == ("500", str(left - may_come_to))
        used: int = answer.json()["usage"]["total_tokens"] if answer.is_success else 0
        left -= used
        return used

    assert spend(prompt + 100, max_tokens=100, stop=endpoint.said[1]) < prompt + 100
    assert spend(prompt + 3 * 10, n=3) == prompt + 3 * 10, "a prompt counts once"
    texts = endpoint.post(endpoint.key(), "/v1/completions", prompt=["a", "bb"]).json()["usage"]["prompt_tokens"]
    assert spend(texts + 2 * 2 * 5, "/v1/completions", prompt=["a", "bb"], n=2, max_tokens=5) == texts + 2 * 2 * 5
    assert headers_of(endpoint.post(secret, "/tokenize", prompt="a"), "tokens") == (None, None, None)
    assert spend(0, max_tokens=450) == 0, "what is refused costs nothing"
    assert spend(left, max_tokens=left - prompt) > 0


def test_a_replys_maximum_is_reserved_while_it_is_generated(endpoint: Endpoint) -> None:
    secret = endpoint.key(tokens_per_minute=2000)
    url, headers = f"{endpoint.url}/v1/chat/completions", {"Authorization": f"Bearer {secret}"}
    with endpoint.http.stream(
        "POST", url, headers=headers, json={**ASK, "max_tokens": 400, "n": 4, "stream": True}
    ) as stream:
        assert stream.status_code == 200
        refused = endpoint.post(secret, max_tokens=400)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "tokens")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
    wait_until(lambda: endpoint.engine.health().num_active == 0)
    wait_until(lambda: endpoint.post(secret, max_tokens=400).status_code == 200)


def test_a_request_that_can_never_pass_is_not_tried_again(endpoint: Endpoint) -> None:
    secret = endpoint.key(tokens_per_minute=50, requests_per_minute=10)
    with endpoint.client(secret, max_retries=5) as client, pytest.raises(openai.RateLimitError) as raised:
        client.chat.completions.create(**{**ASK, "max_tokens": 60})
    assert "this request alone may use" in raised.value.message
    assert "retry-after" not in raised.value.response.headers
    assert headers_of(raised.value.response, "requests")[:2] == ("10", "9")
    assert headers_of(raised.value.response, "tokens")[1] == "50"


def test_the_log_names_the_key_but_not_its_secret(endpoint: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    secret = endpoint.key(requests_per_minute=1)
    name = endpoint.keys[-1].name
    assert [endpoint.post(secret).status_code for _ in range(2)] == [200, 429]
    assert endpoint.post("rk-wrong").status_code == 401
    lines = [json.loads(record.message) for record in caplog.records if record.name == "rayconteur.requests"]
    assert [(line["status"], line.get("key")) for line in lines] == [(200, name), (429, name), (401, None)]
    assert secret not in caplog.text
    assert "rk-wrong" not in caplog.text
    assert endpoint.keys[-1].sha256 not in caplog.text
    metrics = endpoint.http.get(f"{endpoint.url}/metrics", headers={"Authorization": f"Bearer {endpoint.key()}"}).text
    assert name not in metrics
    assert 'status="401"' in metrics


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/health", "/"])
def test_pages_of_other_sites_are_let_in_nowhere(endpoint: Endpoint, path: str) -> None:
    origin = {"Origin": "https://elsewhere.example"}
    preflight = endpoint.http.options(
        endpoint.url + path,
        headers={
            **origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        },
    )
    assert preflight.status_code in (401, 405)
    answer = endpoint.http.get(endpoint.url + path, headers={**origin, "Authorization": f"Bearer {endpoint.key()}"})
    for response in (preflight, answer):
        assert not [name for name in response.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(("seconds", "text"), [
    (0.0, "0ms"), (0.0001, "1ms"), (0.25, "250ms"), (1, "1s"), (1.5, "1.5s"), (59.999, "1m0s"), (360, "6m0s"),
])  # fmt: skip
def test_spans_have_openais_form(seconds: float, text: str) -> None:
    assert duration(seconds) == text
