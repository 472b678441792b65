"""The next token from a model's scores."""

import torch

from serve.engines.base import SMALLEST_TEMPERATURE


def sample(logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Draw a token id from `logits` (one per vocabulary entry), on the CPU so that a seed means one thing.

    top_p keeps the likeliest tokens until their probabilities reach it, at least one.
    """
    if temperature < SMALLEST_TEMPERATURE or top_p == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.float().cpu() / temperature, dim=-1)
    if top_p < 1:
        ordered, token_ids = probabilities.sort(descending=True)
        probability_before = ordered.cumsum(dim=-1) - ordered
        ordered[probability_before >= top_p] = 0
        return int(token_ids[torch.multinomial(ordered, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))
