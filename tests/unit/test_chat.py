"""The renderer: which tokens are supervised, for every kind of template; and the endpoint renders with it too."""

import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from models.base.load import load_tokenizer, resolve
from models.chat import ChatTemplateError, check_messages, encode_conversation, encode_prompt, end_token_ids
from serve.api.routes import create_app
from serve.engines.base import Engine, EngineHealth, GenerationRequest, TokenEvent
from workflows.corpus.conversations import parse_conversation

TALK = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello! What is it?"},
    {"role": "user", "content": "A question"},
    {"role": "assistant", "content": "Ask\nit. é€👍"},
    {"role": "user", "content": "No."},
    {"role": "assistant", "content": "Bye"},
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Dialect:
    """A tokenizer, and an independent implementation of how its template writes a conversation."""

    tokenizer: Any
    begin: str
    head: str
    reply: str
    other: str
    tail: str
    ends: tuple[str, ...]

    def by_hand(self, messages: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
        """Token ids and mask, tokenised piece by piece: replies are supervised, the text around them is not."""
        ids: list[int] = []
        mask: list[bool] = []
        pieces = [(self.begin, False)]
        for message in messages:
            is_reply = message["role"] == "assistant"
            body = (self.reply if is_reply else self.other).format(message["content"])
            pieces += [
                (self.head.format(role=message["role"], Role=message["role"].capitalize()), False),
                (body, is_reply),
                (self.tail, False),
            ]
        for text, learned in pieces:
            piece = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += piece
            mask += [learned] * len(piece)
        return ids, mask

    def learned(self, messages: list[dict[str, str]]) -> str:
        encoded = encode_conversation(self.tokenizer, messages)
        pairs = zip(encoded.input_ids, encoded.supervised, strict=True)
        return str(self.tokenizer.decode([token for token, supervised in pairs if supervised]))


def chatml(folder: Path) -> Any:
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(params=["llama", "chatml", "gpt2"])
def dialect(request: pytest.FixtureRequest, tiny_llama: Path, tiny_gpt2: Path) -> Dialect:
    if request.param == "llama":
        head, body = "<|start_header_id|>{role}<|end_header_id|>\n\n", "{}<|eot_id|>"
        return Dialect(load_tokenizer(tiny_llama), "<|begin_of_text|>", head, body, body, "", ("<|eot_id|>",))
    if request.param == "chatml":
        body = "{}<|im_end|>"
        return Dialect(chatml(tiny_gpt2), "", "<|im_start|>{role}\n", body, body, "\n", ("<|im_end|>",))
    return Dialect(load_tokenizer(tiny_gpt2), "", "{Role}:", " {}<|endoftext|>", " {}", "\n", ("<|endoftext|>",))


def test_exactly_the_assistant_turns_with_their_end_tokens_are_supervised(dialect: Dialect) -> None:
    encoded = encode_conversation(dialect.tokenizer, TALK)
    assert (encoded.input_ids, encoded.supervised) == dialect.by_hand(TALK)


def test_a_prompt_is_the_beginning_of_its_conversation(dialect: Dialect) -> None:
    whole = encode_conversation(dialect.tokenizer, TALK)
    for turns in (1, 3, 5):
        prompt = encode_prompt(dialect.tokenizer, TALK[:turns])
        assert whole.input_ids[: len(prompt)] == prompt
        assert whole.supervised[len(prompt)]


def test_a_system_message_is_never_supervised(dialect: Dialect) -> None:
    talk = [{"role": "system", "content": "Be kind."}, *TALK]
    encoded = encode_conversation(dialect.tokenizer, talk)
    assert (encoded.input_ids, encoded.supervised) == dialect.by_hand(talk)
    assert dialect.learned(talk) == dialect.learned(TALK)


@pytest.mark.parametrize("talk", [TALK[1:], [{"role": "system", "content": "Be kind."}, *TALK[1:]]])
def test_the_assistant_may_speak_first(dialect: Dialect, talk: list[dict[str, str]]) -> None:
    assert encode_conversation(dialect.tokenizer, talk).input_ids == dialect.by_hand(talk)[0]
    assert dialect.learned(talk).strip() == dialect.learned(TALK).strip()


@pytest.mark.parametrize("word", ["A", "s", "assistant", "end"])
def test_the_first_word_is_not_looked_for_in_the_template(dialect: Dialect, word: str) -> None:
    learned = dialect.learned([{"role": "assistant", "content": word}, *TALK[:1]])
    assert learned.strip() == word + dialect.ends[0]


def test_the_tokens_that_end_a_reply(dialect: Dialect) -> None:
    ends = {*dialect.tokenizer.convert_tokens_to_ids(list(dialect.ends))}
    assert end_token_ids(dialect.tokenizer) == ends | {*dialect.tokenizer.end_ids_of_model}


def test_a_template_may_end_a_reply_with_another_token_than_eos(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.eos_token = "<|begin_of_text|>"
    assert end_token_ids(tokenizer) == {*tokenizer.convert_tokens_to_ids(["<|begin_of_text|>", "<|eot_id|>"])}


def test_the_builtin_model() -> None:
    tokenizer = load_tokenizer(resolve("builtin:smollm2-135m-instruct"))
    ends = ("<|im_end|>",)
    dialect = Dialect(tokenizer, "", "<|im_start|>{role}\n", "{}<|im_end|>", "{}<|im_end|>", "\n", ends)
    talk = [{"role": "system", "content": "Be kind."}, *TALK]
    encoded = encode_conversation(tokenizer, talk)
    assert (encoded.input_ids, encoded.supervised) == dialect.by_hand(talk)
    assert end_token_ids(tokenizer) == {*tokenizer.convert_tokens_to_ids(list(ends))}


def test_white_space_before_a_reply_belongs_to_it() -> None:
    tokenizer = load_tokenizer(resolve("builtin:smollm2-135m-instruct"))
    talk = [*TALK[:1], {"role": "assistant", "content": "  indented"}]
    prompt, whole = encode_prompt(tokenizer, talk[:1]), encode_conversation(tokenizer, talk)
    assert whole.input_ids[: len(prompt)] == prompt
    assert whole.supervised == [False] * len(prompt) + [True] * (len(whole.input_ids) - len(prompt) - 1) + [False]


@pytest.mark.parametrize(("template", "words"), [
    (CHATML.replace("assistant\n{% endif", "bot\n{% endif"), "opens a reply with .*bot.* in a prompt"),
    ("{{ raise_exception('only one turn') }}", "refuses these messages: only one turn"),
    ("{{ messages[9]['content'] + 1 }}", "refuses these messages"),
])  # fmt: skip
def test_a_template_that_opens_a_reply_in_another_way_is_refused(tiny_gpt2: Path, template: str, words: str) -> None:
    tokenizer = chatml(tiny_gpt2)
    tokenizer.chat_template = template
    with pytest.raises(ChatTemplateError, match=words):
        encode_conversation(tokenizer, TALK)


@pytest.mark.parametrize(("messages", "words"), [
    ([], "not a non-empty list"),
    ("hi", "not a non-empty list"),
    ([{"content": "x"}], "message 0 has no role"),
    (["x"], "message 0 has no role"),
    ([{"role": "robot", "content": "x"}], "message 0 has the unknown role 'robot'; known are system, "),
    ([{"role": "user", "content": " \n"}], r"message 0 \(user\) has no text"),
    ([{"role": "user", "content": None}], r"message 0 \(user\) has no text"),
    ([{"role": "user"}], r"message 0 \(user\) has no text"),
    ([*TALK[:1], *TALK[:1]], "messages 0 and 1 both have the `role` 'user'"),
    ([*TALK[:1], {"role": "system", "content": "y"}], "message 1 is a system message; only the first"),
])  # fmt: skip
def test_an_invalid_conversation_has_its_reason(messages: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_messages(messages)


@pytest.mark.parametrize("messages", [TALK, TALK[:1], TALK[1:], [{"role": "system", "content": "x"}, *TALK[1:3]]])
def test_what_is_a_conversation_passes(messages: list[dict[str, str]]) -> None:
    check_messages(messages)


class Listener(Engine):
    """An engine that records its prompts and generates nothing."""

    max_positions, vocab_size, max_active = 10_000, 100_000, 1

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []

    async def submit(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        self.prompts.append(request.prompt_ids)
        yield TokenEvent(min(request.end_token_ids), "stop")

    def cancel(self, request_id: str) -> None: ...

    def health(self) -> EngineHealth:
        return EngineHealth(True, 0, 0)

    def close(self) -> None: ...


@pytest.fixture
def tokenizer_of(tiny_llama: Path, tiny_gpt2: Path, tool_templates: dict[str, str]) -> Callable[[str], Any]:
    """Tokenizers by the name of their chat template."""

    def made(name: str) -> Any:
        if name == "chatml":
            return chatml(tiny_gpt2)
        tokenizer = load_tokenizer(resolve(name) if ":" in name else tiny_gpt2 if name == "default" else tiny_llama)
        tokenizer.chat_template = tool_templates.get(name, tokenizer.chat_template)
        return tokenizer

    return made


TEMPLATES = ["llama", "default", "chatml", "builtin:smollm2-135m-instruct", "tags", "bare", "listed"]
ODD = [
    {"role": "user", "content": "  Zeilen\n\nmit é€👍\t<|im_end|> \n"},
    {"role": "assistant", "content": "\n  {{ not a template }}  "},
    {"role": "user", "content": "Assistant: who is it?"},
    {"role": "assistant", "content": "User: I"},
]


@pytest.mark.parametrize("talk", [TALK, [{"role": "system", "content": " Be kind. "}, *TALK], TALK[1:], ODD])
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_endpoint_prompts_with_the_tokens_that_training_put_before_each_reply(
    tokenizer_of: Callable[[str], Any], template: str, talk: list[dict[str, str]]
) -> None:
    tokenizer, engine = tokenizer_of(template), Listener()
    client = TestClient(create_app(engine, tokenizer, "m"))
    # As `workflows.stages.prepare` converts a line to a row of the corpus.
    learned = encode_conversation(tokenizer, parse_conversation(json.dumps({"messages": talk}).encode()).messages)
    is_learned = learned.supervised
    starts = [place for place, now in enumerate(is_learned) if now and not (place and is_learned[place - 1])]
    replies = [place for place, message in enumerate(talk) if message["role"] == "assistant"]
    assert len(starts) == len(replies) > 0
    for start, reply in zip(starts, replies, strict=True):
        if reply == 0:
            continue  # a conversation that the assistant begins; no request to an endpoint looks like this
        asked = {"model": "m", "messages": talk[:reply]}
        assert client.post("/tokenize", json=asked).json()["tokens"] == learned.input_ids[:start]
        assert client.post("/v1/chat/completions", json=asked).status_code == 200
        assert engine.prompts[-1] == learned.input_ids[:start]
        parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in talk[:reply]]
        assert client.post("/tokenize", json={"messages": parts}).json()["tokens"] == learned.input_ids[:start]
