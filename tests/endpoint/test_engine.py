"""Every engine against transformers' `generate`, and the decoding of tokens to text."""

import asyncio
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch

from models.base.load import load_model, load_tokenizer
from models.chat import end_token_ids
from models.export.openvino_export import export
from serve.engines.base import Engine, EngineError, EngineHealth, GenerationRequest, TokenEvent
from serve.engines.openvino import OpenVINOEngine
from serve.engines.sampling import Sampler
from serve.engines.torch import TorchEngine
from serve.grammar.json_grammar import Grammars
from serve.parsing.text import ReplyText

PROMPTS = [[256, 71, 72, 220], [256, 64], list(range(200)), [n * 7 % 200 for n in range(700)]]


@pytest.fixture(scope="module")
def release(make_loud: Callable[[Path], Any], tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("release")
    make_loud(tiny_llama).save_pretrained(folder)
    load_tokenizer(tiny_llama).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["torch", "openvino"])
def make_engine(
    request: pytest.FixtureRequest, release: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Engine]:
    if request.param == "torch":
        return functools.partial(TorchEngine, release, num_threads=1)
    folder = tmp_path_factory.mktemp("export")
    export(release, folder, "fp32")
    return functools.partial(OpenVINOEngine, folder, num_threads=1)


@pytest.fixture(scope="module")
def engine(make_engine: Callable[..., Engine]) -> Iterator[Engine]:
    engine = make_engine(precision="fp32", max_active=3)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Any:
    return load_tokenizer(tiny_llama)


async def collect(engine: Engine, request: GenerationRequest) -> list[TokenEvent]:
    return [event async for event in engine.submit(request)]


async def collect_all(engine: Engine, *requests: GenerationRequest) -> list[Any]:
    return await asyncio.gather(*(collect(engine, request) for request in requests), return_exceptions=True)


async def until_health_is(engine: Engine, num_active: int, num_waiting: int) -> None:
    for _ in range(1000):
        if engine.health() == EngineHealth(True, num_active, num_waiting):
            return
        await asyncio.sleep(0.005)
    pytest.fail(f"{engine.health()} after 5 s")


async def until_idle(engine: Engine) -> None:
    await until_health_is(engine, 0, 0)


def token_ids(events: list[TokenEvent]) -> list[int]:
    return [event.token_id for event in events]


def told_of(events: list[TokenEvent]) -> list[TokenEvent]:
    """Without the tokens cached for another request, whose number varies."""
    return [event._replace(num_cached=None) for event in events]


def test_greedy_tokens_are_those_of_generate_for_several_prompts_at_once(engine: Engine, release: Path) -> None:
    requests = [GenerationRequest(prompt_ids, 30, temperature=0) for prompt_ids in PROMPTS]
    replies = asyncio.run(collect_all(engine, *requests))

    model = load_model(release, torch.float32)
    for prompt_ids, reply in zip(PROMPTS, replies, strict=True):
        tokens = torch.tensor([prompt_ids])
        model.generation_config.eos_token_id = None
        mask = torch.ones_like(tokens)
        expected = model.generate(tokens, attention_mask=mask, max_new_tokens=30, do_sample=False)
        assert token_ids(reply) == expected[0, len(prompt_ids) :].tolist()
        assert len(set(token_ids(reply))) > 5, "the test's model says the same whatever it read"
        assert [event.finish_reason for event in reply] == [None] * 29 + ["length"]


def test_an_end_token_stops_the_reply(engine: Engine) -> None:
    reply = asyncio.run(collect(engine, GenerationRequest(PROMPTS[0], 30, temperature=0)))
    end = token_ids(reply)[10]
    request = GenerationRequest(PROMPTS[0], 30, temperature=0, end_token_ids=frozenset({end}))
    stopped = asyncio.run(collect(engine, request))
    assert stopped[-1] == TokenEvent(end, "stop")
    assert len(stopped) == token_ids(reply).index(end) + 1


