"""Base and tuned model compared: losses on the same tokens, replies to the same prompts, facts in the replies."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from models.base import adapters
from models.base.load import load_model, load_tokenizer
from models.base.new_tokens import fit_embeddings
from models.chat import Conversation, encode_prompt, end_token_ids
from models.generation import evaluating, greedy_replies, own_attention
from models.kernels.attention import PACKED_ATTENTION
from models.kernels.loss import supervised_loss_sum
from models.objectives.preference import sequence_log_probabilities
from models.packing import PackedBatch


class BaseAndTuned:
    """A base model and its trained version. With an adapter both are one model, with the adapter on or off."""

    def __init__(
        self, base_folder: Path | str, checkpoint_folder: Path | str, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        self.tokenizer = load_tokenizer(checkpoint_folder)
        self._has_adapter = adapters.is_adapter(checkpoint_folder)
        base = load_model(base_folder, dtype, PACKED_ATTENTION)
        if self._has_adapter:
            self._tuned = adapters.load(base, checkpoint_folder).eval()
            self._base = self._tuned
        else:
            fit_embeddings(base, base_folder, self.tokenizer)
            self._base, self._tuned = base.to(device), load_model(checkpoint_folder, dtype, PACKED_ATTENTION)
        self._tuned.to(device)
        self._device = torch.device(device)
        self._ends = sorted(end_token_ids(self.tokenizer))

    def loss_sums(self, batch: PackedBatch) -> tuple[float, float]:
        """Loss sums in nats of base and tuned model on a packed batch."""
        batch = batch.to(self._device)
        with torch.inference_mode():
            with self._base_model() as model:
                base = float(supervised_loss_sum(model, batch))
            return base, float(supervised_loss_sum(self._tuned, batch))

    def log_probabilities(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [C] of base and tuned model: the summed log-probabilities of each sequence's targets, in nats."""
        batch = batch.to(self._device)
        with torch.inference_mode():
            with self._base_model() as model:
                base = sequence_log_probabilities(model, batch).cpu()
            return base, sequence_log_probabilities(self._tuned, batch).cpu()

    def replies(self, conversations: Sequence[Conversation], max_new_tokens: int) -> tuple[list[str], list[str]]:
        """Greedy replies of base and tuned model to each conversation, all in one batch."""
        prompts = [encode_prompt(self.tokenizer, each.messages, each.tools) for each in conversations]
        with self._base_model() as model:
            base = self._generate(model, prompts, max_new_tokens)
        return base, self._generate(self._tuned, prompts, max_new_tokens)

    def _generate(self, model: Any, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
        with evaluating(model, own_attention(model)):
            replies = greedy_replies(model, prompts, max_new_tokens, self._ends)
        texts = self.tokenizer.batch_decode(replies, skip_special_tokens=True)
        return [text.strip() for text in texts]

    @contextlib.contextmanager
    def _base_model(self) -> Iterator[Any]:
        with self._base.disable_adapter() if self._has_adapter else contextlib.nullcontext():
            yield self._base


def count_facts(reply: str, facts: Sequence[Sequence[str]]) -> int:
    """How many of the facts are in the reply, each in any one of its spellings, ignoring case."""
    text = " ".join(reply.lower().split())
    return sum(any(_stands_in(spelling.lower(), text) for spelling in spellings) for spellings in facts)


def _stands_in(spelling: str, text: str) -> bool:
    """Whether `text` contains the spelling, and not only inside a longer number: 145 days are not 45 days."""
    before = r"(?<!\d)" if spelling[0].isdigit() else ""
    after = r"(?!\d)" if spelling[-1].isdigit() else ""
    return re.search(before + re.escape(spelling) + after, text) is not None
