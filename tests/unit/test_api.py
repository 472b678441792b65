"""The endpoint over a real engine and server, asked with OpenAI's own client."""

import json
import string
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from models.base import load_tokenizer
from serve.api import create_app
from serve.engines.torch import TorchEngine

MODEL = "tiny/talker"
END_TOKEN = 257
HELLO = [{"role": "user", "content": "Hello"}]


def save_talker(model: Any, tokenizer: Any, folder: Path, ends: bool) -> None:
    """A release that says ASCII letters, a token each, and ends its replies or never."""
    letters = tokenizer.convert_tokens_to_ids(list(string.ascii_letters))
    said = torch.zeros(len(tokenizer), 1)
    said[[*letters, END_TOKEN] if ends else letters] = 1
    model.lm_head.weight.data *= said
    model.config.max_position_embeddings = 30_000
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Endpoint:
    """A served app, its engine, and OpenAI's client of it."""

    engine: TorchEngine
    url: str
    client: openai.OpenAI

    def post(self, body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=20)


@pytest.fixture(scope="module")
def open_endpoint(
    make_loud: Callable[[Path], Any],
    serving: Callable[[Any], AbstractContextManager[str]],
    tiny_llama: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[bool], AbstractContextManager[Endpoint]]:
    @contextmanager
    def opened(ends: bool) -> Iterator[Endpoint]:
        release = tmp_path_factory.mktemp("release")
        save_talker(make_loud(tiny_llama), load_tokenizer(tiny_llama), release, ends)
        engine = TorchEngine(release, precision="fp32", max_active=2, num_threads=1)
        app = create_app(engine, load_tokenizer(release), MODEL, "3f2a", default_max_tokens=16)
        with (
            serving(app) as url,
            openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=20) as client,
        ):
            yield Endpoint(engine, url, client)
        engine.close()

    return opened


@pytest.fixture(scope="module")
def endpoint(open_endpoint: Callable[[bool], AbstractContextManager[Endpoint]]) -> Iterator[Endpoint]:
    with open_endpoint(False) as endpoint:
        yield endpoint


def chat(endpoint: Endpoint, **params: Any) -> Any:
    return endpoint.client.chat.completions.create(**{"model": MODEL, "messages": HELLO, **params})