def test_a_seed_fixes_the_reply_whatever_else_is_served(engine: Engine) -> None:
    def request(seed: int | None) -> GenerationRequest:
        return GenerationRequest(PROMPTS[0], 20, temperature=2, top_p=0.95, seed=seed)

    alone = asyncio.run(collect(engine, request(7)))
    again, other, free, free_too = asyncio.run(
        collect_all(engine, request(7), request(8), request(None), request(None))
    )
    assert token_ids(alone) == token_ids(again)
    assert len({tuple(token_ids(reply)) for reply in (again, other, free, free_too)}) == 4


def test_closing_the_stream_frees_the_slot(engine: Engine) -> None:
    async def run() -> None:
        async with aclosing(engine.submit(GenerationRequest(PROMPTS[0], 2000))) as events:
            await anext(events)
            assert engine.health().num_active == 1
        await until_idle(engine)

    asyncio.run(run())


def test_cancel_ends_active_and_waiting_streams_without_a_reason(engine: Engine) -> None:
    async def run() -> None:
        requests = [GenerationRequest(PROMPTS[0], 2000, request_id=f"request {n}") for n in range(5)]
        running = asyncio.gather(*(collect(engine, request) for request in requests))
        await until_health_is(engine, 3, 2)
        for request in requests:
            engine.cancel(request.request_id)
        engine.cancel("unknown")
        for reply in await asyncio.wait_for(running, 5):
            assert len(reply) < 2000
            assert not reply or reply[-1].finish_reason is None
        await until_idle(engine)

    asyncio.run(run())


def test_a_failing_request_does_not_affect_concurrent_ones(engine: Engine) -> None:
    good = GenerationRequest(PROMPTS[0], 20, temperature=0)
    expected = asyncio.run(collect(engine, good))
    bad = GenerationRequest([10**6], 20)  # no such token
    reply, failure = asyncio.run(collect_all(engine, good, bad))
    assert reply == expected
    assert isinstance(failure, EngineError | ValueError)
    assert engine.health().is_alive


def test_requests_that_do_not_fit_are_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="need 2049 positions; the model has 2048"):
        asyncio.run(collect(engine, GenerationRequest([1] * 2000, 49)))
    with pytest.raises(ValueError, match="prompt_ids"):
        GenerationRequest([], 1)
    with pytest.raises(ValueError, match="max_new_tokens"):
        GenerationRequest([1], 0)


