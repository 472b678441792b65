"""Preference optimization: DPO, ORPO and SimPO from pairs of replies, KTO from single replies.

Notation: log p(y) is the sum of the log-probabilities of a reply's supervised tokens under the trained model, |y|
their number, r(y) = log p(y) - log p_ref(y) with the stored values of the reference model, s the logistic function. A
pair has a chosen reply y_w and a rejected one y_l to the same prompt.

A row's two sequences are packed one after the other: chosen, rejected, chosen, rejected... They share their prompt
(models/packing.py). Columns whose names start with `other_` belong to the second sequence.

Shape suffixes: E examples in a batch; 2E sequences.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from models.chat import EncodedConversation, common_prompt
from models.kernels.loss import log_probabilities
from models.packing import PackedBatch, pack_replies

_WHICH = ("", "other_")
_SEQUENCES = ("input_ids", "supervised", "other_input_ids", "other_supervised")
_REFERENCE = ("reference_log_probability", "other_reference_log_probability")


def sequence_log_probabilities(model: Any, batch: PackedBatch) -> torch.Tensor:
    """float32 [C]: for each sequence of the batch, the sum of the log-probabilities of its targets, in nats."""
    tokens = log_probabilities(model, batch)
    return tokens.new_zeros(batch.num_sequences).index_add(0, batch.target_sequences, tokens)


def pack_both(rows: Sequence[Mapping[str, Any]], values: dict[str, torch.Tensor] | None = None) -> PackedBatch:
    """Both sequences of every row in one packed batch, whose weight is the number of rows; a prompt is read once."""
    sequences = []
    for row in rows:
        one, other = (EncodedConversation(row[f"{which}input_ids"], row[f"{which}supervised"]) for which in _WHICH)
        prompt = common_prompt(one, other)
        for each in (one, other):
            sequences.append((each.input_ids[:prompt], each.input_ids[prompt:], each.supervised[prompt:]))
    return pack_replies(sequences, weight=len(rows), values=values)


def reference_values(model: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """log p_ref of both sequences of every row, by column."""
    found = sequence_log_probabilities(model, pack_both(rows).to(model.device)).view(-1, 2)
    return dict(zip(_REFERENCE, found.T.tolist(), strict=True))


def _with_reference(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    return {"reference": torch.tensor([[row[name] for name in _REFERENCE] for row in rows], dtype=torch.float32)}


def _target_counts(batch: PackedBatch) -> torch.Tensor:
    """float32 [E, 2]: |y| of both replies of every example."""
    counts = torch.bincount(batch.target_sequences, minlength=batch.num_sequences)
    return counts.float().view(-1, 2)


def _figures(margins: torch.Tensor) -> dict[str, float]:
    """Sums over a batch; `margins` [E] are positive where the model prefers the chosen reply."""
    margins = margins.detach()
    return {"accuracy": float((margins > 0).sum()), "margin": float(margins.sum())}


class Dpo:
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    L = -log s(z) with z = beta (r(y_w) - r(y_l)). With label smoothing e, the probability that a pair's label is
    wrong, L = -(1 - e) log s(z) - e log s(-z) (conservative DPO, Mitchell 2023). The margin is z.
    """

    columns: tuple[str, ...] = (*_SEQUENCES, *_REFERENCE)
    per_example = True

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        self.beta, self.label_smoothing = beta, label_smoothing

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> PackedBatch:
        return pack_both(rows, _with_reference(rows))

    def loss_sum(self, model: Any, batch: PackedBatch) -> tuple[torch.Tensor, dict[str, float]]:
        ratios = sequence_log_probabilities(model, batch).view(-1, 2) - batch.values["reference"]
        margins = self.beta * (ratios[:, 0] - ratios[:, 1])
        losses = -(1 - self.label_smoothing) * F.logsigmoid(margins) - self.label_smoothing * F.logsigmoid(-margins)
        return losses.sum(), _figures(margins)


class Simpo:
    """Simple preference optimization (Meng et al. 2024, arXiv:2405.14734, eq. 6); needs no reference model.

    L = -log s(m - gamma) with m = beta (log p(y_w) / |y_w| - log p(y_l) / |y_l|). The margin is m.
    """

    columns: tuple[str, ...] = _SEQUENCES
    per_example = True

    def __init__(self, beta: float = 2.0, gamma: float = 1.0) -> None:
        self.beta, self.gamma = beta, gamma

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> PackedBatch:
        return pack_both(rows)

    def loss_sum(self, model: Any, batch: PackedBatch) -> tuple[torch.Tensor, dict[str, float]]:
        means = sequence_log_probabilities(model, batch).view(-1, 2) / _target_counts(batch)
        margins = self.beta * (means[:, 0] - means[:, 1])
        return -F.logsigmoid(margins - self.gamma).sum(), _figures(margins)


class Orpo:
    """Odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691, eq. 4 to 7); needs no reference model.

    With P(y) = exp(log p(y) / |y|) and odds(y) = P(y) / (1 - P(y)):
    L = -log P(y_w) - weight log s(log(odds(y_w) / odds(y_l))). The margin is the log of the odds ratio.
    """

    columns: tuple[str, ...] = _SEQUENCES
    per_example = True

    def __init__(self, weight: float = 0.1) -> None:
        self.weight = weight

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> PackedBatch:
        return pack_both(rows)

    def loss_sum(self, model: Any, batch: PackedBatch) -> tuple[torch.Tensor, dict[str, float]]:
        means = sequence_log_probabilities(model, batch).view(-1, 2) / _target_counts(batch)
        log_odds = means - torch.log(-torch.expm1(means))
        margins = log_odds[:, 0] - log_odds[:, 1]
        return (-means[:, 0] - self.weight * F.logsigmoid(margins)).sum(), _figures(margins)


class Kto:
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8), from single labeled replies.

    L = desirable_weight (1 - s(beta (r(y) - z))) for a desirable reply, undesirable_weight (1 - s(beta (z - r(y))))
    for an undesirable one. The reference point z estimates KL(p || p_ref): the mean of r over mismatched replies (a
    row's second sequence: its prompt with a reply to another prompt), at least 0, without a gradient. The mean is
    over the micro-batch, so `train.batch_tokens` affects the accuracy of z. The margin is beta (r - z) for desirable
    replies and beta (z - r) for undesirable ones.
    """

    columns: tuple[str, ...] = (*_SEQUENCES, *_REFERENCE, "desirable")
    per_example = True

    def __init__(self, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> None:
        self.beta = beta
        self.desirable_weight, self.undesirable_weight = desirable_weight, undesirable_weight

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> PackedBatch:
        desirable = torch.tensor([row["desirable"] for row in rows])
        return pack_both(rows, {**_with_reference(rows), "desirable": desirable})

    def loss_sum(self, model: Any, batch: PackedBatch) -> tuple[torch.Tensor, dict[str, float]]:
        ratios = sequence_log_probabilities(model, batch).view(-1, 2) - batch.values["reference"]
        reference_point = ratios[:, 1].detach().mean().clamp(min=0.0)
        desirable = batch.values["desirable"]
        signs = desirable.float() * 2 - 1
        weights = torch.where(desirable, self.desirable_weight, self.undesirable_weight)
        margins = self.beta * signs * (ratios[:, 0] - reference_point)
        return (weights * torch.sigmoid(-margins)).sum(), _figures(margins)
