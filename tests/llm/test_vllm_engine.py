"""vLLM's tokens against transformers', and requests that must not break it."""

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from models.base.adapters import load
from models.base.load import load_model, load_tokenizer
from models.chat import end_token_ids
from serve.engines.base import EngineError, EngineHealth, GenerationRequest, TokenEvent
from serve.engines.torch import TorchEngine
from serve.engines.vllm import VLLMEngine
from serve.grammar.json_grammar import Grammars
from serve.parsing.call_style import CallStyle, JsonUnit
from serve.parsing.form import ReplyForm
from serve.parsing.marks import Marks

PROMPTS = [[256, 71, 72, 220], [256, 64], list(range(200)), [n * 7 % 200 for n in range(700)]]


async def collect(engine: Any, request: GenerationRequest) -> list[TokenEvent]:
    return [event async for event in engine.submit(request)]


async def collect_all(engine: Any, *requests: GenerationRequest) -> list[Any]:
    return await asyncio.gather(*(collect(engine, request) for request in requests), return_exceptions=True)


def token_ids(events: list[TokenEvent]) -> list[int]:
    return [event.token_id for event in events]


def generated(model: Any, prompt_ids: list[int], num_tokens: int) -> list[int]:
    """transformers' greedy tokens."""
    model.generation_config.eos_token_id = None
    tokens = torch.tensor([prompt_ids])
    output = model.generate(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=num_tokens, do_sample=False
    )
    ids: list[int] = output[0, len(prompt_ids) :].tolist()
    return ids


@pytest.fixture(scope="module")
def reference(release: Path) -> Any:
    """The engine `torch` with the same model: each field of a request means the same."""
    engine = TorchEngine(release, "fp32", num_threads=1)
    yield engine
    engine.close()


def test_greedy_tokens_are_those_of_generate_alone_and_in_a_batch(
    engine: VLLMEngine, run: Callable[[Any], Any], release: Path
) -> None:
    model = load_model(release, torch.float32)
    expected = [generated(model, prompt_ids, 30) for prompt_ids in PROMPTS]
    assert all(len(set(tokens)) > 5 for tokens in expected), "the test's model says the same whatever it read"
    requests = [GenerationRequest(prompt_ids, 30, temperature=0) for prompt_ids in PROMPTS]
    alone = [run(collect(engine, request)) for request in requests]
    assert [token_ids(reply) for reply in alone] == expected
    assert [event.finish_reason for event in alone[0]] == [None] * 29 + ["length"]
    many = run(collect_all(engine, *(GenerationRequest(ids, 30, temperature=0) for ids in PROMPTS * 8)))
    assert [token_ids(reply) for reply in many] == expected * 8


def test_an_end_token_stops_the_reply(engine: VLLMEngine, run: Callable[[Any], Any]) -> None:
    reply = run(collect(engine, GenerationRequest(PROMPTS[0], 30, temperature=0)))
    end = token_ids(reply)[10]
    request = GenerationRequest(PROMPTS[0], 30, temperature=0, end_token_ids=frozenset({end}))
    stopped = run(collect(engine, request))
    assert (stopped[-1].token_id, stopped[-1].finish_reason) == (end, "stop")
    assert len(stopped) == token_ids(reply).index(end) + 1


def test_a_seed_repeats_a_reply(engine: VLLMEngine, run: Callable[[Any], Any]) -> None:
    def request(seed: int | None) -> GenerationRequest:
        return GenerationRequest(PROMPTS[0], 20, temperature=1.5, top_p=0.95, seed=seed)

    alone = run(collect(engine, request(-1)))
    again, other, free, free_too = run(collect_all(engine, request(-1), request(8), request(None), request(None)))
    assert token_ids(alone) == token_ids(again)
    assert len({tuple(token_ids(reply)) for reply in (again, other, free, free_too)}) == 4


@pytest.mark.parametrize("fields", [
    {"presence_penalty": 2.0},
    {"frequency_penalty": -2.0},
    {"repetition_penalty": 2.0},
    {"repetition_penalty": 0.5, "presence_penalty": 1.5},
    {"logit_bias": {65: 3.0, 70: -100.0}},
    {"top_k": 1, "temperature": 1.0},
    {"top_p": 0.0, "temperature": 1.0},
])  # fmt: skip
def test_a_field_does_what_it_does_in_the_torch_engine(
    engine: VLLMEngine, reference: TorchEngine, run: Callable[[Any], Any], fields: dict[str, Any]
) -> None:
    for prompt_ids in PROMPTS[:3]:
        request = GenerationRequest(prompt_ids, 20, **{"temperature": 0, **fields})
        assert token_ids(run(collect(engine, request))) == token_ids(asyncio.run(collect(reference, request)))