def test_a_closed_engine_fails_open_and_later_streams(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(precision="bf16")

    async def run() -> None:
        running = asyncio.create_task(collect(engine, GenerationRequest(PROMPTS[0], 2000)))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(engine.close)
        with pytest.raises(EngineError, match="stopped"):
            await running
        with pytest.raises(EngineError, match="stopped"):
            await collect(engine, GenerationRequest(PROMPTS[0], 1))
        assert not engine.health().is_alive

    asyncio.run(run())


def test_top_p_keeps_the_likeliest_tokens_until_it_is_reached() -> None:
    assert drawn(top_p=0) == drawn(top_p=1e-300) == drawn(top_p=0.5) == {1}
    assert drawn(top_p=0.6) == {1, 3}
    assert drawn() == {0, 1, 2, 3}
    assert drawn(temperature=0) == drawn(temperature=1e-300) == {1}


def drawn(**fields: Any) -> set[int]:
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    sampler = Sampler(GenerationRequest([0], 1, seed=0, **fields))
    return {sampler.draw(logits) for _ in range(300)}


def test_top_k_keeps_k_tokens() -> None:
    assert drawn(top_k=1) == {1}
    assert drawn(top_k=2) == {1, 3}
    assert drawn(top_k=3, top_p=0.7) == {1, 3}
    assert drawn(top_k=9) == {0, 1, 2, 3}


def greedy(count: int, prompt_ids: list[int], logits: list[float], **fields: Any) -> list[int]:
    sampler = Sampler(GenerationRequest(prompt_ids, count, temperature=0, **fields))
    return [sampler.draw(torch.tensor(logits)) for _ in range(count)]


def test_penalties_and_biases_change_scores_as_documented() -> None:
    # The presence penalty counts once per token of the reply; the frequency penalty counts each time.
    assert greedy(4, [0], [2.0, 1.5, 0.85], presence_penalty=1.0) == [0, 1, 0, 0]
    assert greedy(5, [0], [2.0, 1.5, 0.85], frequency_penalty=0.6) == [0, 1, 0, 1, 2]
    # The repetition penalty includes the prompt; it divides positive scores and multiplies negative ones.
    assert greedy(2, [0], [1.0, 0.6, -3.0], repetition_penalty=2.0) == [1, 0]
    assert greedy(2, [0, 1], [-1.0, -1.2, -1.9], repetition_penalty=2.0) == [2, 0]
    assert greedy(2, [0], [1.0, 0.6, -3.0], logit_bias={2: 5.0, 0: -100.0}) == [2, 2]


@pytest.mark.parametrize("fields", [
    {"presence_penalty": 1.5}, {"frequency_penalty": 1.0}, {"repetition_penalty": 1.3},
    {"presence_penalty": -0.5, "frequency_penalty": 0.7, "repetition_penalty": 1.1},
])  # fmt: skip
def test_penalties_are_the_samplers_in_every_engine(engine: Engine, release: Path, fields: dict[str, float]) -> None:
    request = GenerationRequest(PROMPTS[0], 40, temperature=0, **fields)  # type: ignore[arg-type]
    reply = asyncio.run(collect(engine, request))
    plain = asyncio.run(collect(engine, GenerationRequest(PROMPTS[0], 40, temperature=0)))
    assert token_ids(reply) == by_hand(release, request)
    assert token_ids(reply) != token_ids(plain)


def by_hand(release: Path, request: GenerationRequest) -> list[int]:
    """Token by token, each computed from the whole preceding text."""
    model, sampler, read = load_model(release, torch.float32), Sampler(request), list(request.prompt_ids)
    with torch.inference_mode():
        for _ in range(request.max_new_tokens):
            read.append(sampler.draw(model(torch.tensor([read])).logits[0, -1]))
    return read[len(request.prompt_ids) :]


def test_the_drawn_tokens_log_probabilities(engine: Engine, release: Path) -> None:
    reply = asyncio.run(collect(engine, GenerationRequest(PROMPTS[0], 20, temperature=0, num_logprobs=0)))
    whole = torch.tensor([PROMPTS[0] + token_ids(reply)])
    with torch.inference_mode():
        logits = load_model(release, torch.float32)(whole).logits[0, len(PROMPTS[0]) - 1 : -1]
    expected = torch.log_softmax(logits, -1)[range(20), token_ids(reply)].tolist()
    assert [event.logprob for event in reply] == pytest.approx(expected, abs=1e-4)
    assert all(event.top_logprobs == () for event in reply)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "size": {"enum": ["small", "large"]},
        "of": {"$ref": "#/$defs/counts"},
        "also": {"anyOf": [{"type": "null"}, {"const": "yes"}]},
    },
    "required": ["size", "of", "also"],
    "additionalProperties": False,
    "$defs": {"counts": {"type": "array", "items": {"type": "boolean"}}},
}


def test_a_reply_follows_its_schema_and_concurrent_ones_are_unaffected(engine: Engine, tokenizer: Any) -> None:
    ends = end_token_ids(tokenizer)
    grammar = Grammars(tokenizer, engine.vocab_size, ends).of(PERSON)
    plain = GenerationRequest(PROMPTS[0], 20, temperature=0)
    alone = asyncio.run(collect(engine, plain))
    bound = [
        GenerationRequest(PROMPTS[0], 400, temperature=1.0, seed=seed, grammar=grammar, end_token_ids=ends)
        for seed in range(3)
    ]
    *replies, beside = asyncio.run(collect_all(engine, *bound, plain))
    assert told_of(beside) == told_of(alone)
    for reply in replies:
        if isinstance(engine, OpenVINOEngine) and reply[-1].finish_reason == "length":
            # JSON mode allows unlimited white space, which an untrained model generates.
            assert tokenizer.decode(token_ids(reply)).startswith("{")
            continue
        assert reply[-1].finish_reason == "stop"
        found = json.loads(tokenizer.decode(token_ids(reply)[:-1]))
        assert found["size"] in ("small", "large")
        assert {type(one) for one in found["of"]} <= {bool}
        assert found["also"] in (None, "yes")


