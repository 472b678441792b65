"""The quality of generated replies, measured by discriminators that the generator was not trained against.

    accuracy = fresh_accuracy(make_reader, pairs, tests, steps=200)          # 0.5: indistinguishable from real ones
    accuracy = linear_accuracy(read[:, 0], read[:, 1])                       # of a linear discriminator
    distance = frechet_distance(embeddings(model, reals), embeddings(model, generated))

A pair is a real exchange and a generated one, truncated and ended in the same way. Adversarial success (Li et al.
2017, arXiv:1701.06547) is 1 - accuracy.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from models.base.discriminator import Discriminator, drawn_by_softmax, hidden_states, sequence_ends
from models.exchange import Exchange, packed
from models.generation import drawn_replies
from models.kernels.loss import log_probabilities
from models.objectives.adversarial import Discriminate
from models.packing import pack
from models.training.engine import TorchEngine

Pairs = Sequence[tuple[Exchange, Exchange]]

_AT_ONCE = 16
_HISTORIES_AT_ONCE = 4
_REPLIES_AT_ONCE = 128
_RIDGES = [10.0**power for power in range(5)]
_CONTROL_SEED = 2_000_003


def fresh_accuracy(
    make_reader: Callable[[], Any],
    pairs: Pairs,
    tests: Pairs,
    steps: int,
    learning_rate: float,
    seed: int = 0,
    on_step: Callable[[], object] = lambda: None,
) -> float:
    """Train a discriminator on `pairs` alone; the share of `tests` in which it gives the real exchange the higher
    score. `on_step` is called after each training step.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        engine = TorchEngine(Discriminator(make_reader()), Discriminate(), weight_decay=0.01)
        random, objective = np.random.default_rng(seed), Discriminate()
        order: list[int] = []
        for step in range(steps):
            while len(order) < _AT_ONCE:
                order += random.permutation(len(pairs)).tolist()
            batch = objective.batch_of([pairs[index] for index in order[:_AT_ONCE]])
            del order[:_AT_ONCE]
            engine.accumulate(batch.to(engine.device), batch.weight)
            engine.update(learning_rate * (1 - step / steps))
            on_step()
    right = 0.0
    for start in range(0, len(tests), _AT_ONCE):
        batch = objective.batch_of(tests[start : start + _AT_ONCE])
        right += engine.measure(batch.to(engine.device))["accuracy"]
    return right / len(tests)