@pytest.mark.parametrize(("top_k", "top_p", "temperature"), [(3, 1.0, 2.0), (0, 0.3, 2.0), (0, 1.0, 0.3)])
def test_tokens_are_sampled_among_the_allowed_ones(
    engine: VLLMEngine, release: Path, run: Callable[[Any], Any], top_k: int, top_p: float, temperature: float
) -> None:
    model = load_model(release, torch.float32)
    logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1].detach() / temperature
    kept = logits.topk(top_k or len(logits))
    probabilities = torch.softmax(kept.values, -1)
    kept_ids = kept.indices[probabilities.cumsum(-1) - probabilities < top_p].tolist()
    requests = [
        GenerationRequest(PROMPTS[0], 1, temperature=temperature, top_k=top_k, top_p=top_p, seed=n) for n in range(64)
    ]
    drawn = [token_ids(reply)[0] for reply in run(collect_all(engine, *requests))]
    assert set(drawn) <= set(kept_ids)
    expected = torch.softmax(logits[kept_ids], -1)[0]
    share = drawn.count(kept_ids[0]) / len(drawn)
    assert abs(share - float(expected)) < 4 * (float(expected) * (1 - float(expected)) / 64) ** 0.5 + 1e-6


def test_log_probabilities_are_the_models_own(
    engine: VLLMEngine, reference: TorchEngine, run: Callable[[Any], Any]
) -> None:
    for fields in ({"temperature": 0}, {"temperature": 0, "presence_penalty": 2.0, "logit_bias": {65: 5.0}}):
        for count in (0, 3):
            request = GenerationRequest(PROMPTS[0], 12, num_logprobs=count, **fields)
            found, expected = run(collect(engine, request)), asyncio.run(collect(reference, request))
            assert token_ids(found) == token_ids(expected)
            for event, other in zip(found, expected, strict=True):
                assert event.logprob == pytest.approx(other.logprob, abs=1e-4)
                assert [each for each, _ in event.top_logprobs] == [each for each, _ in other.top_logprobs]
                assert len(event.top_logprobs) == count


def test_log_probabilities_with_a_format_are_refused(
    engine: VLLMEngine, release: Path, run: Callable[[Any], Any]
) -> None:
    tokenizer = load_tokenizer(release)
    grammar = Grammars(tokenizer, engine.vocab_size, end_token_ids(tokenizer)).of({"const": "a"})
    request = GenerationRequest(PROMPTS[0], 3, temperature=0, num_logprobs=0, grammar=grammar)
    assert run(collect(engine, request))[0].logprob == pytest.approx(0.0, abs=1e-6), "vLLM tells the model's own now"
    assert (engine.refusal(request) or ("",))[0] == "logprobs"
    hardly_warm = GenerationRequest(PROMPTS[0], 3, temperature=0.005)
    assert (engine.refusal(hardly_warm) or ("",))[0] == "temperature"
    assert engine.refusal(GenerationRequest(PROMPTS[0], 3, temperature=0)) is None


@pytest.mark.parametrize("schema", [
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "::= start"]}},
     "required": ["a", "b"], "additionalProperties": False},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    {"type": "string", "pattern": "^[0-9]{4}-[a-z]+$", "maxLength": 12},
    {"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer", "minimum": 10, "maximum": 19}}},
])  # fmt: skip
def test_a_reply_follows_a_schema_as_in_the_torch_engine(
    engine: VLLMEngine, reference: TorchEngine, release: Path, run: Callable[[Any], Any], schema: dict[str, Any]
) -> None:
    tokenizer = load_tokenizer(release)
    ends = end_token_ids(tokenizer)
    grammar = Grammars(tokenizer, engine.vocab_size, ends).of(schema)
    request = GenerationRequest(PROMPTS[0], 80, temperature=0, grammar=grammar, end_token_ids=ends)
    found = run(collect(engine, request))
    assert token_ids(found) == token_ids(asyncio.run(collect(reference, request)))
    if found[-1].finish_reason == "stop":
        json.loads(tokenizer.decode(token_ids(found)[:-1]))


def test_a_call_that_is_required_is_made(
    engine: VLLMEngine, reference: TorchEngine, release: Path, run: Callable[[Any], Any]
) -> None:
    tokenizer = load_tokenizer(release)
    ends = end_token_ids(tokenizer)
    functions = {"look": {"type": "object", "properties": {"up": {"type": "boolean"}}, "required": ["up"],
                          "additionalProperties": False}}  # fmt: skip
    unit = JsonUnit(("name",), ("arguments",), keys=("name", "arguments"))
    style = CallStyle("<tool_call>\n", unit, None, "\n</tool_call>")
    form = ReplyForm(Marks(tokenizer), tokenizer, style=style)
    grammar = Grammars(tokenizer, engine.vocab_size, ends, form).of_call(functions)
    request = GenerationRequest(PROMPTS[0], 120, temperature=0, grammar=grammar, end_token_ids=ends)
    found = token_ids(run(collect(engine, request)))
    assert found == token_ids(asyncio.run(collect(reference, request)))
    written = tokenizer.decode(found[:-1])
    call = json.loads(written.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))
    assert call["name"] == "look"
    assert type(call["arguments"]["up"]) is bool


