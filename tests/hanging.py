"""A replica whose engine hangs in the middle of a reply if the request has a special seed."""

import threading
from typing import Any

import torch

from serve.deployment.chat_replica import ChatReplica
from serve.engines.sampling import Sampler

SEED, TOKENS = 4711, 5


class HangingReplica(ChatReplica):
    """An engine whose thread hangs after TOKENS tokens of a reply with SEED."""

    def __init__(self, *settings: Any, **engine: Any) -> None:
        draw = Sampler.draw

        def hang(sampler: Sampler, logits: torch.Tensor) -> int:
            if sampler._request.seed == SEED and sampler._drawn.total() >= TOKENS:
                threading.Event().wait()
            return draw(sampler, logits)

        Sampler.draw = hang  # type: ignore[method-assign]
        super().__init__(*settings, **engine)
