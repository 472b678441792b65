"""API keys and rate limits on an endpoint with two replicas."""

import time

import httpx
import pytest

from serve.deployment.application import build
from serve.front.server import Endpoint
from workflows.cli.run import ask_once
from workflows.endpoint.api_keys import KeyFile
from workflows.endpoint.status import own_key
from workflows.progress import Progress
from workflows.spec import PipelineSpec
from workflows.store import Store

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
PIPELINE = PipelineSpec.model_validate(
    {"name": "tiny", "base_model": "x", "data": {"sources": [{"path": "x"}]}, "serve": {"keys": "required"}}
)


@pytest.fixture
def file(tmp_path):
    return KeyFile(Store(str(tmp_path / "store")))


@pytest.fixture
def url(cluster, tiny_llama, file, free_port):
    from ray import serve as ray_serve

    from serve.deployment.front_actor import FrontSettings, close_fronts, run_endpoint
    from serve.deployment.settings import EngineSettings, Scaling, ServedRelease

    app = build(
        ServedRelease(str(tiny_llama), "abc", "tiny"),
        EngineSettings(precision="fp32"),
        Scaling(min_replicas=2, max_replicas=2),
        read_keys=file.read,
    )
    port = free_port()
    settings = FrontSettings(origins=("https://shop.example",), read_keys=file.read)
    run_endpoint(app, "keys", "127.0.0.1", port, 60.0, Endpoint("tiny", "abc"), settings)
    yield f"http://127.0.0.1:{port}"
    ray_serve.shutdown()
    close_fronts()


def ask(url, secret):
    with httpx.Client() as client:  # a new connection, so that either replica may get it
        headers = {"Authorization": f"Bearer {secret}", "Origin": "https://elsewhere.example"}
        return client.post(f"{url}/v1/chat/completions", json=ASK, headers=headers)


def answers_of_both(url, secret, status):
    """Seconds until 30 requests in a row get this status."""
    began, in_a_row = time.monotonic(), 0
    while in_a_row < 30:
        in_a_row = in_a_row + 1 if ask(url, secret).status_code == status else 0
        assert time.monotonic() - began < 30
    return time.monotonic() - began


def test_two_replicas_share_keys_and_rate_limits(url, file, capsys):
    assert httpx.get(f"{url}/health").status_code == 200
    assert httpx.get(f"{url}/").status_code == 200
    assert ask(url, "rk-nobody's").status_code == 401
    free, _ = file.add("free")
    few, _ = file.add("few", requests_per_minute=10)
    answers_of_both(url, free, 200)
    began = time.monotonic()
    answers = [ask(url, few) for _ in range(30)]
    by_time = (time.monotonic() - began) / 6
    passed = [answer.status_code for answer in answers].count(200)
    assert 10 <= passed <= 10 + by_time + 1
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert 1 <= int(refused.headers["retry-after"]) <= 6
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control-")]
    with own_key(PIPELINE, file._store) as own, Progress() as progress:
        ask_once(url, "tiny", own, progress)
    assert "asked over HTTP: " in capsys.readouterr().out
    assert [key.name for key in file.read()] == ["free", "few"]
    file.revoke("free")
    answers_of_both(url, free, 401)