@pytest.mark.parametrize(("rules", "allowed"), [
    ({"enum": ["small", 3, None]}, ["small", 3, None]),
    ({"enum": ["enum", "b", "a", "a.b"]}, ["enum", "b", "a", "a.b"]),
    ({"anyOf": [{"const": [12, 1]}, {"const": [12]}, {"const": [1, 12]}]}, [[12, 1], [12], [1, 12]]),
    ({"anyOf": [{"const": "yes"}, {"type": "boolean"}]}, ["yes", True, False]),
    ({"$ref": "#/$defs/answer", "$defs": {"answer": {"const": [1]}}}, [[1]]),
])  # fmt: skip
def test_a_small_schema_leaves_no_choice(
    engine: Engine, tokenizer: Any, rules: dict[str, Any], allowed: list[Any]
) -> None:
    for text in texts_by(engine, tokenizer, rules, count=6):
        assert json.loads(text) in allowed


def texts_by(engine: Engine, tokenizer: Any, rules: dict[str, Any], count: int) -> list[str]:
    """Replies that follow a schema, each of which ended by itself."""
    ends = end_token_ids(tokenizer)
    grammar = Grammars(tokenizer, engine.vocab_size, ends).of(rules)
    requests = [
        GenerationRequest(PROMPTS[0], 60, temperature=2.0, seed=seed, grammar=grammar, end_token_ids=ends)
        for seed in range(count)
    ]
    replies = asyncio.run(collect_all(engine, *requests))
    assert [reply[-1].finish_reason for reply in replies] == ["stop"] * count
    return [tokenizer.decode(token_ids(reply)[:-1]) for reply in replies]


@pytest.mark.parametrize(("schema", "pattern"), [
    ({"type": "string", "pattern": "^ab{1,2}$"}, '"abb?"'),
    ({"type": "array", "items": {"type": "integer", "minimum": 3, "maximum": 12}, "minItems": 2, "maxItems": 2},
     r"\[([3-9]|1[0-2]), ([3-9]|1[0-2])\]"),
    ({"oneOf": [{"const": 1}, {"const": "b"}]}, '1|"b"'),
    ({"allOf": [{"type": "integer", "minimum": 7}, {"maximum": 9}]}, "[789]"),
    ({"enum": ["<|eot_id|>"]}, '"<[|]eot_id[|]>"'),
    ({"$schema": "a", "type": "boolean", "default": True, "title": "T", "examples": [1], "$comment": "", "x-y": 0,
      "description": "d", "deprecated": False, "readOnly": True, "format": "mine"}, "true|false"),
])  # fmt: skip
def test_rules_of_all_kinds_are_followed_and_notes_are_none(
    engine: Engine, tokenizer: Any, schema: dict[str, Any], pattern: str
) -> None:
    for text in texts_by(engine, tokenizer, schema, count=4):
        assert re.fullmatch(pattern, text), schema


def test_replies_decoded_beside_the_pipeline_match_torch(engine: Engine, release: Path) -> None:
    requests = [
        GenerationRequest(PROMPTS[0], 20, temperature=1.0, seed=3, logit_bias={40: 3.0}, num_logprobs=2),
        GenerationRequest(PROMPTS[3], 5, temperature=0, num_logprobs=1),
    ]
    for request, reply in zip(requests, asyncio.run(collect_all(engine, *requests)), strict=True):
        assert token_ids(reply) == by_hand(release, request)


def test_without_an_engine_beside_it_what_cannot_be_followed_is_refused(
    make_engine: Callable[..., Engine], tokenizer: Any
) -> None:
    if make_engine.func is TorchEngine:  # type: ignore[attr-defined]
        return
    engine = make_engine(precision="fp32", has_beside=False)
    try:
        grammar = Grammars(tokenizer, engine.vocab_size, frozenset({257})).of({"type": "string", "pattern": "a+"})
        request = GenerationRequest(PROMPTS[0], 5, grammar=grammar)
        refusal = engine.refusal(request)
        assert refusal is not None
        assert refusal[0] == "response_format"
        assert "pattern in a schema" in refusal[1]
        with pytest.raises(ValueError, match="pattern in a schema"):
            asyncio.run(collect(engine, request))
        biased = engine.refusal(GenerationRequest(PROMPTS[0], 5, logit_bias={1: 1.0}))
        assert biased is not None
        assert biased[0] == "logit_bias"
    finally:
        engine.close()


