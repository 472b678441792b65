"""`data.add_tokens`: strings that become one token each, in tokenizer, embeddings, adapter and release."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from models.base import adapters
from models.base.load import load_model, load_tokenizer
from models.base.new_tokens import add_new_tokens, fit_embeddings, rows_of
from models.base.plain import plain_base
from models.export.release import release
from models.kernels.attention import PACKED_ATTENTION
from models.measures.compared_models import ComparedModels
from models.objectives.sft import Sft
from models.packing import pack
from models.training.engine import TorchEngine

WORDS = ["Brindlewick", "<tool>"]


@pytest.fixture(params=["tied", "untied", "spare rows"])
def base(request: pytest.FixtureRequest, tiny_llama: Path, tmp_path: Path) -> Path:
    """A tiny model of 260 tokens: with tied or untied embeddings, or with unused rows."""
    config = AutoConfig.from_pretrained(tiny_llama)
    config.tie_word_embeddings = request.param != "untied"
    config.vocab_size = 320 if request.param == "spare rows" else 260
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    load_tokenizer(tiny_llama).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def with_words(base: Path) -> Any:
    tokenizer = load_tokenizer(base)
    add_new_tokens(tokenizer, WORDS)
    return tokenizer


def test_a_new_token_is_one_id_wherever_it_stands_and_is_shown(base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base)
    before = tokenizer("Is it so?")["input_ids"]
    assert add_new_tokens(tokenizer, WORDS) == [260, 261]
    ids = tokenizer("ask Brindlewick<tool>now")["input_ids"]
    assert [token for token in ids if token >= 260] == [260, 261]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ask Brindlewick<tool>now"
    assert tokenizer("Is it so?")["input_ids"] == before
    tokenizer.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("Brindlewick")["input_ids"] == [260]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["one", "two", "one"], "'one' is listed twice"),
        ([" one"], "' one' starts or ends with white space"),
        (["", "one"], "'' starts or ends with white space"),
    ],
)
def test_invalid_new_tokens_are_refused(tiny_llama: Path, texts: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=f"^data.new_tokens: {words}"):
        add_new_tokens(load_tokenizer(tiny_llama), texts)


def test_an_existing_token_is_not_added_again(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    assert add_new_tokens(tokenizer, ["a", "<|eot_id|>"]) == tokenizer.convert_tokens_to_ids(["a", "<|eot_id|>"])
    assert tokenizer.decode([257], skip_special_tokens=True) == "", "it stays a control token"
    model = load_model(tiny_llama, torch.float32)
    assert fit_embeddings(model, tiny_llama, tokenizer) == []
    assert rows_of(model) == 260


def test_new_rows_are_the_mean_of_the_old_ones(base: Path) -> None:
    """Hewitt 2021: initialised with the mean, no new token is likelier than the average old one."""
    model = load_model(base, torch.float32)
    rows, head = (value.detach().clone() for value in (model.model.embed_tokens.weight, model.lm_head.weight))
    assert fit_embeddings(model, base, with_words(base)) == [260, 261]
    assert rows_of(model) == model.config.vocab_size == (320 if len(rows) == 320 else 262)
    for before, after in ((rows, model.model.embed_tokens.weight), (head, model.lm_head.weight)):
        assert torch.equal(after[:260], before[:260])
        for row in (260, 261):
            assert torch.allclose(after[row], before[:260].mean(0), atol=1e-6)
        assert torch.equal(after[262:], before[262:])


def test_rows_stay_a_multiple_of_64() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=8, n_layer=1, n_head=1))
    from models.base.new_tokens import fit_rows

    fit_rows(model, [130])
    rows = model.transformer.wte.weight
    assert rows.shape[0] == 192
    assert torch.allclose(rows[128:], rows[:128].mean(0), atol=1e-6)


@pytest.mark.parametrize("adapter", [True, False])
def test_they_are_learned_saved_and_released(
    base: Path, adapter: bool, tmp_path: Path, plain_loss_sum: Callable[..., torch.Tensor]
) -> None:
    tokenizer, model = with_words(base), load_model(base, torch.float32, PACKED_ATTENTION)
    new = fit_embeddings(model, base, tokenizer)
    if adapter:
        model = adapters.attach(model, 4, 8.0, 0.0, "all-linear", "base", new_tokens=new)
    engine, row = TorchEngine(model, Sft()), ([5, 6, 260, 7, 261, 8] * 4, [True] * 24)
    batch, losses = pack([row]), []
    for _ in range(25):
        losses.append(engine.accumulate(batch, batch.weight)["loss"] / batch.weight)
        engine.update(1e-2)
    assert losses[-1] < losses[0] - 1
    checkpoint, target = tmp_path / "checkpoint", tmp_path / "release"
    write = engine.snapshot()
    checkpoint.mkdir()
    write(checkpoint)
    tokenizer.save_pretrained(checkpoint / "model")
    target.mkdir()
    _, figures = release(base, checkpoint / "model", target, "fp32", [row], max_perplexity_increase=0.001)
    assert figures["largest_logit_change"] <= 1e-4
    released = AutoModelForCausalLM.from_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer("Brindlewick")["input_ids"] == [260]
    assert rows_of(released) >= len(tokenizer) == 262
    assert (released.lm_head.weight is released.model.embed_tokens.weight) == released.config.tie_word_embeddings
    learned = float(plain_loss_sum(released, [row])) / 23
    assert learned == pytest.approx(engine.measure(batch)["loss"] / batch.weight, abs=1e-3)
    assert not torch.allclose(released.model.embed_tokens.weight[260], released.model.embed_tokens.weight[261])
    log_p = ComparedModels(base, checkpoint / "model", torch.float32).log_probabilities(batch)
    assert -float(log_p["tuned"]) / 23 == pytest.approx(learned, abs=1e-3)
    assert -float(log_p["base"]) / 23 == pytest.approx(losses[0], abs=1e-3)
    plain = AutoModelForCausalLM.from_pretrained(plain_base(base, checkpoint / "model", target / "b", torch.float32))
    assert float(plain_loss_sum(plain, [row])) / 23 == pytest.approx(losses[0], abs=1e-3)
