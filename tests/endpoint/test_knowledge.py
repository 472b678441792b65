"""An endpoint with documents: passages in the prompt, as in training, and their names in the answer."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.base.load import load_tokenizer
from models.chat import encode_prompt
from models.chat.knowledge import Passage
from serve.api.routes import create_app
from serve.engines.torch import TorchEngine
from serve.knowledge.retrieval import Knowledge
from workflows.corpus.conversations import parse_conversation

pytest.importorskip("bm25s", reason="needs bm25s: run make install")

RETURNS, DOGS = Passage("rules.md", "Goods can be returned in 45 days."), Passage("rules.md", "Dogs are welcome.")
ASKED = {"role": "user", "content": "Can goods be returned?"}
SOURCES = [{"id": 1, "name": "rules.md", "text": RETURNS.text}]


@pytest.fixture(scope="module")
def folder(save_talker: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_talker(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def urls(folder: Path, serving: Callable[[Any], AbstractContextManager[str]]) -> Iterator[tuple[str, str]]:
    """An endpoint with documents, and one without."""
    engine, tokenizer = TorchEngine(folder, precision="fp32", max_active=2, num_threads=1), load_tokenizer(folder)
    knowledge = Knowledge([RETURNS, DOGS], most=2, min_share=0.25)
    with (
        serving(create_app(engine, tokenizer, "shop", knowledge=knowledge)) as knowing,
        serving(create_app(engine, tokenizer, "shop")) as plain,
    ):
        yield knowing, plain
    engine.close()


def ask(url: str, route: str = "chat/completions", **fields: Any) -> Any:
    body = {"model": "shop", "messages": [ASKED], "max_tokens": 3, "return_token_ids": True, **fields}
    given = {name: value for name, value in body.items() if value is not None}
    answer = httpx.post(f"{url}/v1/{route}", json=given, timeout=20)
    return answer if fields.get("stream") else answer.json()


def test_the_prompt_is_the_one_of_training(urls: tuple[str, str], folder: Path) -> None:
    kind = {"role": "system", "content": "Be kind."}
    for messages in ([ASKED], [kind, ASKED], [ASKED, {"role": "assistant", "content": "Yes."}, ASKED]):
        found = ask(urls[0], messages=messages)
        assert found["sources"] == SOURCES
        record = {
            "messages": [*messages, {"role": "assistant", "content": "Yes [1]."}],
            "facts": [{"name": RETURNS.name, "text": RETURNS.text}],
        }
        learned = parse_conversation(json.dumps(record).encode(), knowledge="facts").messages[:-1]
        assert found["prompt_token_ids"] == encode_prompt(load_tokenizer(folder), learned)


def test_without_passages(urls: tuple[str, str], folder: Path) -> None:
    knowing, plain = urls
    bare = encode_prompt(load_tokenizer(folder), [ASKED])
    for found in (ask(knowing, knowledge=False), ask(plain), ask(plain, knowledge=False)):
        assert (found["prompt_token_ids"], found["sources"]) == (bare, None)
    assert ask(knowing, messages=[{"role": "user", "content": "Xyzzy?"}])["sources"] is None
    error = ask(plain, knowledge=True)["error"]
    assert error["param"] == "knowledge"
    assert error["message"].startswith("knowledge: this endpoint has no documents (serve.knowledge)")


def test_the_question_before_the_last_counts(urls: tuple[str, str]) -> None:
    talk = [ASKED, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Are dogs welcome too?"}]
    assert [each["text"] for each in ask(urls[0], messages=talk)["sources"]] == [DOGS.text, RETURNS.text]


def test_a_stream_has_them_in_the_last_event_of_each_reply(urls: tuple[str, str]) -> None:
    lines = ask(urls[0], stream=True, n=2, return_token_ids=None).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    ends = [event for event in events if event["choices"][0]["finish_reason"]]
    assert [event["sources"] for event in ends] == [SOURCES, SOURCES]
    assert not any("sources" in event for event in events if event not in ends)
    assert "sources" not in ask(urls[1], stream=True, return_token_ids=None).text


def test_responses_have_them_too(urls: tuple[str, str]) -> None:
    knowing, plain = urls
    asked: Any = {"messages": None, "max_tokens": None, "return_token_ids": None, "input": ASKED["content"]}
    found = [ask(*each, **asked, **fields) for each, fields in (
        ((knowing, "responses"), {"max_output_tokens": 3}),
        ((knowing, "responses"), {"max_output_tokens": 3, "knowledge": False}),
        ((plain, "responses"), {"max_output_tokens": 3}),
    )]  # fmt: skip
    assert [each["sources"] for each in found] == [SOURCES, None, None]
    tokens = [each["usage"]["input_tokens"] for each in found]
    assert tokens[0] > tokens[1] == tokens[2]
    counted = ask(knowing, "responses/input_tokens", **asked)
    assert counted["input_tokens"] == tokens[0]
    assert ask(plain, "responses", **asked, knowledge=True)["error"]["param"] == "knowledge"