def test_likely_tokens_are_reported(engine: Engine) -> None:
    request = GenerationRequest(PROMPTS[0], 10, temperature=1.5, seed=1, num_logprobs=3)
    for event in asyncio.run(collect(engine, request)):
        likely = [logprob for _, logprob in event.top_logprobs]
        assert len(likely) == 3
        assert likely == sorted(likely, reverse=True)
        assert event.logprob is not None
        assert event.logprob <= likely[0]


def shown(tokenizer: Any, text: str, stops: list[str]) -> tuple[list[str], bool]:
    """The text that becomes visible with each byte of `text` (one token per byte), and whether a stop string was
    found.
    """
    reply = ReplyText(tokenizer, stops)
    pieces = [reply.push(token_id).said for token_id in tokenizer(text)["input_ids"]]
    return [*pieces, reply.finish(is_cut=False).said], reply.is_stopped


def test_characters_of_several_tokens_appear_whole(tokenizer: Any) -> None:
    pieces, _ = shown(tokenizer, "é€👍🏽a", [])
    assert [piece for piece in pieces if piece] == ["é", "€", "👍", "🏽", "a"]


def test_half_a_character_at_the_end_is_not_shown(tokenizer: Any) -> None:
    reply = ReplyText(tokenizer, [])
    assert [reply.push(token_id).said for token_id in tokenizer("a€")["input_ids"][:-1]] == ["a", "", ""]
    assert reply.finish(is_cut=True).said == ""


def test_bytes_that_are_no_text_do_not_hold_back_what_follows(tokenizer: Any) -> None:
    continuation = tokenizer("€")["input_ids"][1]
    reply = ReplyText(tokenizer, [])
    text = "".join(reply.push(token_id).said for token_id in [continuation] * 20 + tokenizer("ok")["input_ids"])
    assert text.endswith("ok")


def test_replies_of_one_tokenizer_that_take_turns_do_not_mix(tokenizer: Any) -> None:
    texts = ["a€ b€", "€€ ba", "<|eot_id|>b é"]
    replies = [ReplyText(tokenizer, []) for _ in texts]
    said = [""] * len(texts)
    for token_ids in itertools.zip_longest(*(tokenizer(text)["input_ids"] for text in texts)):
        for place, token_id in enumerate(token_ids):
            if token_id is not None:
                said[place] += replies[place].push(token_id).said
    assert said == ["a€ b€", "€€ ba", "b é"]
    assert [reply.num_shown for reply in replies] == [reply.num_decoded for reply in replies] == [5, 5, 3]


def test_special_tokens_are_not_shown(tokenizer: Any) -> None:
    pieces, _ = shown(tokenizer, "a<|start_header_id|>b", [])
    assert pieces == ["a", "", "b", ""]


def test_stop_strings_split_over_tokens_never_leak(tokenizer: Any) -> None:
    assert shown(tokenizer, "one\nUser: two", ["\nUser:"]) == (
        ["o", "n", "e", *[""] * 10, ""],
        True,
    )
    # Held back for a stop string that is never completed.
    pieces, is_stopped = shown(tokenizer, "aab aaab", ["aaaa", "b c"])
    assert ("".join(pieces), is_stopped) == ("aab aaab", False)
    assert shown(tokenizer, "xaab", ["aab"])[1]
    assert "".join(shown(tokenizer, "aaab", ["aab"])[0]) == "a"
    assert "".join(shown(tokenizer, "5 € net", ["€"])[0]) == "5 "


def test_a_stop_string_inside_one_token(tokenizer: Any) -> None:
    class WordTokenizer:
        def decode(self, token_ids: list[int], **settings: bool) -> str:
            return "".join(["Hello. ", "Bye. END and", " more"][token_id] for token_id in token_ids)

    reply = ReplyText(WordTokenizer(), ["END", ". E"])
    assert [reply.push(token_id).said for token_id in range(3)] == ["Hello", ". Bye", ""]
    assert reply.is_stopped
