"""Distillation (Hinton et al. 2015, arXiv:1503.02531): the student learns the teacher's distribution, or, with
`teacher_replies`, from replies that the teacher writes (Kim and Rush 2016, arXiv:1606.07947, section 3.2).

The teacher's K most likely tokens and their log-probabilities are stored at every supervised position; the others'
probabilities are not. So both models are compared over K + 1 outcomes: each of the teacher's K tokens, and "any other
token", with the remaining probability. With q the teacher's and p the student's probabilities of these outcomes, and
the temperature T, which softens them to q_T = q^(1/T) / sum q^(1/T), and p to p_T likewise:

L = plain_share (-log p(x)) + (1 - plain_share) T^2 KL(q_T || p_T),   x the actual token

T^2 makes the gradient's size independent of T. At T = 1 the divergence is a lower bound of that of the whole
distributions. At another T the tokens outside the K are softened as one outcome, not individually. The probability of
"any other token" is at least 1e-6. Renormalizing the K instead would not limit the student's probability outside
them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from models.base.sizes import max_positions
from models.generation import greedy_replies
from models.kernels.loss import log_probabilities, top_log_probabilities
from models.packing import PackedBatch, pack_trees
from models.trees import COLUMNS, replies_of, tree_of

# The precision of 1 - sum(p) in float32.
_LEAST_REST = 1e-6


def teacher_values(
    model: Any, rows: Sequence[Mapping[str, Any]], top_k: int, vocabulary: int
) -> dict[str, list[Any]]:
    """The teacher's `top_k` most likely tokens at every target of every row, by column; flat, [targets x K].

    `vocabulary`: the student's; a teacher may have more (unused) rows in its head.
    """
    batch = pack_trees([tree_of(row) for row in rows]).to(model.device)
    tokens, log_q = top_log_probabilities(model, batch, top_k, vocabulary)
    counts = torch.bincount(batch.target_sequences, minlength=len(rows)).tolist()
    columns = {"teacher_tokens": tokens, "teacher_log_probabilities": log_q}
    return {
        name: [part.flatten().tolist() for part in torch.split(values, counts)] for name, values in columns.items()
    }


def teacher_replies(
    model: Any, rows: Sequence[Mapping[str, Any]], max_reply_tokens: int, end_tokens: Sequence[int]
) -> dict[str, list[Any]]:
    """The rows, by column, with the last reply replaced by the teacher's greedy one, the only supervised reply.

    The greedy reply approximates the mode of the teacher's distribution, which Kim and Rush find by beam search.
    """
    prompts = [replies_of(row)[-1][0] for row in rows]
    room = max_positions(model.config) - max(len(prompt) for prompt in prompts)
    replies = greedy_replies(model, prompts, min(max_reply_tokens, room), end_tokens)
    return {
        "input_ids": [[*prompt, *reply] for prompt, reply in zip(prompts, replies, strict=True)],
        "supervised": [
            [False] * len(prompt) + [True] * len(reply) for prompt, reply in zip(prompts, replies, strict=True)
        ],
        "piece_lengths": [[]] * len(rows),
        "piece_parents": [[]] * len(rows),
        "num_tokens": [len(prompt) + len(reply) for prompt, reply in zip(prompts, replies, strict=True)],
        "num_targets": [len(reply) for reply in replies],
    }


class Distill:
    """`models.objectives.base.Objective`; the loss per token is in nats."""

    columns: tuple[str, ...] = (*COLUMNS, "teacher_tokens", "teacher_log_probabilities")
    per_example = False

    def __init__(self, temperature: float = 1.0, plain_share: float = 0.5, top_k: int = 32) -> None:
        self.temperature, self.plain_share, self.top_k = temperature, plain_share, top_k

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> PackedBatch:
        """`teacher_tokens` and `teacher_log_probabilities` of a row are flat: [targets x K]."""
        tokens = np.concatenate([np.asarray(row["teacher_tokens"], dtype=np.int64) for row in rows])
        log_q = np.concatenate([np.asarray(row["teacher_log_probabilities"], dtype=np.float32) for row in rows])
        values = {
            "teacher_tokens": torch.from_numpy(tokens).view(-1, self.top_k),
            "teacher_log_probabilities": torch.from_numpy(log_q).view(-1, self.top_k),
        }
        return pack_trees([tree_of(row) for row in rows], values=values)

    def loss_sum(self, model: Any, batch: PackedBatch) -> tuple[torch.Tensor, dict[str, float]]:
        tokens = torch.cat([batch.targets[:, None], batch.values["teacher_tokens"]], dim=1)
        log_p = log_probabilities(model, batch, tokens)
        plain = -log_p[:, 0].sum()
        soft_q = self._softened(batch.values["teacher_log_probabilities"])
        soft_p = self._softened(log_p[:, 1:])
        divergence = (soft_q.exp() * (soft_q - soft_p)).sum()
        loss = self.plain_share * plain + (1 - self.plain_share) * self.temperature**2 * divergence
        return loss, {"plain_loss": float(plain.detach()), "divergence": float(divergence.detach())}

    def _softened(self, log_p: torch.Tensor) -> torch.Tensor:
        """[S, K + 1]: log-probabilities of the K tokens and of any other token, at the temperature."""
        rest = (1 - log_p.exp().sum(1, keepdim=True)).clamp(min=_LEAST_REST).log()
        return torch.log_softmax(torch.cat([log_p, rest], dim=1) / self.temperature, dim=1)
