"""Distillation (Hinton et al. 2015, arXiv:1503.02531): the student learns the teacher's whole distribution, or, by
`teacher_replies`, from replies that the teacher writes (Kim and Rush 2016, arXiv:1606.07947, section 3.2).

The teacher's K most likely tokens and their log-probabilities are stored at every supervised position; what else it
holds likely is not known singly. So both models are compared over K + 1 outcomes: each of the teacher's K tokens, and
"any other token", whose probability is what the K leave over. With q the teacher's and p the student's probabilities
of these outcomes, and softened by the temperature T to q_T = q^(1/T) / sum q^(1/T), p_T likewise:

L = plain_share (-log p(x)) + (1 - plain_share) T^2 KL(q_T || p_T),   x the token that really comes

T^2 keeps the gradient's size whatever T. At T = 1 the divergence is a lower bound of that of the whole distributions.
At another T the tokens outside the K are softened as one outcome, not each by itself. "Any other token" is never less
likely than 1e-6. Renormalising the K instead would leave the student free to put any mass outside them.
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

# float32 knows 1 - sum(p) no better.
_LEAST_REST = 1e-6


def teacher_values(
    model: Any, rows: Sequence[Mapping[str, Any]], top_k: int, vocabulary: int
) -> dict[str, list[Any]]:
    """The teacher's `top_k` likeliest tokens at every target of every row, by column; flat, [targets x K].

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
    """The rows with their last reply replaced by the teacher's greedy one, which alone is supervised, by column.

    Greedy stands for the mode of the teacher's distribution over replies, which Kim and Rush find by beam search.
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
    """`models.objectives.Objective`; of each token the loss is in nats."""

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
        """[S, K + 1]: log-probabilities of the K tokens and of any other, at the temperature."""
        rest = (1 - log_p.exp().sum(1, keepdim=True)).clamp(min=_LEAST_REST).log()
        return torch.log_softmax(torch.cat([log_p, rest], dim=1) / self.temperature, dim=1)
