"""Scores of the base and the tuned model, against a plain computation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from models.base import adapters
from models.base.load import load_tokenizer
from models.chat import Conversation as Talk
from models.chat import encode_prompt, end_token_ids
from models.measures.base_and_tuned import BaseAndTuned, count_facts
from models.packing import pack

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


def test_losses_and_replies_are_those_of_each_model_alone(
    base: Path,
    checkpoint: tuple[Path, Any],
    token_rows: list[Conversation],
    plain_loss_sum: Callable[[Any, list[Conversation]], torch.Tensor],
) -> None:
    folder, tuned = checkpoint
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    pair = BaseAndTuned(base, folder, torch.float32)
    tokenizer = load_tokenizer(base)
    for _ in range(2):  # one after the other, twice: neither changes the other's state
        losses = pair.loss_sums(pack(token_rows))
        replies = pair.replies([Talk(prompt) for prompt in PROMPTS], max_new_tokens=12)
        with torch.no_grad():
            assert losses == pytest.approx([float(plain_loss_sum(m, token_rows)) for m in (plain, tuned)], rel=1e-4)
        assert list(replies) == [[reply_of(m, tokenizer, prompt) for prompt in PROMPTS] for m in (plain, tuned)]
    assert abs(losses[0] - losses[1]) > 1
    assert replies[0] != replies[1]
    assert len({*replies[0], *replies[1]}) > 3, "the test's models say the same whatever they read"


def reply_of(model: Any, tokenizer: Any, messages: Any) -> str:
    """A greedy reply; each token is computed from the whole preceding text."""
    prompt = encode_prompt(tokenizer, messages)
    ids = list(prompt)
    while len(ids) < len(prompt) + 12 and (ids == prompt or ids[-1] not in end_token_ids(tokenizer)):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return str(tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)).strip()


@pytest.mark.parametrize(("reply", "facts", "count"), [
    ("Returns take 45 DAYS.", [["45 days"]], 1),
    ("Returns take\n45  days.", [["45 days"]], 1),
    ("It takes forty-five days, or 45 days.", [["45 days", "forty-five days"]], 1),
    ("45 days, by post", [["45 days"], ["by post", "by mail"], ["free"]], 2),
    ("", [["45 days"]], 0),
    ("450 days", [["45 days"]], 0),
    ("145 days", [["45 days"]], 0),
    ("It costs £50.", [["£5"]], 0),
    ("It costs £5.", [["£5"]], 1),
])  # fmt: skip
def test_facts_are_counted_once_in_any_spelling(reply: str, facts: list[list[str]], count: int) -> None:
    assert count_facts(reply, facts) == count
