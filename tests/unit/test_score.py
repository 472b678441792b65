"""Scores of the base and the tuned model, against a plain computation."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from models.base import adapters
from models.base.load import load_model, load_tokenizer
from models.base.plain import plain_base, plain_checkpoint
from models.chat import Message, encode_prompt, end_token_ids
from models.chat.knowledge import Passage, with_knowledge
from models.chat.plain_text import said_text
from models.kernels.attention import PACKED_ATTENTION
from models.measures.compared_models import ComparedModels
from models.packing import pack
from serve.knowledge.retrieval import Knowledge
from workflows.store import Store
from workflows.suites.answering import AnsweringModel, Asked, engine_of
from workflows.suites.loaded_model import LoadedModelEngine
from workflows.suites.reply_cache import ReplyCache
from workflows.suites.suite import Turn

Conversation = tuple[list[int], list[bool]]
PROMPTS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be kind. " * 9}, {"role": "user", "content": "What is it? " * 4}],
    [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}, {"role": "user", "content": "3"}],
]


@pytest.fixture
def base(tiny_model: Path, make_loud: Callable[[Path], Any], tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    make_loud(tiny_model).save_pretrained(folder)
    load_tokenizer(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(params=["adapter", "all weights"])
def checkpoint(request: pytest.FixtureRequest, base: Path, tmp_path: Path) -> tuple[Path, Any]:
    """A checkpoint that differs from its base model, and the same weights as one plain model."""
    folder = tmp_path / "checkpoint"
    model = AutoModelForCausalLM.from_pretrained(base)
    if request.param == "adapter":
        model = adapters.attach(model, 4, 8.0, 0.0, "all-linear", base="random:tiny")
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    return folder, adapters.merge(model).eval() if request.param == "adapter" else model.eval()


def test_losses_are_those_of_each_model_alone(
    base: Path,
    checkpoint: tuple[Path, Any],
    token_rows: list[Conversation],
    plain_loss_sum: Callable[[Any, list[Conversation]], torch.Tensor],
) -> None:
    folder, tuned = checkpoint
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    compared = ComparedModels(base, folder, torch.float32, service_folder=base)
    for _ in range(2):  # one after the other, twice: neither changes the other's state
        losses = compared.log_probabilities(pack(token_rows))
        with torch.no_grad():
            for name, model in {"base": plain, "tuned": tuned, "service": plain}.items():
                alone = [-float(plain_loss_sum(model, [row])) for row in token_rows]
                assert losses[name].tolist() == pytest.approx(alone, rel=1e-4, abs=1e-4)
    assert abs(losses["base"] - losses["tuned"]).max() > 1


@pytest.mark.parametrize("in_bulk", [False, True])
def test_replies_are_those_of_each_model_alone(
    base: Path, checkpoint: tuple[Path, Any], in_bulk: bool, tmp_path: Path
) -> None:
    folder, tuned = checkpoint
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    tokenizer = load_tokenizer(base)
    told: list[list[str]] = []
    for name, model, write in (
        ("base", plain, lambda target: plain_base(base, folder, target, torch.float32)),
        ("tuned", tuned, lambda target: plain_checkpoint(base, folder, target, torch.float32)),
    ):
        cache = ReplyCache(Store(str(tmp_path / "store")), name)
        asked = [Asked([Turn(tuple(prompt))], max_new_tokens=12) for prompt in PROMPTS]
        with AnsweringModel(engine_of(write, 1, "cpu", in_bulk), lambda: tokenizer, cache) as answering:
            replies = answering.converse(asked, lambda: None)
        cache.save()
        told.append([bare(said_text(answer.message or {})) for [answer] in replies])
        assert told[-1] == [reply_of(model, tokenizer, prompt) for prompt in PROMPTS]
        again = ReplyCache(Store(str(tmp_path / "store")), name)
        with AnsweringModel(engine_of(never, 1, "cpu", in_bulk), lambda: tokenizer, again) as answering:
            assert answering.converse(asked, lambda: None) == replies
    assert told[0] != told[1]
    assert len({*told[0], *told[1]}) > 3, "the test's models say the same whatever they read"


def test_a_model_in_training_replies_like_its_checkpoint_and_stays_as_it_was(
    base: Path, checkpoint: tuple[Path, Any]
) -> None:
    folder, tuned = checkpoint
    model = load_model(folder if not adapters.is_adapter(folder) else base, torch.float32, PACKED_ATTENTION)
    model = (adapters.load(model, folder) if adapters.is_adapter(folder) else model).train()
    tokenizer = load_tokenizer(base)
    asked = [Asked([Turn(tuple(prompt))], max_new_tokens=tokens) for prompt in PROMPTS for tokens in (12, 5)]
    for _ in range(2):
        with AnsweringModel(lambda stack: LoadedModelEngine(model), lambda: tokenizer) as answering:
            replies = answering.converse(asked, lambda: None)
        told = [bare(said_text(answer.message or {})) for [answer] in replies]
        assert told[::2] == [reply_of(tuned, tokenizer, prompt) for prompt in PROMPTS]
        assert all(long.startswith(short) for long, short in zip(told[::2], told[1::2], strict=True))
        assert model.training
        assert model.config._attn_implementation == PACKED_ATTENTION


def test_prompts_have_the_endpoints_knowledge_unless_an_item_brings_its_own(base: Path) -> None:
    knowledge = Knowledge([Passage("rules.md", "Tents come back within 45 days.")], most=1, min_share=0.1)
    question: Message = {"role": "user", "content": "When must tents come back?"}
    written = with_knowledge([question], knowledge.find([question["content"]]))
    assert "45 days" in str(written)
    cache = NoCache()
    with AnsweringModel(engine_of(lambda target: base, 1, "cpu", False), lambda: load_tokenizer(base), cache,
                        knowledge) as answering:  # fmt: skip
        answering.converse([Asked([Turn((question,))], 4)], lambda: None)
        answering.converse([Asked([Turn((question,), brings_knowledge=True)], 4)], lambda: None)
    assert [request["messages"] for request in cache.asked] == [written, [question]]


def test_what_is_asked_twice_at_once_is_answered_once(base: Path) -> None:
    cache = NoCache()
    hello = Asked([Turn(({"role": "user", "content": "Hi"},))], 6)
    with AnsweringModel(
        engine_of(lambda target: base, 1, "cpu", False), lambda: load_tokenizer(base), cache
    ) as answering:
        [first], [second] = answering.converse([hello, hello], lambda: None)
    assert first == second
    assert len(cache.asked) == 1


class NoCache(ReplyCache):
    """Knows nothing, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[Mapping[str, Any]] = []

    def find(self, request: Mapping[str, Any]) -> None:
        self.asked.append(request)

    def add(self, request: Mapping[str, Any], reply: Message) -> None:
        pass


