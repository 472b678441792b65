"""Greedy replies of a plain transformers model, several prompts in one batch."""

from collections.abc import Sequence
from typing import Any

import torch


def greedy_replies(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, end_tokens: Sequence[int]
) -> list[list[int]]:
    """The likeliest next tokens of each prompt, up to and with the first end token, at most `max_new_tokens`.

    The model must use an attention of transformers' own.
    """
    longest, pad = max(len(prompt) for prompt in prompts), end_tokens[0]
    ids = torch.tensor([[pad] * (longest - len(prompt)) + [*prompt] for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(end_tokens),
            pad_token_id=pad,
        )
    return [_to_first_end(row, end_tokens) for row in output[:, longest:].tolist()]


def _to_first_end(tokens: list[int], end_tokens: Sequence[int]) -> list[int]:
    end = next((index for index, token in enumerate(tokens) if token in end_tokens), len(tokens))
    return tokens[: end + 1]