def streamed_text(chunks: Iterable[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_a_reply_with_its_usage(endpoint: Endpoint) -> None:
    completion = chat(endpoint, max_tokens=20)
    choice = completion.choices[0]
    assert completion.model == MODEL
    assert choice.message.role == "assistant"
    assert choice.message.content.isalpha()
    assert choice.finish_reason == "length"
    assert len(choice.message.content) == completion.usage.completion_tokens == 20
    # <|begin_of_text|>, the headers of both roles with two newlines each, "Hello", <|eot_id|>
    assert completion.usage.prompt_tokens == 1 + (4 + 4) + 5 + 1 + (9 + 4)
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 20
    assert chat(endpoint).usage.completion_tokens == 16, "the default limit"


def test_a_stream_is_the_same_reply_in_pieces(endpoint: Endpoint) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hé"}, {"type": "text", "text": "you"}]},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Go on"},
    ]
    params = {"messages": messages, "temperature": 0, "max_completion_tokens": 30}
    whole = chat(endpoint, **params)
    chunks = list(chat(endpoint, **params, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert streamed_text(chunks[:-1]) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * 31 + ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chat(endpoint, **params, stream=True))


def test_a_seed_repeats_a_reply(endpoint: Endpoint) -> None:
    def text(seed: int) -> str:
        return str(chat(endpoint, seed=seed, temperature=2, top_p=0.9).choices[0].message.content)

    assert text(1) == text(1) != text(2)


def test_a_stop_string_ends_the_reply_before_it(endpoint: Endpoint) -> None:
    text = chat(endpoint, temperature=0).choices[0].message.content
    stopped = chat(endpoint, temperature=0, stop=["?", text[5:8]])
    assert stopped.choices[0].message.content == text[: text.index(text[5:8])]
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage.completion_tokens == text.index(text[5:8]) + 3
    stream = chat(endpoint, temperature=0, stop=text[5:8], stream=True)
    assert streamed_text(stream) == text[: text.index(text[5:8])]


def test_an_end_token_ends_the_reply_and_is_counted(
    open_endpoint: Callable[[bool], AbstractContextManager[Endpoint]],
) -> None:
    with open_endpoint(True) as endpoint:
        replies = [chat(endpoint, temperature=1, seed=seed, max_tokens=300) for seed in range(5)]
    ended = [reply for reply in replies if reply.choices[0].finish_reason == "stop"]
    assert ended
    for reply in ended:
        assert reply.choices[0].message.content.isalpha()
        assert reply.usage.completion_tokens == len(reply.choices[0].message.content) + 1


def test_models_health_and_page(endpoint: Endpoint) -> None:
    assert [model.id for model in endpoint.client.models.list()] == [MODEL]
    assert endpoint.client.models.retrieve(MODEL).owned_by == "rayconteur"
    with pytest.raises(openai.NotFoundError) as caught:
        endpoint.client.models.retrieve("other")
    assert caught.value.code == "model_not_found"
    health = httpx.get(f"{endpoint.url}/health")
    assert health.json() == {"status": "ok", "model": MODEL, "release": "3f2a"}
    page = httpx.get(endpoint.url)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<script src" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


BAD_REQUESTS: list[tuple[dict[str, Any], int, str, str]] = [
    ({"tools": []}, 400, "tools", "Unrecognized or unsupported request argument: tools"),
    ({"max_token": 5}, 400, "max_token", "Did you mean max_tokens?"),
    ({"messages": []}, 400, "messages", "at least 1 item"),
    ({"messages": "Hello"}, 400, "messages", "got 'Hello'"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role", "got 'tool'"),
    ({"messages": [{"role": "user"}]}, 400, "messages[0].content", "Missing required parameter"),
    ({"messages": [{"role": "user", "content": " "}]}, 400, "messages[0].content", "no text"),
    ({"messages": [{"role": "user", "content": None}]}, 400, "messages[0].content", "a string or a list"),
    ({"messages": [{"role": "user", "content": []}]}, 400, "messages[0].content", "at least 1 item"),
    ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, 400, "messages[0].name", "argument"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]},
        400,
        "messages[0].content[0].type",
        "got 'image_url'",
    ),
    ({"messages": [*HELLO, *HELLO]}, 400, "messages[1].role", "take turns"),
    ({"messages": [*HELLO, {"role": "system", "content": "x"}]}, 400, "messages[1].role", "only the first"),
    ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, 400, "messages[1].role", "last message"),
    ({"model": "other"}, 404, "model", "does not exist"),
    ({"temperature": 2.5}, 400, "temperature", "less than or equal to 2; got 2.5"),
    ({"temperature": "1"}, 400, "temperature", "valid number"),
    ({"top_p": -1}, 400, "top_p", "greater than or equal to 0"),
    ({"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 1, "max_completion_tokens": 1}, 400, "max_completion_tokens", "not both"),
    ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop", "at most 4 items"),
    ({"stop": ["a", ""]}, 400, "stop[1]", "at least 1 character"),
    ({"stop": 5}, 400, "stop", "a string or a list"),
    ({"seed": 2**63}, 400, "seed", "less than or equal to"),
    ({"n": 2}, 400, "n", "got 2"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", "stream true"),
    ({"messages": [{"role": "user", "content": "x" * 40_000}]}, 400, "messages", "30000 tokens"),
    ({"max_tokens": 30_000}, 400, "max_tokens", "max_tokens asks for 30000"),
    ({"max_completion_tokens": 10**30}, 400, "max_completion_tokens", "30000 tokens"),
]


@pytest.mark.parametrize(("change", "status", "param", "words"), BAD_REQUESTS)
def test_a_bad_request_is_refused_with_its_field(
    endpoint: Endpoint, change: dict[str, Any], status: int, param: str, words: str
) -> None:
    response = endpoint.post({"model": MODEL, "messages": HELLO, **change})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    is_too_long = "maximum context length" in error["message"]
    assert error["code"] == (
        "context_length_exceeded" if is_too_long else "model_not_found" if status == 404 else None
    )


def test_openais_client_raises_its_own_errors(endpoint: Endpoint) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(endpoint, tools=[])
    assert (caught.value.status_code, caught.value.param) == (400, "tools")
    with pytest.raises(openai.NotFoundError):
        chat(endpoint, model="other")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"hi"', b"\xff\xfe", b'{"a": "\\ud800"}', b"[" * 100_000, b'{"temperature": NaN}'],
)
def test_a_body_that_is_no_request_is_refused(endpoint: Endpoint, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{endpoint.url}/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_other_refusals_have_the_same_shape(endpoint: Endpoint) -> None:
    url = f"{endpoint.url}/v1/chat/completions"
    body = json.dumps({"model": MODEL, "messages": HELLO})
    responses = {
        415: httpx.post(url, content=body, headers={"Content-Type": "text/plain"}),
        413: endpoint.post({"model": MODEL, "messages": [{"role": "user", "content": "x" * (5 << 20)}]}),
        404: httpx.get(f"{endpoint.url}/v1/nothing"),
        405: httpx.get(url),
    }
    for status, response in responses.items():
        assert response.status_code == status
        assert response.json()["error"]["type"] == "invalid_request_error"
    assert responses[405].headers["allow"] == "POST"


def test_more_requests_than_slots_are_all_answered(endpoint: Endpoint) -> None:
    with ThreadPoolExecutor(6) as threads:
        completions = list(threads.map(lambda _: chat(endpoint, temperature=0), range(6)))
    assert len({completion.choices[0].message.content for completion in completions}) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(endpoint: Endpoint, stream: bool) -> None:
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 29_000, "stream": stream}
    url = f"{endpoint.url}/v1/chat/completions"
    if stream:
        with httpx.stream("POST", url, json=body) as response:
            lines = response.iter_lines()
            events = [line for _ in range(12) if (line := next(lines)).startswith("data: ")]
            assert len(events) >= 4, "tokens are on their way"
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=body, timeout=0.3)
    wait_for_active(endpoint, 0)


def wait_for_active(endpoint: Endpoint, num_active: int) -> None:
    """29 000 tokens take the engine far longer than this waits, also on a machine with other work."""
    until = time.monotonic() + 20
    while endpoint.engine.health().num_active != num_active:
        assert time.monotonic() < until, f"{endpoint.engine.health()} after 20 s"
        time.sleep(0.01)
