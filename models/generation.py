"""Replies of a plain transformers model, several prompts in one batch: greedy or sampled."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from models.errors import RayconteurError


def greedy_replies(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, end_tokens: Sequence[int]
) -> list[list[int]]:
    """The greedy reply to each prompt, including its end token, of at most `max_new_tokens`.

    The model must use one of transformers' attention implementations.
    """
    ids, mask = _padded(prompts, end_tokens[0], model.device)
    longest, pad = ids.shape[1], end_tokens[0]
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


def drawn_replies(
    model: Any,
    prompts: Sequence[Sequence[int]],
    num_replies: int,
    max_new_tokens: int,
    end_tokens: Sequence[int],
    seeds: Sequence[Sequence[int]],
    temperature: float = 1.0,
) -> list[list[list[int]]]:
    """`num_replies` sampled replies to each prompt, each including its end token.

    Each prompt is prefilled once, and its replies share a copy of the cache. A prompt's replies depend only on its
    own seed (any integers), not on the rest of the batch: `numpy` draws a number in [0, 1) for each token, and the
    token is where the cumulative probabilities exceed it.
    """
    draws = np.stack([np.random.default_rng(list(seed)).random((num_replies, max_new_tokens)) for seed in seeds])
    numbers = torch.from_numpy(draws).view(-1, max_new_tokens).to(model.device)

    def choose(logits: torch.Tensor, step: int, rows: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        token = _draw(logits, temperature, numbers[rows, step])
        return token, {"input_ids": token[:, None]}

    with torch.inference_mode():
        rows = chosen_replies(model, prompts, num_replies, max_new_tokens, end_tokens, choose)
    return [rows[start : start + num_replies] for start in range(0, len(rows), num_replies)]


def chosen_replies(
    model: Any,
    prompts: Sequence[Sequence[int]],
    num_replies: int,
    max_new_tokens: int,
    end_tokens: Sequence[int],
    choose: Callable[[torch.Tensor, int, torch.Tensor], tuple[torch.Tensor, dict[str, torch.Tensor]]],
) -> list[list[int]]:
    """`num_replies` to each prompt, prompt by prompt, each including its end token.

    `choose(logits [B, V], step, rows)` gives the next token of replies number `rows`, int64 [B], and the model's
    input for them: an argument of its forward pass, `input_ids` [B, 1] or `inputs_embeds` [B, 1, H]. Replies that
    have ended leave the batch once they are a quarter of it.
    """
    plain = getattr(model, "module", model)  # DeepSpeed's engine wraps the model
    ids, mask = _padded(prompts, end_tokens[0], plain.device)
    ends = torch.tensor(list(end_tokens), device=plain.device)
    rows = torch.arange(len(prompts) * num_replies, device=plain.device)
    chosen = torch.full((len(rows), max_new_tokens), end_tokens[0], device=plain.device)
    with evaluating(plain, own_attention(plain)):
        logits, cache = _read_prompts(model, ids, mask, num_replies)
        mask = mask.repeat_interleave(num_replies, 0)
        goes_on = torch.ones(len(rows), dtype=torch.bool, device=plain.device)
        for step in range(max_new_tokens):
            token, read = choose(logits, step, rows)
            chosen[rows, step] = token
            goes_on &= ~torch.isin(token, ends)
            number = int(goes_on.sum())
            if step == max_new_tokens - 1 or not number:
                break
            if number <= 0.75 * len(rows):
                kept = goes_on.nonzero()[:, 0]
                rows, mask, goes_on = rows[kept], mask[kept], goes_on[kept]
                read = {name: value[kept] for name, value in read.items()}
                cache.batch_select_indices(kept)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            output = model(
                **read, attention_mask=mask, position_ids=_positions(mask)[:, -1:], past_key_values=cache,
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            logits = output.logits[:, -1]
    return [_to_first_end(row, end_tokens) for row in chosen.tolist()]


def _read_prompts(model: Any, ids: torch.Tensor, mask: torch.Tensor, num_replies: int) -> tuple[torch.Tensor, Any]:
    """The logits [B, V] after each prompt and the cache of all prompts, each of them `num_replies` times."""
    output = model(
        input_ids=ids, attention_mask=mask, position_ids=_positions(mask), use_cache=True, logits_to_keep=1
    )
    cache = getattr(output, "past_key_values", None)
    if cache is None:
        name = getattr(model, "module", model).config.model_type
        raise RayconteurError(
            f"base_model: {name} has no key-value cache, and several replies to one prompt need it; choose another "
            "model, or an objective that generates no replies"
        )
    cache.batch_repeat_interleave(num_replies)
    return output.logits[:, -1].repeat_interleave(num_replies, 0), cache


def own_attention(model: Any) -> str:
    """The attention that transformers chooses for a model (its own, or one that PEFT has wrapped)."""
    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    return str(plain.get_correct_attn_implementation(None))


@contextlib.contextmanager
def evaluating(model: Any, attention: str) -> Iterator[None]:
    """Within the block, `model` (transformers' or PEFT's) has no dropout and uses this attention."""
    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    usual, was_training = plain.config._attn_implementation, model.training
    model.eval()
    if usual != attention:
        plain.set_attn_implementation(attention)
    try:
        yield
    finally:
        if usual != attention:
            plain.set_attn_implementation(usual)
        model.train(was_training)


def _draw(logits: torch.Tensor, temperature: float, numbers: torch.Tensor) -> torch.Tensor:
    """int64 [B]: for each row of `logits` [B, V] the token whose interval of [0, 1) contains the row's number."""
    reached = torch.softmax(logits.double() / temperature, dim=-1).cumsum(dim=-1)
    return torch.searchsorted(reached, (numbers * reached[:, -1])[:, None], right=True)[:, 0].clamp(
        max=logits.shape[1] - 1
    )


def _padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and their mask, int64 [B, longest], padded on the left."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad] * (longest - len(prompt)) + [*prompt] for prompt in prompts], device=device)
    return ids, torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Each token's position in its row, padding not counted, [B, T]."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _to_first_end(tokens: list[int], end_tokens: Sequence[int]) -> list[int]:
    end = next((index for index, token in enumerate(tokens) if token in end_tokens), len(tokens))
    return tokens[: end + 1]