class FreshDiscriminators:
    """Measures generated replies against real ones to the same histories, with newly trained discriminators."""

    def __init__(
        self, reals: Sequence[Exchange], base: Any, make_reader: Callable[[], Any], steps: int, learning_rate: float,
        on_step: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        """`base` embeds replies; `make_reader` makes the model of a new discriminator, which trains for `steps`."""
        self._reals, self._base, self._make_reader = reals, base, make_reader
        self._steps, self._learning_rate, self._on_step = steps, learning_rate, on_step

    def of(self, own: Sequence[Exchange]) -> dict[str, float]:
        """Figures for one reply to each history."""
        pairs = list(zip(self._reals, own, strict=True))
        replies = [exchange.reply for exchange in own]
        return {
            "fresh_accuracy": round(self._fresh(pairs), 4),
            "length_accuracy": round(length_accuracy(pairs[::2], pairs[1::2]), 4),
            "frechet_distance": round(frechet_distance(self._embedded_reals, embeddings(self._base, own)), 4),
            **diversity(replies),
        }

    def controls(self, vocabulary: int) -> dict[str, float]:
        """Sanity checks: real against real should give about 0.5, random tokens about 1."""
        random, reals = np.random.default_rng(_CONTROL_SEED), self._reals
        others = [reals[index - 2] for index in range(len(reals))]  # from the same half: each is on either side once
        noise = [Exchange(real.history, random.integers(vocabulary, size=len(real.reply)).tolist()) for real in reals]
        return {
            "real_against_real": round(self._fresh(list(zip(reals, others, strict=True))), 4),
            "random_tokens": round(self._fresh(list(zip(reals, noise, strict=True))), 4),
        }

    @functools.cached_property
    def _embedded_reals(self) -> torch.Tensor:
        return embeddings(self._base, self._reals)

    def _fresh(self, pairs: Pairs) -> float:
        learned, tests = pairs[::2], pairs[1::2]
        return fresh_accuracy(
            self._make_reader, learned, tests, self._steps, self._learning_rate, on_step=self._on_step
        )


def drawn_to(
    reals: Sequence[Exchange], model: Any, count: int, max_reply_tokens: int, end_tokens: Sequence[int],
    temperature: float, seed: int,
) -> list[list[Exchange]]:  # fmt: skip
    """`count` replies of the model to each history."""
    found: list[list[Exchange]] = []
    at_once = max(1, _REPLIES_AT_ONCE // count)
    for start in range(0, len(reals), at_once):
        some = reals[start : start + at_once]
        replies = drawn_replies(
            model, [real.history for real in some], count, max_reply_tokens, end_tokens,
            seeds=[(seed, start + index) for index in range(len(some))], temperature=temperature,
        )  # fmt: skip
        found += [[Exchange(real.history, reply) for reply in own] for real, own in zip(some, replies, strict=True)]
    return found


def scores_of(discriminator: Discriminator, groups: Sequence[Sequence[Exchange]]) -> list[list[float]]:
    """A discriminator's logit of each reply; a group has the replies to one history."""
    device = discriminator.score.weight.device
    with torch.no_grad():
        return [discriminator(packed(group).to(device)).tolist() for group in groups]


def best_of(drawn: Sequence[Sequence[Exchange]], scores: Sequence[Sequence[float]], seed: int) -> list[Exchange]:
    """One of the replies to each history, sampled by the softmax of their scores, as the endpoint does."""
    random = np.random.default_rng(seed)
    return [own[drawn_by_softmax(some, random)] for own, some in zip(drawn, scores, strict=True)]


def readings(model: Any, groups: Sequence[Sequence[Exchange]]) -> torch.Tensor:
    """float32 [histories, n, 2, H]: the sum of a model's last hidden states over each of n replies to a history, and
    the last one of them; each history is read once.
    """
    parts = []
    with torch.no_grad():
        for start in range(0, len(groups), _HISTORIES_AT_ONCE):
            some = groups[start : start + _HISTORIES_AT_ONCE]
            batch = packed([exchange for group in some for exchange in group]).to(model.device)
            hidden = hidden_states(model, batch, batch.target_positions).float()
            sums = hidden.new_zeros(batch.num_sequences, hidden.shape[1])
            sums.index_add_(0, batch.target_sequences, hidden)
            ends = hidden[batch.target_sequences.bincount().cumsum(0) - 1]
            parts.append(torch.stack([sums, ends], dim=1).view(len(some), -1, 2, hidden.shape[1]).cpu())
    return torch.cat(parts)


def linear_accuracy(reals: torch.Tensor, others: torch.Tensor) -> float:
    """The share of pairs in which a linear discriminator over a frozen model's features of replies, both [N, F],
    gives the real one the higher score. Pairs with even indices are judged by one trained on the odd ones, and the
    other way round; equal scores count half.

    Its loss is L_D (models/objectives/adversarial.py) plus a ridge penalty, chosen by fitting to one half of the
    training pairs and testing on the other. Both are convex, so it is trained to convergence.
    """
    differences = (reals - others).double()
    differences /= differences.square().mean(0).sqrt().clamp(min=1e-9)
    halves = differences[::2], differences[1::2]
    margins = torch.cat([asked @ _weights(learned) for learned, asked in (halves, halves[::-1])])
    return float((margins > 0).double().mean() + (margins == 0).double().mean() / 2)


def _weights(differences: torch.Tensor) -> torch.Tensor:
    """The weights [F] of a linear discriminator; rows of `differences` [N, F] are real minus generated features."""
    halves = differences[::2], differences[1::2]

    def loss(ridge: float) -> float:
        fits = ((asked, _fitted(learned, ridge)) for learned, asked in (halves, halves[::-1]))
        return sum(float(-F.logsigmoid(asked @ weights).sum()) for asked, weights in fits)

    return _fitted(differences, min(_RIDGES, key=loss))


def _fitted(differences: torch.Tensor, ridge: float) -> torch.Tensor:
    weights = differences.new_zeros(differences.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        found = -F.logsigmoid(differences @ weights).sum() + ridge / 2 * weights.square().sum()
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach()


def length_accuracy(pairs: Pairs, tests: Pairs) -> float:
    """The accuracy of a discriminator that sees only the replies' lengths, and learns from `pairs` which one is
    usually longer; equal lengths count half.
    """

    def longer(some: Pairs) -> float:
        wins = [
            (len(real.reply) > len(other.reply)) + 0.5 * (len(real.reply) == len(other.reply)) for real, other in some
        ]
        return sum(wins) / len(wins)

    found = longer(tests)
    return found if longer(pairs) >= 0.5 else 1 - found


def distinct(replies: Sequence[Sequence[int]], n: int) -> float:
    """distinct-n (Li et al. 2016, arXiv:1510.03055): the share of n-grams of tokens that are distinct."""
    grams = [tuple(reply[at : at + n]) for reply in replies for at in range(len(reply) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


def self_bleu(replies: Sequence[Sequence[int]], most: int = 200) -> float:
    """The mean BLEU-4 of a reply against all others (Zhu et al. 2018, arXiv:1802.01886), 0 to 1: the higher, the less
    diverse. Over the tokens of the first `most` replies; nan for fewer than two.
    """
    from sacrebleu.metrics import BLEU

    texts = [" ".join(map(str, reply)) for reply in replies[:most]]
    if len(texts) < 2:
        return math.nan
    bleu = BLEU(tokenize="none", effective_order=True)
    scores = [bleu.sentence_score(text, texts[:at] + texts[at + 1 :]).score for at, text in enumerate(texts)]
    return float(sum(scores) / len(scores) / 100)


def diversity(replies: Sequence[Sequence[int]]) -> dict[str, float]:
    """distinct-1, distinct-2 and self-BLEU."""
    found = {"distinct_1": distinct(replies, 1), "distinct_2": distinct(replies, 2), "self_bleu": self_bleu(replies)}
    return {name: round(value, 4) for name, value in found.items()}


def embeddings(model: Any, exchanges: Sequence[Exchange]) -> torch.Tensor:
    """float64 [exchanges, H]: the model's last hidden state at the end of each."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(exchanges), _AT_ONCE):
            batch = pack([exchange.sequence for exchange in exchanges[start : start + _AT_ONCE]]).to(model.device)
            parts.append(hidden_states(model, batch, sequence_ends(batch)).double().cpu())
    return torch.cat(parts)


def frechet_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Between two Gaussians fitted to [N, H] and [M, H]: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al.
    2017, arXiv:1706.08500, eq. 6). Few embeddings make it larger: compare only equal numbers of them.
    """
    first, second = (torch.cov(each.T) for each in (one, other))
    difference = float((one.mean(0) - other.mean(0)).square().sum())
    # The eigenvalues of a product of two covariances are real and not negative.
    root = torch.linalg.eigvals(first @ second).real.clamp(min=0).sqrt().sum()
    return difference + float(torch.trace(first) + torch.trace(second) - 2 * root)


def reply_log_probabilities(model: Any, exchanges: Sequence[Exchange]) -> torch.Tensor:
    """float64 [exchanges]: log p(y|h) of each reply, its end token included."""
    with torch.no_grad():
        batches = (pack([each.sequence]).to(model.device) for each in exchanges)
        found = [float(log_probabilities(model, batch).double().sum()) for batch in batches]
    return torch.tensor(found, dtype=torch.float64)


def reranked_log_probabilities(
    model: Any, reals: Sequence[Exchange], scores: Sequence[Sequence[float]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 [histories] twice: log p(y*|h), and log p(y*|h) + D(h, y*) - log Z(h), generator and discriminator as
    one model (a residual energy-based model, Deng et al. 2020, arXiv:2004.11714). `scores`: for each history D of the
    real reply, then of n replies sampled from p.

    Z is the mean of exp(D) over the n sampled replies and the real one. Including the real one bounds the gain by
    log(n + 1), and its mean by the divergence of p from the data, for any D; without it the estimate would be too
    high.
    """
    logits = torch.tensor(scores, dtype=torch.float64)
    log_p = reply_log_probabilities(model, reals)
    return log_p, log_p + logits.log_softmax(dim=1)[:, 0] + math.log(logits.shape[1])
