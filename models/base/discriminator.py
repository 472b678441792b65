"""The discriminator: a causal language model that scores a reply with one number.

discriminator = Discriminator(load_model(folder, torch.float32, PACKED_ATTENTION))
scores = discriminator(batch)             # float32 [C], one for each sequence of the packed batch

A score is a logit: the higher, the more the reply looks like the data's. Trained on pairs of a real and a generated
reply to the same history (models/objectives/adversarial.py) it approaches
log p_data(y|h) - log p_generator(y|h) + c(h).

Shape suffixes: C sequences in a packed batch, H hidden size.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models.base import adapters
from models.base.load import load_model
from models.kernels.attention import PACKED_ATTENTION
from models.kernels.rows import is_read_in_rows
from models.packing import PackedBatch

SCORE_FILE = "score.safetensors"
_MOST = "max_reply_tokens"


class Discriminator(torch.nn.Module):
    """A linear layer over the reader's hidden states; the reader's own output head is not used.

    Every token of a reply adds to its score, as it does to log p_data(y|h) - log p_generator(y|h). A score read only
    from the reply's last hidden state is learned far more slowly (docs/log.md).
    """

    def __init__(self, reader: Any, max_reply_tokens: int | None = None) -> None:
        """`max_reply_tokens`: how many tokens of a reply it reads at most, None for all."""
        super().__init__()
        self.max_reply_tokens = max_reply_tokens
        self.reader = reader
        if hasattr(reader, "peft_config"):
            self.peft_config = reader.peft_config
        head = reader.get_output_embeddings()
        self.score = torch.nn.Linear(head.weight.shape[1], 1, device=head.weight.device, dtype=torch.float32)
        torch.nn.init.zeros_(self.score.bias)
        if head.weight is not reader.get_input_embeddings().weight:
            head.requires_grad_(False)

    def forward(self, batch: PackedBatch, inputs_embeds: torch.Tensor | None = None) -> torch.Tensor:
        """float32 [C]: for each sequence the sum of `score(hidden state)` over its reply, the supervised tokens.
        `inputs_embeds` [1, T, H] replaces the ids.
        """
        hidden = hidden_states(self.reader, batch, batch.target_positions, inputs_embeds)
        tokens = self.score(hidden.to(self.score.weight.dtype))[:, 0].float()
        zeros: torch.Tensor = tokens.new_zeros(batch.num_sequences)
        return zeros.index_add(0, batch.target_sequences, tokens)

    def save_pretrained(self, folder: Path, state_dict: dict[str, torch.Tensor], **options: Any) -> None:
        """The reader as a Hugging Face folder, the linear layer beside it, with the weights of `state_dict`."""
        reader, score = (
            {name.removeprefix(prefix): weight for name, weight in state_dict.items() if name.startswith(prefix)}
            for prefix in ("reader.", "score.")
        )
        self.reader.save_pretrained(folder, state_dict=reader, **options)
        facts = {} if self.max_reply_tokens is None else {_MOST: str(self.max_reply_tokens)}
        save_file({name: weight.contiguous() for name, weight in score.items()}, folder / SCORE_FILE, facts)

    def load_score(self, folder: Path) -> "Discriminator":
        """Load the linear layer that `save_pretrained` wrote."""
        with safe_open(folder / SCORE_FILE, "pt") as file:
            most = (file.metadata() or {}).get(_MOST)
        self.max_reply_tokens = None if most is None else int(most)
        self.score.load_state_dict(load_file(folder / SCORE_FILE))
        return self


def open_discriminator(folder: Path, base_folder: Path | None = None) -> Discriminator:
    """The one saved in `folder`, in float32, for inference; for an adapter, `base_folder` has the base model."""
    if adapters.is_adapter(folder):
        assert base_folder is not None
        reader = adapters.load(load_model(base_folder, torch.float32, PACKED_ATTENTION), folder)
    else:
        reader = load_model(folder, torch.float32, PACKED_ATTENTION)
    return Discriminator(reader).load_score(folder).eval()


def release_discriminator(base_folder: Path, checkpoint_folder: Path, target: Path) -> None:
    """Write a checkpoint's discriminator as a plain folder in bf16; an adapter is merged in float32 first."""
    discriminator = open_discriminator(checkpoint_folder, base_folder)
    if adapters.is_adapter(checkpoint_folder):
        discriminator.reader = adapters.merge(discriminator.reader)
    discriminator.reader.to(torch.bfloat16)
    discriminator.save_pretrained(target, discriminator.state_dict())


def drawn_by_softmax(scores: Sequence[float], random: np.random.Generator) -> int:
    """The index of a reply sampled with probabilities exp(score) / sum of exp(scores)."""
    weights = np.exp(np.asarray(scores) - max(scores))
    return int(random.choice(len(scores), p=weights / weights.sum()))


def sequence_ends(batch: PackedBatch) -> torch.Tensor:
    """int64 [C]: the position of each sequence's last token in the row."""
    return torch.tensor(batch.sequence_lengths, device=batch.input_ids.device).cumsum(0) - 1


def hidden_states(
    model: Any, batch: PackedBatch, positions: torch.Tensor, inputs_embeds: torch.Tensor | None = None
) -> torch.Tensor:
    """[P, H]: the head's inputs at these positions; `inputs_embeds` [1, T, H] replaces the ids."""
    arguments = {
        "input_ids": batch.input_ids if inputs_embeds is None else None,
        "inputs_embeds": inputs_embeds,
        "position_ids": batch.position_ids,
        "sequence_lengths": batch.sequence_lengths,
        "prefixes": batch.prefixes,
        "logits_to_keep": positions,
        "use_cache": False,
    }
    if is_read_in_rows(model):
        states: torch.Tensor = model(**arguments, only_hidden=True).logits[0]
        return states
    seen: list[torch.Tensor] = []

    def see(module: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        seen.append(args[0])
        return (args[0][:, :1],)  # the head's output is not used: one position is little work

    hook = model.get_output_embeddings().register_forward_pre_hook(see)
    try:
        model(**arguments)
    finally:
        hook.remove()
    return seen[0][0]
