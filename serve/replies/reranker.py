"""The best of several replies, by a release's discriminator (models/base/discriminator.py).

best = await Reranker(folder).chooser("softmax", seed=0)(prompt_ids, replies)

A reply sampled by the softmax of the scores of n generated replies has, for growing n, the distribution
p(y|h) exp(D(h, y)) / Z: sampling-importance-resampling from the residual energy-based model of generator and
discriminator (Deng et al. 2020, arXiv:2004.11714).
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from models.base.discriminator import drawn_by_softmax, open_discriminator
from models.exchange import Exchange, packed
from serve.protocol.responses import BestOf
from serve.replies.completion import Choose


class Reranker:
    """Scores replies in its own thread."""

    def __init__(self, folder: Path) -> None:
        self._discriminator = open_discriminator(folder)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reranker")

    def chooser(self, by: str, seed: int | None) -> Choose:
        """A function that chooses one of a prompt's replies `by` argmax or softmax; the same seed gives the same
        choice.
        """

        async def choose(prompt_ids: list[int], replies: list[list[int]]) -> BestOf:
            loop = asyncio.get_running_loop()
            scores = await loop.run_in_executor(self._thread, self.scores, prompt_ids, replies)
            random = np.random.default_rng(None if seed is None else seed % 2**64)
            chosen = int(np.argmax(scores)) if by == "argmax" else drawn_by_softmax(scores, random)
            return BestOf(scores=scores, chosen=chosen)

        return choose

    def scores(self, prompt_ids: list[int], replies: list[list[int]]) -> list[float]:
        """The discriminator's logit of each reply, truncated to the length that it was trained on."""
        most = self._discriminator.max_reply_tokens
        exchanges = [Exchange(prompt_ids, reply[:most]) for reply in replies]
        with torch.inference_mode():
            found = self._discriminator(packed(exchanges))
        return [round(float(score), 4) for score in found]
