"""The adversarial pair: its losses against their equations, its sampling, and a task that it can learn."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models.base.discriminator import Discriminator, hidden_states
from models.base.load import load_model
from models.base.lstm import LstmConfig, LstmForCausalLM
from models.exchange import Exchange, exchange_of
from models.generation import drawn_replies
from models.kernels.attention import PACKED_ATTENTION
from models.objectives.adversarial import Discriminate, Generate, whiten
from models.objectives.gumbel import SoftBatch, soft_replies
from models.objectives.spin import own_pairs
from models.packing import pack
from models.training.adversarial import AdversarialSettings, AdversarialTrainer, Part
from models.training.engine import TorchEngine

END = 0


def small_lstm(seed: int = 0, vocab: int = 12, size: int = 16) -> LstmForCausalLM:
    torch.manual_seed(seed)
    model = LstmForCausalLM(LstmConfig(vocab_size=vocab, hidden_size=size, initializer_range=0.5)).eval()
    model.set_attn_implementation(PACKED_ATTENTION)
    return model


def token_log_probabilities(model: LstmForCausalLM, exchange: Exchange) -> torch.Tensor:
    tokens = [*exchange.history, *exchange.reply]
    log_p = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
    places = range(len(exchange.history), len(tokens))
    return torch.stack([log_p[place - 1, tokens[place]] for place in places])


REALS = [Exchange([5, 6, 7], [3, 4, END]), Exchange([8, 9], [2, END])]
OURS = [[Exchange([5, 6, 7], [1, END]), Exchange([5, 6, 7], [2, 3, 4, 1])], [Exchange([8, 9], [3, END])] * 2]


def test_advantages_are_whitened_within_each_history() -> None:
    found = whiten(torch.tensor([[1.0, 3.0], [2.0, 2.0], [-5.0, 5.0]]))
    torch.testing.assert_close(found, torch.tensor([[-1.0, 1.0], [0.0, 0.0], [-1.0, 1.0]]))


@pytest.mark.parametrize("part", ["gan", "l1", "likelihood", "kl"])
def test_each_part_of_the_generators_loss_is_its_equation(part: str) -> None:
    model, start = small_lstm(0), small_lstm(1)
    advantages = torch.tensor([[-1.0, 1.0], [0.5, -0.5]])
    before = [token_log_probabilities(start, exchange).detach() for some in OURS for exchange in some]
    weights = {"l1_weight": 0.0, "likelihood_weight": 0.0, "kl_weight": 0.0}
    if part != "gan":
        weights[f"{part}_weight"] = 0.7
        advantages = torch.zeros_like(advantages)
    objective = Generate(max_reply_tokens=5, **weights)
    batch = objective.batch_of(REALS, OURS, advantages, before)
    loss, figures = objective.loss_sum(model, batch)
    real = torch.cat([token_log_probabilities(model, exchange) for exchange in REALS])
    ours = [[token_log_probabilities(model, exchange) for exchange in some] for some in OURS]
    if part == "gan":
        expected = -sum(a * log_p.sum() for mine, row in zip(ours, advantages, strict=True)
                        for a, log_p in zip(row, mine, strict=True)) / 2  # fmt: skip
    elif part == "l1":  # the L1 distance: |1 - p| at the real token, p at all others
        rows = [model(input_ids=torch.tensor([[*e.history, *e.reply]])).logits[0].softmax(-1) for e in REALS]
        expected = 0.7 * sum(
            (F.one_hot(torch.tensor(token), 12) - p[len(e.history) + place - 1]).abs().sum()
            for e, p in zip(REALS, rows, strict=True)
            for place, token in enumerate(e.reply)
        )
    elif part == "likelihood":
        expected = -0.7 * real.sum()
    else:
        ratios = torch.cat(before) - torch.cat([log_p for some in ours for log_p in some])
        expected = 0.7 * (ratios.exp() - 1 - ratios).sum() / 2
    torch.testing.assert_close(loss, torch.as_tensor(expected) / 5)
    assert set(figures) == {"gan", "l1", "nll", "kl"}
    wanted = torch.autograd.grad(expected / 5, list(model.parameters()), allow_unused=True)
    for mine, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


def test_the_discriminators_loss_is_that_of_pairs() -> None:
    discriminator = Discriminator(small_lstm())
    pairs = [(real, own) for real, some in zip(REALS, OURS, strict=True) for own in some]
    batch = Discriminate().batch_of(pairs)
    assert (batch.weight, batch.num_sequences) == (4, 6)
    loss, figures = Discriminate().loss_sum(discriminator, batch)
    scores = [[float(discriminator(pack([exchange.sequence]))) for exchange in pair] for pair in pairs]
    assert float(loss.detach()) == pytest.approx(sum(-math.log(1 / (1 + math.exp(y - x))) for x, y in scores))
    assert figures["accuracy"] == sum(x > y for x, y in scores)


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2", "lstm"])
def test_replies_are_drawn_from_the_models_distribution(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path | None = None if kind == "lstm" else request.getfixturevalue(kind)
    model = small_lstm() if folder is None else load_model(folder, torch.float32, PACKED_ATTENTION)
    prompts = [[5, 6, 7, 1], [8, 9]]
    together = drawn_replies(model, prompts, 2000, 1, [END], seeds=[(1, 2), (1, 3)])
    model.set_attn_implementation("sdpa")
    for prompt, replies in zip(prompts, together, strict=True):
        counts = torch.bincount(torch.tensor([reply[0] for reply in replies]), minlength=model.config.vocab_size)
        expected = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
        assert float((counts / 2000 - expected).abs().sum()) < (0.1 if kind == "lstm" else 0.4)


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2", "lstm"])
def test_samples_for_a_prompt_depend_only_on_its_seed(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path | None = None if kind == "lstm" else request.getfixturevalue(kind)
    model = small_lstm() if folder is None else load_model(folder, torch.float32, PACKED_ATTENTION)
    model.train()
    prompts, seeds = [[5, 6, 7, 1], [8, 9], [3]], [(7, 1), (7, 2), (7, 3)]
    ends, read = range(0, model.config.vocab_size, 4), []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    together = drawn_replies(model, prompts, 3, 10, ends, seeds)
    hook.remove()
    assert together == [
        drawn_replies(model, [prompt], 3, 10, ends, [seed])[0] for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    replies = [reply for some in together for reply in some]
    assert len({tuple(reply) for reply in replies}) > 5
    assert all((len(reply) == 10 or reply[-1] in ends) and not set(reply[:-1]) & set(ends) for reply in replies)
    going = [sum(len(reply) > step for reply in replies) for step in range(1, max(map(len, replies)))]
    assert len(read) == 1 + len(going)
    assert all(number <= rows <= number / 0.75 for number, rows in zip(going, read[1:], strict=True))
    assert model.training
    assert model.config._attn_implementation == PACKED_ATTENTION


Players = tuple[AdversarialTrainer, TorchEngine, TorchEngine]


def new_players(gradient: str = "policy") -> Players:
    """An untrained generator, a discriminator, and their trainer."""
    objective = Generate(max_reply_tokens=4, l1_weight=0.0, likelihood_weight=0.0, kl_weight=0.0)
    generator = TorchEngine(small_lstm(0), objective)
    torch.manual_seed(5)
    discriminator = TorchEngine(Discriminator(small_lstm(1)), Discriminate())
    settings = AdversarialSettings(
        num_replies=4, max_reply_tokens=4, learning_rate=0.02, discriminator_learning_rate=0.02, gradient=gradient,
        replay_steps=4,
    )  # fmt: skip
    return AdversarialTrainer(generator, discriminator, settings, [END], objective), generator, discriminator


@pytest.fixture(params=["policy", "gumbel"])
def players(request: pytest.FixtureRequest) -> Callable[[], Players]:
    return lambda: new_players(request.param)


def histories(step: int, count: int = 16) -> Part:
    """Data in which the reply to every prompt is 3."""
    asked = torch.randint(1, 12, (count, 3), generator=torch.Generator().manual_seed(step)).tolist()
    return [(step * count + row, Exchange(tokens, [3, END])) for row, tokens in enumerate(asked)]


def test_the_discriminator_learns_to_tell_and_the_generator_what_it_rewards() -> None:
    trainer, generator, _ = new_players()
    held_out = [histories(999)]
    for step in range(20):
        trainer.step(step, [histories(step)], 16)
    assert trainer.measure(held_out)["accuracy"] > 0.9
    before = likeness(generator)
    for step in range(20, 80):
        figures = trainer.step(step, [histories(step)], 16, train_generator=True)
    assert set(figures) >= {"loss", "gan", "l1", "nll", "kl", "discriminator_loss", "discriminator_accuracy"}
    assert likeness(generator) > before + 0.5


def test_soft_replies_move_the_generator_to_where_a_discriminator_that_stays_is_higher() -> None:
    trainer, generator, discriminator = new_players("gumbel")
    for step in range(20):
        trainer.step(step, [histories(step)], 16)
    part = histories(77, 64)

    def mean_score() -> float:
        replies = drawn_replies(
            generator.model, [real.history for _, real in part], 4, 4, [END], [(9, row) for row, _ in part]
        )
        own = [Exchange(real.history, reply) for (_, real), some in zip(part, replies, strict=True) for reply in some]
        with torch.no_grad():
            return float(discriminator.model.eval()(pack([exchange.sequence for exchange in own])).mean())

    before = mean_score()
    trainer._settings = dataclasses.replace(trainer._settings, discriminator_learning_rate=0.0)
    for step in range(20, 60):
        trainer.step(step, [histories(step)], 16, train_generator=True)
    assert mean_score() > before + 1.0


@pytest.mark.parametrize("kind", ["lstm", "llama"])
def test_soft_replies_are_draws_whose_scores_have_a_gradient(kind: str, tiny_llama: Path) -> None:
    def make(seed: int) -> Any:
        if kind == "lstm":
            return small_lstm(seed, vocab=300)
        torch.manual_seed(seed)
        return load_model(tiny_llama, torch.float32, PACKED_ATTENTION)

    model, judge = make(0), Discriminator(make(1)).eval()
    vocabulary, objective = model.config.vocab_size, Generate(5, 0.0, 0.0, 0.0)
    noise = -(-torch.rand(4, 5, vocabulary, generator=torch.Generator().manual_seed(0)).log()).log()
    before = [torch.zeros(len(exchange.reply)) for some in OURS for exchange in some]
    plain = objective.batch_of(REALS, OURS, torch.zeros(2, 2), before)
    batch = SoftBatch(plain, REALS, noise, judge, [END])
    one_hot, replies = soft_replies(model, batch)
    for row, reply in enumerate(replies):
        exchange = Exchange(REALS[row // 2].history, reply)
        places = pack([exchange.sequence])
        logits = model(
            input_ids=places.input_ids, position_ids=places.position_ids, sequence_lengths=places.sequence_lengths
        ).logits[0, places.predictors]
        assert reply == (logits + noise[row, : len(reply)]).argmax(-1).tolist()  # the Gumbel-max trick
        torch.testing.assert_close(one_hot[row, : len(reply)], F.one_hot(torch.tensor(reply), vocabulary).float())
    loss, figures = objective.loss_sum(model, batch)
    scores = [judge(pack([Exchange(REALS[row // 2].history, reply).sequence])) for row, reply in enumerate(replies)]
    reals = [judge(pack([REALS[row // 2].sequence])) for row in range(4)]
    expected = -F.logsigmoid(torch.cat(scores) - torch.cat(reals)).sum() / 2
    assert float(loss) == pytest.approx(float(expected), abs=1e-4)
    assert figures["gan"] == pytest.approx(float(expected), abs=1e-4)
    loss.backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in judge.parameters())


def likeness(generator: TorchEngine) -> float:
    """The share of sampled replies that begin like the real ones."""
    part = histories(77, 64)
    replies = drawn_replies(
        generator.model, [real.history for _, real in part], 1, 4, [END], [(9, r) for r, _ in part]
    )
    return sum(some[0][0] == real.reply[0] for some, (_, real) in zip(replies, part, strict=True)) / 64


def test_a_loss_that_is_not_a_number_ends_training_with_its_name(players: Callable[[], Players]) -> None:
    trainer, _, discriminator = players()
    with torch.no_grad():
        discriminator.model.score.weight.fill_(math.inf)
    with pytest.raises(ValueError, match=r"discriminator's loss is nan at step 4; .*discriminator_learning_rate"):
        trainer.step(3, [histories(3)], 16)


def test_adversarial_training_resumes_exactly_from_a_checkpoint(
    players: Callable[[], Players], tmp_path: Path
) -> None:
    def play(trainer: AdversarialTrainer, steps: range) -> list[dict[str, float]]:
        return [trainer.step(step, [histories(step)], 16, train_generator=step > 2) for step in steps]

    trainer, *_ = players()
    undisturbed = play(trainer, range(9))
    trainer, *engines = players()
    assert play(trainer, range(6)) == undisturbed[:6]
    for engine, name in zip(engines, "gd", strict=True):
        (tmp_path / name).mkdir()
        engine.snapshot()(tmp_path / name)
    torch.save(trainer.state(), tmp_path / "duel.pt")
    trainer, *engines = players()
    for engine, name in zip(engines, "gd", strict=True):
        engine.load(tmp_path / name)
    trainer.load_state(torch.load(tmp_path / "duel.pt", weights_only=False))
    assert play(trainer, range(6, 9)) == undisturbed[6:]


def test_the_division_of_histories_into_micro_batches_changes_no_step(players: Callable[[], Players]) -> None:
    together, apart = players()[0], players()[0]
    for step in range(5):
        part = histories(step)
        one = together.step(step, [part], 16, train_generator=step > 1)
        two = apart.step(step, [part[:9], part[9:], None], 16, train_generator=step > 1)
        if step < 1:  # later steps replay other pairs for D
            assert two == pytest.approx(one, abs=1e-5)
    assert math.isfinite(two["loss"])


def test_own_replies_are_rejected_and_the_last_real_one_is_chosen() -> None:
    model = small_lstm()
    rows = [
        {"input_ids": [1, 2, 3, 4, 5, 6, 7], "supervised": [True, True, False, False, True, True, True]},
        {"input_ids": [8, 9, END], "supervised": [False, True, True]},
    ]
    found = own_pairs(model, rows, 2, [END], [(0, 1), (0, 2)])
    assert found["input_ids"] == [[1, 2, 3, 4, 5, 6], [8, 9, END]]
    assert found["supervised"] == [[False] * 4 + [True] * 2, [False, True, True]]
    for row, (ids, supervised) in enumerate(zip(found["other_input_ids"], found["other_supervised"], strict=True)):
        history = found["input_ids"][row][: supervised.count(False)]
        own = ids[len(history) :]
        assert ids[: len(history)] == history
        assert [own] == drawn_replies(model, [history], 1, 2, [END], [(0, row + 1)])[0]
        assert found["num_targets"][row] == 2 + len(own)
        expected = float(token_log_probabilities(model, Exchange(history, own)).sum())
        assert found["other_reference_log_probability"][row] == pytest.approx(expected, abs=1e-4)


def test_a_reply_is_chosen_and_cut() -> None:
    row = {
        "input_ids": list(range(10)),
        "supervised": [True, True, False, True, True, True, False, False, True, True],
    }
    for number, (begin, end) in enumerate([(1, 2), (3, 5), (8, 10)]):
        found = exchange_of(row, 2, lambda n, number=number: number if n == 3 else -1)  # type: ignore[misc]
        assert found == Exchange(list(range(begin)), list(range(begin, end)))


def test_a_discriminator_is_saved_and_opened(tmp_path: Path, tiny_llama: Path) -> None:
    discriminator = Discriminator(load_model(tiny_llama, torch.float32, PACKED_ATTENTION))
    batch = pack([exchange.sequence for exchange in REALS])
    discriminator.save_pretrained(tmp_path, discriminator.state_dict())
    again = Discriminator(load_model(tmp_path, torch.float32, PACKED_ATTENTION)).load_score(tmp_path)
    torch.testing.assert_close(again(batch), discriminator(batch))
    states = hidden_states(discriminator.reader, batch, torch.arange(batch.input_ids.shape[1]))
    each = discriminator.score(states)[:, 0]  # of 3 + 3 and 2 + 2 tokens
    torch.testing.assert_close(discriminator(batch), torch.stack([each[3:6].sum(), each[8:10].sum()]))