def test_adapters_and_the_model_without_any_in_one_batch(
    engine: VLLMEngine, release: Path, adapters: dict[str, str], run: Callable[[Any], Any]
) -> None:
    assert engine.adapters == ("one", "two")
    names = ("one", None, "two")
    requests = [GenerationRequest(ids, 20, temperature=0, adapter=name) for ids in PROMPTS[:3] for name in names]
    found = [token_ids(reply) for reply in run(collect_all(engine, *requests))]
    seen = set()
    for place, name in enumerate(names):
        model = load_model(release, torch.float32)
        if name is not None:
            model = load(model, adapters[name])
        expected = [generated(model, ids, 20) for ids in PROMPTS[:3]]
        assert found[place::3] == expected
        seen.add(str(expected))
    assert len(seen) == 3, "the test's adapters change nothing"
    with pytest.raises(ValueError, match="adapter: got 'other'; there are one, two"):
        run(collect(engine, GenerationRequest(PROMPTS[0], 1, adapter="other")))


async def until_idle(engine: VLLMEngine) -> None:
    """Whether no request is left, neither here nor in vLLM."""
    for _ in range(1000):
        if engine.health() == EngineHealth(True, 0, 0) and not engine._client.get_num_unfinished_requests():
            return
        await asyncio.sleep(0.005)
    pytest.fail(f"{engine.health()}, in vLLM {engine._client.get_num_unfinished_requests()}, after 5 s")


def test_a_reply_that_is_given_up_leaves_vllm(engine: VLLMEngine, run: Callable[[Any], Any]) -> None:
    async def give_up() -> None:
        closed = GenerationRequest(PROMPTS[0], 1000)
        async with aclosing(engine.submit(closed)) as events:
            async for _ in events:
                break
        await until_idle(engine)

        cancelled = GenerationRequest(PROMPTS[0], 1000)
        events = []
        async for event in engine.submit(cancelled):
            events.append(event)
            if len(events) == 3:
                assert engine.health() == EngineHealth(True, 1, 0)
                engine.cancel(cancelled.request_id)
        assert events[-1].finish_reason is None
        await until_idle(engine)

        unread = asyncio.create_task(collect(engine, GenerationRequest(PROMPTS[3], 100)))
        await asyncio.sleep(0)
        unread.cancel()
        await until_idle(engine)
        engine.cancel("nobody's")

    run(give_up())


def test_what_does_not_fit_is_refused_and_harms_nobody(engine: VLLMEngine, run: Callable[[Any], Any]) -> None:
    good = GenerationRequest(PROMPTS[0], 30, temperature=0)
    longest = GenerationRequest([5] * (engine.max_positions - 2), 2, temperature=0)
    too_long = GenerationRequest([5] * (engine.max_positions - 2), 3)
    unknown = [GenerationRequest([1, token_id], 3) for token_id in (-1, engine.vocab_size)]
    reply, most, *failures = run(collect_all(engine, good, longest, too_long, *unknown))
    assert (len(reply), len(most)) == (30, 2)
    assert (
        str(failures[0]) == f"prompt and reply together need {engine.max_positions + 1} positions; the model has 1024"
    )
    assert [str(failure) for failure in failures[1:]] == [
        f"prompt_ids: got {token_id}; the model's token ids are 0 to 259" for token_id in (-1, 260)
    ]

    async def twice() -> None:
        async with aclosing(engine.submit(good)) as events:
            await anext(events)
            with pytest.raises(ValueError, match="is already being generated"):
                await collect(engine, good)

    run(twice())
    run(until_idle(engine))


def test_when_vllms_process_dies_open_replies_fail_and_say_so(
    start: Callable[[], VLLMEngine], run: Callable[[Any], Any]
) -> None:
    before = set(psutil.Process().children())
    engine = start()

    async def kill() -> None:
        running = [asyncio.create_task(collect(engine, GenerationRequest(PROMPTS[0], 1000))) for _ in range(3)]
        while engine.health().num_active < 3:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert engine.health() == EngineHealth(True, 3, 0)
        for child in set(psutil.Process().children()) - before:
            child.kill()
        for task in running:
            with pytest.raises(EngineError, match="vLLM could not generate the next token: EngineCore"):
                await asyncio.wait_for(task, 20)
        assert engine.health() == EngineHealth(False, 0, 0)
        with pytest.raises(EngineError):
            await collect(engine, GenerationRequest(PROMPTS[0], 1))

    run(kill())
    engine.close()


def test_closing_ends_open_replies(start: Callable[[], VLLMEngine], run: Callable[[Any], Any]) -> None:
    engine = start()

    async def close() -> None:
        running = asyncio.create_task(collect(engine, GenerationRequest(PROMPTS[0], 1000)))
        while not engine.health().num_active:
            await asyncio.sleep(0.01)
        engine.close()
        with pytest.raises(EngineError, match="the engine has stopped"):
            await running
        with pytest.raises(EngineError, match="the engine has stopped"):
            await collect(engine, GenerationRequest(PROMPTS[0], 1))

    run(close())
