"""L_GAN of an adversarial pair by straight-through Gumbel-softmax: the discriminator's gradient reaches the
generator through the replies themselves; the policy gradient uses only their scores.

    y_t = argmax(l_t + g_t), l_t the logits, g_t sampled from Gumbel(0, 1): y_t is a sample from softmax(l_t)
    the next step reads onehot(y_t), and its gradient goes to softmax(l_t + g_t)
    L_GAN = -log s(D(h, y) - D(h, y*))

(Jang et al. 2017, arXiv:1611.01144, section 2.2, at temperature 1; the loss is the relativistic generator's,
Jolicoeur-Martineau 2018, arXiv:1807.00734.) Both models must have the same vocabulary.

Shape suffixes: B sampled replies, E histories with B / E of them each, T tokens of the longest, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from models.base.discriminator import Discriminator
from models.exchange import Exchange
from models.generation import chosen_replies
from models.packing import PackedBatch, pack


@dataclass(frozen=True)
class SoftBatch:
    """A batch of `Generate.batch_of`, and the noise to sample replies again."""

    plain: PackedBatch
    reals: Sequence[Exchange]
    noise: torch.Tensor
    """float32 [B, T, V], from Gumbel(0, 1)"""
    judge: Discriminator
    end_tokens: Sequence[int]

    @property
    def weight(self) -> int:
        """Histories."""
        return self.plain.weight

    def to(self, device: torch.device) -> "SoftBatch":
        """The same batch on another device."""
        return replace(self, plain=self.plain.to(device), noise=self.noise.to(device))


def soft_replies(model: Any, batch: SoftBatch) -> tuple[torch.Tensor, list[list[int]]]:
    """float [B, T, V]: one-hot replies with a gradient, arbitrary after their ends; and their tokens, each including
    its end token.
    """
    histories = [real.history for real in batch.reals]
    embedded = getattr(model, "module", model).get_input_embeddings().weight
    drawn: list[torch.Tensor] = []

    def choose(logits: torch.Tensor, step: int, rows: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        soft = torch.softmax(logits.float() + batch.noise[rows, step], dim=-1)
        token = soft.argmax(dim=-1)
        one_hot = F.one_hot(token, soft.shape[1]) + soft - soft.detach()
        drawn.append(one_hot.new_zeros(len(batch.noise), soft.shape[1]).index_copy(0, rows, one_hot))
        return token, {"inputs_embeds": (one_hot.to(embedded.dtype) @ embedded)[:, None]}

    count, most = len(batch.noise) // len(histories), batch.noise.shape[1]
    replies = chosen_replies(model, histories, count, most, batch.end_tokens, choose)
    return torch.stack(drawn, dim=1), replies


def soft_loss(model: Any, batch: SoftBatch) -> torch.Tensor:
    """L_GAN: the sum over histories of the mean over their replies. The discriminator's weights get no gradient."""
    judge, reals = batch.judge, batch.reals
    count = len(batch.noise) // len(reals)
    one_hot, replies = soft_replies(model, batch)
    own = [
        Exchange(real.history, reply)
        for real, reply in zip([real for real in reals for _ in range(count)], replies, strict=True)
    ]
    packed = pack([exchange.sequence for exchange in own]).to(batch.noise.device)
    frozen = {name: parameter.detach() for name, parameter in judge.named_parameters()}
    embedded = judge.reader.get_input_embeddings().weight.detach()
    ours = torch.cat([some[: len(reply)] for some, reply in zip(one_hot, replies, strict=True)])
    read = embedded[packed.input_ids[0]].index_copy(0, packed.target_positions, ours.to(embedded.dtype) @ embedded)
    was_training = judge.training
    judge.eval()
    try:
        scores = torch.func.functional_call(judge, frozen, (packed,), {"inputs_embeds": read[None]})
        with torch.no_grad():
            of_reals = judge(pack([real.sequence for real in reals]).to(batch.noise.device))
    finally:
        judge.train(was_training)
    return -F.logsigmoid(scores - of_reals.repeat_interleave(count)).sum() / count
