"""What it saves to compute a history once for all replies to it, instead of once per reply.

    python benchmarks/shared_history.py

SmolLM2 on one thread. As a discriminator: a training step over four histories with 1 and with 4 sampled replies
beside each real one, and the scores of 8 replies to one prompt, as for `best_of`; and a step of DPO. Both sides
alternate; CPU seconds, the median of three. The last line is one JSON object.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from models.base import adapters
from models.base.discriminator import Discriminator
from models.base.load import BUILTIN_SMOLLM2, load_model, resolve
from models.exchange import Exchange, packed
from models.kernels.attention import PACKED_ATTENTION
from models.objectives.adversarial import Discriminate
from models.objectives.preference import Dpo
from models.packing import PackedBatch, pack
from models.training.engine import TorchEngine

TIMES = 3


def exchanges(histories: int, history_tokens: int, replies: int, reply_tokens: int) -> list[list[Exchange]]:
    """Histories with replies of random tokens."""
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(100, 40_000, (count,), generator=draw).tolist()

    return [
        [Exchange(history, tokens(reply_tokens)) for _ in range(replies)]
        for history in (tokens(history_tokens) for _ in range(histories))
    ]


def each(some: Sequence[Exchange], weight: int, **values: torch.Tensor) -> PackedBatch:
    """Rows that repeat the history before each reply."""
    return pack([exchange.sequence for exchange in some], weight, values)


def compare(
    name: str, once: PackedBatch, before: PackedBatch, work: Callable[[PackedBatch], Any]
) -> dict[str, float]:
    """The seconds of both, and their ratio."""
    batches = {"once": once, "each": before}
    seconds: dict[str, list[float]] = {side: [] for side in batches}
    for _ in range(TIMES):
        for side, batch in batches.items():
            began = time.process_time()
            work(batch)
            seconds[side].append(time.process_time() - began)
    found = {side: round(statistics.median(times), 2) for side, times in seconds.items()}
    tokens = {side: batch.input_ids.shape[1] for side, batch in batches.items()}
    print(
        f"{name}: {found['once']} s ({tokens['once']} tokens), {found['each']} s ({tokens['each']} tokens)",
        flush=True,
    )
    return found | {"ratio": round(found["each"] / found["once"], 2)}


def main() -> None:
    torch.set_num_threads(1)
    folder = resolve(BUILTIN_SMOLLM2)
    reader = load_model(folder, torch.float32, PACKED_ATTENTION)
    judge = Discriminator(reader).eval()

    def score(batch: PackedBatch) -> Any:
        with torch.inference_mode():
            return judge(batch)

    [replies] = exchanges(1, 400, 8, 32)
    found = {
        "best_of_8": compare("8 replies of 32 tokens to a prompt of 400", packed(replies), each(replies, 8), score)
    }
    adapter = adapters.attach(reader, 16, 32.0, 0.0, "all-linear", base=str(folder))
    engine = TorchEngine(Discriminator(adapter), Discriminate())

    def learn(batch: PackedBatch) -> Any:
        engine.accumulate(batch, batch.weight)
        return engine.update(1e-4)

    for drawn in (1, 4):
        pairs = [(real, own) for real, *some in exchanges(4, 60, 1 + drawn, 14) for own in some]
        both = each([exchange for pair in pairs for exchange in pair], len(pairs))
        both.values["pairs"] = torch.arange(2 * len(pairs)).view(-1, 2)
        name = f"a step of 4 histories of 60 tokens, {drawn} pairs each"
        found[f"step_{drawn}"] = compare(name, Discriminate().batch_of(pairs), both, learn)
    engine = TorchEngine(adapter, Dpo())
    replies = [reply for some in exchanges(4, 120, 2, 60) for reply in some]
    values = {"reference": torch.zeros(4, 2)}
    name = "a step of DPO, 4 prompts of 120 tokens, replies of 60"
    found["dpo"] = compare(name, packed(replies, 4, values), each(replies, 4, **values), learn)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
