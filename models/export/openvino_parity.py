"""Checks that an exported model computes the same as transformers, before any export is kept.

Shape suffixes: T tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from models.errors import RayconteurError
from models.export.openvino_runtime import ExportedModel, Logits

_PROMPT_LENGTHS = (6, 48)
_REPLY_TOKENS = 16

# Logits may differ by this share of their standard deviation: the largest difference for the float32 export, the root
# mean square for rounded weights. Measured on SmolLM2-135M: 7e-5, bf16 6e-6 (the model is bf16), int8 0.064.
_LARGEST_EXACT = 0.01
_LARGEST_ROUNDED = {"bf16": 0.05, "int8": 0.25, "int4": 0.9}


@dataclass(frozen=True)
class Reply:
    """Random tokens and transformers' greedy reply to them, in float32."""

    prompt_ids: list[int]
    reply_ids: list[int]
    logits: Logits
    """float32 [T, V]: the logits after every token of prompt and reply except the last"""


def reference_replies(model: Any) -> list[Reply]:
    """The replies to compare with; `model` is a float32 transformers model with its own attention."""
    draw = np.random.default_rng(0)
    vocabulary = model.config.get_text_config().vocab_size
    return [_reply(model, draw.integers(vocabulary, size=length).tolist()) for length in _PROMPT_LENGTHS]


def _reply(model: Any, prompt_ids: list[int]) -> Reply:
    """With a cache, which takes half the time."""
    ids, unread, cache = list(prompt_ids), list(prompt_ids), None
    logits: list[Logits] = []
    with torch.inference_mode():
        for _ in range(_REPLY_TOKENS):
            output = model(input_ids=torch.tensor([unread]), past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits[0].float().numpy())
            unread = [int(logits[-1][-1].argmax())]
            ids += unread
    return Reply(prompt_ids, ids[len(prompt_ids) :], np.concatenate(logits))


def check_exact(exported: Any, replies: Sequence[Reply]) -> None:
    """Raise RayconteurError unless a float32 `openvino.Model` gives the same greedy tokens, read token by token, and
    nearly the same logits."""
    logits = _read_like(exported, replies)
    for reply, found in zip(replies, logits, strict=True):
        tokens = found[len(reply.prompt_ids) - 1 :].argmax(-1).tolist()
        if tokens != reply.reply_ids:
            first = next(n for n, token in enumerate(tokens) if token != reply.reply_ids[n])
            raise RayconteurError(
                f"optimize: the OpenVINO export is not exact: after {len(reply.prompt_ids)} random tokens its greedy "
                f"token {first} is {tokens[first]}, and transformers' is {reply.reply_ids[first]}; "
                "serve this model with serve.engine: torch"
            )
    change = max(float(np.abs(found - reply.logits).max()) for reply, found in zip(replies, logits, strict=True))
    _refuse_above(change / _spread(replies), _LARGEST_EXACT, "largest change of a logit in float32")


def check_rounded(exported: Any, replies: Sequence[Reply], weights: str) -> None:
    """Raise RayconteurError if rounding the weights changed the logits by more than the limit."""
    logits = _read_like(exported, replies)
    changes = [found - reply.logits for reply, found in zip(replies, logits, strict=True)]
    change = float(np.sqrt(np.mean(np.concatenate(changes) ** 2)))
    _refuse_above(change / _spread(replies), _LARGEST_ROUNDED[weights], f"root mean square change by {weights}")


def _read_like(exported: Any, replies: Sequence[Reply]) -> list[Logits]:
    """The logits for the same tokens: each prompt at once, then its reply token by token."""
    model = ExportedModel(exported, "fp32")
    found = []
    for reply in replies:
        model.restart()
        parts = [model.read(reply.prompt_ids), *(model.read([token]) for token in reply.reply_ids[:-1])]
        found.append(np.concatenate(parts))
    return found


def _spread(replies: Sequence[Reply]) -> float:
    return float(np.concatenate([reply.logits for reply in replies]).std())


def _refuse_above(change: float, bound: float, what: str) -> None:
    if not change <= bound:  # also if it is NaN
        raise RayconteurError(
            f"optimize: the OpenVINO export is not exact: {what} is {change:.4f} standard deviations of the logits, "
            f"at most {bound} are allowed; serve this model with serve.engine: torch"
        )
