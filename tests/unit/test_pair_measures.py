"""Measures of generated replies, for cases with a known result."""

import math

import pytest
import torch

from models.base.discriminator import Discriminator, hidden_states
from models.base.lstm import LstmConfig, LstmForCausalLM
from models.exchange import Exchange, packed
from models.kernels.attention import PACKED_ATTENTION
from models.measures.adversarial import (
    distinct,
    embeddings,
    frechet_distance,
    fresh_accuracy,
    length_accuracy,
    linear_accuracy,
    readings,
    reply_log_probabilities,
    reranked_log_probabilities,
    scores_of,
    self_bleu,
)


def lstm(seed: int = 0) -> LstmForCausalLM:
    torch.manual_seed(seed)
    model = LstmForCausalLM(LstmConfig(vocab_size=20, hidden_size=16, initializer_range=0.4)).eval()
    model.set_attn_implementation(PACKED_ATTENTION)
    return model


def exchanges(count: int, seed: int, low: int = 1, high: int = 10) -> list[Exchange]:
    """Histories of three tokens, and replies of four tokens from `low` to `high` - 1 and an end token."""
    draw = torch.Generator().manual_seed(seed)
    histories = torch.randint(1, 20, (count, 3), generator=draw).tolist()
    replies = torch.randint(low, high, (count, 4), generator=draw).tolist()
    return [Exchange(history, [*reply, 0]) for history, reply in zip(histories, replies, strict=True)]


@pytest.mark.parametrize(("low", "high", "least", "most"), [(1, 10, 0.4, 0.6), (10, 20, 0.95, 1.0)])
def test_a_fresh_discriminator_detects_differences_and_nothing_else(
    low: int, high: int, least: float, most: float
) -> None:
    pairs = list(zip(exchanges(200, 0), exchanges(200, 1, low, high), strict=True))
    tests = list(zip(exchanges(400, 2), exchanges(400, 3, low, high), strict=True))
    assert least <= fresh_accuracy(lstm, pairs, tests, steps=60, learning_rate=0.01) <= most
    assert length_accuracy(pairs, tests) == 0.5  # all lengths are equal


def test_lengths_alone_tell_longer_from_shorter() -> None:
    short, long = Exchange([1], [2, 0]), Exchange([1], [2, 3, 4, 0])
    assert length_accuracy([(long, short)], [(long, short), (short, long), (long, long)]) == 0.5
    assert length_accuracy([(long, short)], [(long, short)] * 3 + [(short, long)]) == 0.75
    assert length_accuracy([(short, long)], [(short, long)] * 3 + [(long, short)]) == 0.75


def test_distinct_counts_different_tokens_and_pairs() -> None:
    assert distinct([[1, 2, 1, 2], [1, 2]], 1) == 2 / 6
    assert distinct([[1, 2, 1, 2], [1, 2]], 2) == 2 / 4
    assert math.isnan(distinct([[1]], 2))


def test_replies_that_repeat_each_other_have_a_high_self_bleu() -> None:
    assert self_bleu([[1, 2, 3, 4, 5]] * 3) == pytest.approx(1.0)
    assert self_bleu([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13, 14, 15]]) < 0.05
    # 4 of 5 tokens, 3 of 4 bigrams, 2 of 3 trigrams and 1 of 2 four-grams are in the other reply.
    assert self_bleu([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6]]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert math.isnan(self_bleu([[1, 2]]))


def test_a_replys_log_probability_is_that_of_its_tokens() -> None:
    model, reals = lstm(), exchanges(5, 0)
    found = reply_log_probabilities(model, reals)
    for real, log_p in zip(reals, found.tolist(), strict=True):
        ids = torch.tensor([[*real.history, *real.reply]])
        logits = model(ids).logits[0, len(real.history) - 1 : -1].double().log_softmax(-1)
        assert log_p == pytest.approx(float(logits.gather(1, torch.tensor(real.reply)[:, None]).sum()), abs=1e-4)


def test_the_distance_of_gaussians_is_that_of_their_means_and_spreads() -> None:
    draw = torch.Generator().manual_seed(0)
    cloud = torch.randn(4000, 3, generator=draw, dtype=torch.float64)
    assert frechet_distance(cloud, cloud) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(cloud, cloud + torch.tensor([3.0, 0.0, 4.0])) == pytest.approx(25, abs=1e-6)
    # For N(0, 1) and N(0, 9) in three dimensions: 3 (1 + 9 - 2 * 3)
    wide = 3 * torch.randn(4000, 3, generator=draw, dtype=torch.float64)
    assert frechet_distance(cloud, wide) == pytest.approx(12, rel=0.05)


def test_embeddings_are_the_last_hidden_states() -> None:
    model, some = lstm(), exchanges(20, 0)
    found = embeddings(model, some)
    seen: list[torch.Tensor] = []
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0][0, -1]))
    for exchange in some:
        model(input_ids=torch.tensor([[*exchange.history, *exchange.reply]]))
    torch.testing.assert_close(found, torch.stack(seen).double(), atol=1e-5, rtol=1e-4)


def test_the_pair_as_one_model() -> None:
    model, discriminator = lstm(0), Discriminator(lstm(1)).eval()
    reals = exchanges(3, 0)
    groups = [[real, *(Exchange(real.history, [5, number, 0]) for number in range(1, 5))] for real in reals]
    log_p, reranked = reranked_log_probabilities(model, reals, scores_of(discriminator, groups))
    with torch.no_grad():
        discriminator.score.weight.zero_()
    _, without = reranked_log_probabilities(model, reals, scores_of(discriminator, groups))
    torch.testing.assert_close(without, log_p)
    assert bool((reranked - log_p <= math.log(5) + 1e-9).all())
    assert not torch.allclose(reranked, log_p)
    row = [*reals[0].history, *reals[0].reply]
    scores = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
    expected = sum(float(scores[place - 1, row[place]]) for place in range(3, len(row)))
    assert float(log_p[0]) == pytest.approx(expected, abs=1e-4)


def test_replies_with_one_history_are_computed_as_if_alone() -> None:
    model, some = lstm(), exchanges(6, 0)
    groups = [[real, Exchange(real.history, [5, 0]), Exchange(real.history, [7, 8, 0])] for real in some]
    found = readings(model, groups)
    assert found.shape == (6, 3, 2, 16)
    for group, read in zip(groups, found, strict=True):
        torch.testing.assert_close(read[:, 1].double(), embeddings(model, group), atol=1e-5, rtol=1e-4)
        batch = packed(group)
        sums = [own.sum(0) for own in hidden_states(model, batch, batch.target_positions).split([5, 2, 3])]
        torch.testing.assert_close(read[:, 0], torch.stack(sums), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("shift", "least", "most"), [(0.0, 0.45, 0.55), (0.5, 0.74, 0.79), (5.0, 1.0, 1.0)])
def test_a_linear_discriminator_is_as_right_as_the_best_one(shift: float, least: float, most: float) -> None:
    # 5 of 30 features are shifted; the best discriminator uses their sum, which is normal: 0.785 with a shift of 0.5.
    draw = torch.Generator().manual_seed(0)
    reals, others = torch.randn(2, 1000, 30, generator=draw)
    reals[:, :5] += shift
    assert least <= linear_accuracy(reals, others) <= most


def test_the_accuracy_for_equal_replies_is_one_half() -> None:
    same = torch.ones(40, 3)
    assert linear_accuracy(same, same) == 0.5
