"""Adversarial training: a generator p(y|h) of replies, and a discriminator D(h, y) that distinguishes them from real
ones. The objective is L = L_GAN + L_L1 of the project's specification, in a form that can be trained.

As specified, D(x) = 1/2 sigmoid(...) never exceeds 1/2, so nothing counts as real, and a generator that is a sigmoid
of noise is not a distribution over tokens. Here D is a logit that also reads the history h, and the generator is a
softmax over tokens. The parts keep their roles: D distinguishes real from generated replies, L_GAN moves the
generator toward a higher D, and L_L1 keeps its predictions close to the real reply.

Notation: y* is the real reply, y a reply of the generator to the same history, s the logistic function.

The discriminator (Jolicoeur-Martineau 2018, arXiv:1807.00734: relativistic; the same as Bradley and Terry 1952
for pairs):

    L_D = -log s(D(h, y*) - D(h, y))

Its minimum is D = log p_data(y|h) - log p(y|h) + c(h), for any c.

The generator:

    L_G = L_GAN + l1_weight L_L1 + likelihood_weight L_NLL + kl_weight KL

L_GAN = -A(y) log p(y|h), the policy gradient (Williams 1992, REINFORCE; Yu et al. 2017, arXiv:1609.05473) with
the advantage A: D's scores of n replies to one history, whitened among them (Shao et al. 2024, arXiv:2402.03300),
which cancels c(h).

L_L1 = sum over t of ||onehot(y*_t) - p(.|h, y*_<t)||_1 = 2 (1 - p(y*_t|h, y*_<t)), teacher-forced: twice the total
variation between both (Ji et al. 2023, arXiv:2302.13344, with gamma = 1).

L_NLL = -log p(y*|h), the negative log-likelihood. KL: the divergence of p from the generator at the start of the
adversarial phase, by the estimator r - 1 - log r with r = p_start(y_t)/p(y_t) on the generator's own replies, which
is never negative (Schulman 2020; Shao et al. 2024).

All four are sums over tokens, divided by the number of histories and by `max_reply_tokens`, so that short replies do
not get a larger weight (Liu et al. 2025, arXiv:2503.20783).

Shape suffixes: E histories in a batch, N replies to each, S targets.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from models.exchange import Exchange, packed
from models.kernels.loss import log_probabilities
from models.objectives.sft import Sft
from models.packing import PackedBatch

_LEAST_DEVIATION = 1e-4


def whiten(scores: torch.Tensor) -> torch.Tensor:
    """float32 [E, N]: advantages from the scores of N replies to each history, with mean 0 and deviation 1 in each
    row.
    """
    centred = scores - scores.mean(dim=1, keepdim=True)
    return centred / scores.std(dim=1, keepdim=True, correction=0).clamp(min=_LEAST_DEVIATION)


class Discriminate:
    """L_D over pairs; `accuracy` counts the pairs in which the real reply has the higher score."""

    def batch_of(self, pairs: Sequence[tuple[Exchange, Exchange]]) -> PackedBatch:
        """Pairs of a real and a generated reply; neighbours with the same real reply share it. The batch's weight is
        the number of pairs.
        """
        exchanges: list[Exchange] = []
        places: list[tuple[int, int]] = []
        for number, (real, generated) in enumerate(pairs):
            if not number or real is not pairs[number - 1][0]:
                place = len(exchanges)
                exchanges.append(real)
            exchanges.append(generated)
            places.append((place, len(exchanges) - 1))
        return packed(exchanges, weight=len(pairs), values={"pairs": torch.tensor(places)})

    def loss_sum(self, model: Any, batch: PackedBatch) -> tuple[torch.Tensor, dict[str, float]]:
        """`model` is a `models.base.discriminator.Discriminator`."""
        real, generated = model(batch)[batch.values["pairs"]].unbind(1)
        margins = real - generated
        detached = margins.detach()
        return -F.logsigmoid(margins).sum(), {
            "accuracy": float((detached > 0).sum()),
            "margin": float(detached.sum()),
        }


class Generate(Sft):
    """L_G over histories with their real reply and N generated ones; before the adversarial phase, L_NLL alone."""

    def __init__(
        self,
        max_reply_tokens: int,
        l1_weight: float = 0.01,
        likelihood_weight: float = 0.5,
        kl_weight: float = 0.001,
    ) -> None:
        self._max_reply_tokens = max_reply_tokens
        self._l1, self._likelihood, self._kl = l1_weight, likelihood_weight, kl_weight

    def batch_of(
        self, reals: Sequence[Exchange], generated: Sequence[Sequence[Exchange]], advantages: torch.Tensor,
        start: Sequence[torch.Tensor],
    ) -> PackedBatch:  # fmt: skip
        """`advantages` [E, N], zeros if L_GAN is computed elsewhere (models/objectives/gumbel.py); `start`: the
        log-probabilities of each generated reply's tokens at the start of the adversarial phase, reply by reply.
        """
        groups = [[real, *replies] for real, replies in zip(reals, generated, strict=True)]
        exchanges = [exchange for group in groups for exchange in group]
        lengths = torch.tensor([len(exchange.reply) for exchange in exchanges])
        is_real = torch.tensor([place == 0 for group in groups for place in range(len(group))])
        ours = iter(start)
        before = [
            torch.zeros(len(e.reply)) if real else next(ours) for e, real in zip(exchanges, is_real, strict=True)
        ]
        return packed(
            exchanges,
            weight=len(reals),
            values={
                "advantage": F.pad(advantages, (1, 0)).flatten().repeat_interleave(lengths),
                "start": torch.cat(before),
                "is_real": is_real.repeat_interleave(lengths),
            },
        )

    def loss_sum(self, model: Any, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
        """The generator's loss for a batch of `batch_of`, or a `SoftBatch` with one; the figures are its parts before
        weighting.
        """
        from models.objectives.gumbel import SoftBatch, soft_loss

        if isinstance(batch, SoftBatch):
            others, figures = self.loss_sum(model, batch.plain)
            gan = soft_loss(model, batch)
            return others + gan, figures | {"gan": float(gan.detach())}
        if "is_real" not in batch.values:
            return super().loss_sum(model, batch)
        log_p = log_probabilities(model, batch)
        is_real = batch.values["is_real"]
        real, ours = log_p[is_real], log_p[~is_real]
        num_replies = max(1, batch.num_sequences // batch.weight - 1)
        log_ratio = batch.values["start"][~is_real] - ours
        parts = {
            "gan": -(batch.values["advantage"][~is_real] * ours).sum() / num_replies,
            "l1": 2 * (1 - real.exp()).sum(),
            "nll": -real.sum(),
            "kl": (log_ratio.exp() - 1 - log_ratio).sum() / num_replies,
        }
        weights = {"gan": 1.0, "l1": self._l1, "nll": self._likelihood, "kl": self._kl}
        total = sum(weights[name] * part for name, part in parts.items()) / self._max_reply_tokens
        return total, {name: float(part.detach()) / self._max_reply_tokens for name, part in parts.items()}