def never(target: Path) -> Path:
    raise AssertionError("a reply that is in the cache was asked for again")


def test_a_conversation_continues_with_the_models_own_replies(base: Path) -> None:
    turns = [Turn(({"role": "user", "content": text},)) for text in ("Hi", "And then?")]
    with AnsweringModel(engine_of(lambda target: base, 1, "cpu", False), lambda: load_tokenizer(base)) as answering:
        [[first, second]] = answering.converse([Asked(turns, 12)], lambda: None)
        whole = [*turns[0].messages, {"role": "assistant", "content": said_text(first.message or {})}]
        [[alone]] = answering.converse([Asked([Turn((*whole, *turns[1].messages))], 12)], lambda: None)
        too_long = Turn(({"role": "user", "content": "x" * 9999},))
        [refused] = answering.converse([Asked([too_long, turns[1]], 12)], lambda: None)
    assert first.message
    assert second == alone
    assert refused[0].message is None
    assert "maximum" in refused[0].error
    assert refused[1] == refused[0]


def reply_of(model: Any, tokenizer: Any, messages: Any) -> str:
    """A greedy reply; each token is computed from the whole preceding text."""
    prompt = encode_prompt(tokenizer, messages)
    ids = list(prompt)
    while len(ids) < len(prompt) + 12 and (ids == prompt or ids[-1] not in end_token_ids(tokenizer)):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return bare(str(tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)))


def bare(text: str) -> str:
    """Without what the endpoint's text has not: a character at the end that the last tokens only begin."""
    return text.strip().rstrip("\ufffd").strip()
