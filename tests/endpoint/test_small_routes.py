"""Routes beyond OpenAI's API, and the errors for routes that do not exist."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.base.load import load_tokenizer
from serve.access.api_keys import KeyRing
from serve.api.routes import create_app
from serve.engines.base import GenerationRequest
from serve.engines.torch import TorchEngine

MODEL = "tiny/talker"


@pytest.fixture(scope="module")
def client(
    save_talker: Callable[..., Path],
    serving: Callable[[object], AbstractContextManager[str]],
    tool_templates: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[httpx.Client]:
    release = save_talker(tmp_path_factory.mktemp("release"), True, tool_templates["tags"], positions=200)
    engine = TorchEngine(release, precision="fp32", num_threads=1)
    with (
        serving(create_app(engine, load_tokenizer(release), MODEL, "3f2a")) as url,
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        yield client
    engine.close()


@pytest.mark.parametrize(
    "text", ["Hello, you", " two  spaces , and a full stop .", "é 🙂 終", "<|eot_id|> is a token", ""]
)
def test_tokens_are_their_text_again(client: httpx.Client, text: str) -> None:
    tokens = client.post("/tokenize", json={"prompt": text}).json()["tokens"]
    said = client.post("/detokenize", json={"model": MODEL, "tokens": tokens}).json()["prompt"]
    assert said.removeprefix("<|begin_of_text|>") == text


@pytest.mark.parametrize(("body", "param", "words"), [
    ({"tokens": [1, 10**6]}, "tokens", "got token id 1000000"),
    ({"tokens": [1] * 201}, "tokens", "got 201; the model reads at most 200"),
    ({"tokens": [-1]}, "tokens[0]", "got -1"),
    ({"tokens": "abc"}, "tokens", "got 'abc'"),
    ({}, "tokens", "Missing"),
    ({"tokens": [1], "model": "other"}, "model", "does not exist"),
])  # fmt: skip
def test_invalid_token_ids_are_reported(client: httpx.Client, body: object, param: str, words: str) -> None:
    answer = client.post("/detokenize", json=body)
    assert answer.status_code == (404 if param == "model" else 400)
    assert answer.json()["error"]["param"] == param
    assert words in answer.json()["error"]["message"]


def test_tools_are_counted_with_a_chat(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}]
    plain, with_tools = (
        client.post("/tokenize", json={"messages": messages, **more}).json() for more in ({}, {"tools": tools})
    )
    assert with_tools["count"] > plain["count"] + len('"clock"')
    body = {"model": MODEL, "messages": messages, "tools": tools, "max_tokens": 1}
    used = client.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]
    assert used == with_tools["count"]


def test_what_runs_and_whether_it_does(client: httpx.Client) -> None:
    assert client.get("/version").json() == {"version": version("rayconteur"), "release": "3f2a"}
    assert client.get("/ping").json() == client.get("/health").json()
    [model] = client.get("/v1/models").json()["data"]
    assert model["max_model_len"] == client.post("/tokenize", json={"prompt": ""}).json()["max_model_len"] == 200


def test_routes_that_lm_eval_calls_for_a_tokenizer(client: httpx.Client) -> None:
    told = client.get("/tokenizer_info").json()
    assert told["eos_token"] == "<|eot_id|>"
    assert told["bos_token"] == "<|begin_of_text|>"
    assert "<tool_call>" in told["chat_template"]
    assert told["model_max_length"] == 200
    assert client.get("/load").json() == {"server_load": 0}
    names = client.post("/tokenize", json={"prompt": "Hi", "return_token_strs": True}).json()
    assert (names["token_strs"], names["count"]) == (["H", "i"], 2)


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
    ("/v1/completions", {"prompt": "Hi"}),
])  # fmt: skip
def test_answers_name_their_release(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    ask = {"model": MODEL, "max_tokens": 2, **body}
    assert client.post(path, json=ask).json()["system_fingerprint"] == "3f2a"
    events = client.post(path, json={**ask, "stream": True}).text.split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
    assert chunks
    assert {chunk["system_fingerprint"] for chunk in chunks} == {"3f2a"}


def test_cached_prompt_tokens_are_reported(client: httpx.Client) -> None:
    ask = {"model": MODEL, "prompt": "x" * 100, "max_tokens": 4, "n": 2}
    several = client.post("/v1/completions", json=ask).json()["usage"]
    assert several["prompt_tokens_details"] == {"cached_tokens": 0}, "the first of both has read it"
    body = {"model": MODEL, "input": "x", "max_output_tokens": 1}
    used = client.post("/v1/responses", json=body).json()["usage"]
    assert used["input_tokens_details"] == {"cached_tokens": 0}


def test_a_cached_prompt_is_not_computed_again(tiny_llama: Path) -> None:
    engine = TorchEngine(tiny_llama, precision="fp32", num_threads=1)

    async def cached() -> int | None:
        request = GenerationRequest([1, 2, 3, 4], 50, temperature=0)
        first, *_ = [event.num_cached async for event in engine.submit(request)]
        return first

    async def both() -> list[int | None]:
        return await asyncio.gather(cached(), cached())

    try:
        assert asyncio.run(both()) == [0, 4]
    finally:
        engine.close()


@pytest.mark.parametrize(("method", "path"), [
    ("POST", "/v1/messages"), ("POST", "/v1/rerank"), ("POST", "/v1/moderations"), ("GET", "/server_info"),
    ("GET", "/v1/responses/resp_1"), ("DELETE", "/v1/responses/resp_1"), ("POST", "/v1/conversations"),
    ("POST", "/v1/audio/speech"), ("POST", "/v1/images/generations"),
])  # fmt: skip
def test_what_is_not_served_is_a_404_in_json(client: httpx.Client, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 404
    assert path in answer.json()["error"]["message"]


def test_a_failed_ping_is_open_to_anybody(
    tiny_llama: Path, serving: Callable[[object], AbstractContextManager[str]]
) -> None:
    engine = TorchEngine(tiny_llama, precision="fp32", num_threads=1)
    with serving(create_app(engine, load_tokenizer(tiny_llama), MODEL, keys=KeyRing(list))) as url:
        assert httpx.get(f"{url}/ping").status_code == 200
        assert httpx.get(f"{url}/version").status_code == 401
        assert httpx.post(f"{url}/v1/embeddings", json={"model": MODEL, "input": "a"}).status_code == 401
        engine.close()
        for _ in range(100):  # the health of the engine is checked periodically
            if httpx.get(f"{url}/ping").status_code == 503:
                return
            time.sleep(0.05)
        pytest.fail("a closed engine is said to be alive")
