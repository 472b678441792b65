"""Compare the speeds of a release's formats on this machine: seconds to load, tokens per second.

measure({"openvino": lambda: OpenVINOEngine(folder)}, prompt_ids)
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, aclosing, closing
from typing import TypeVar

from serve.engines.base import Engine, GenerationRequest

_Name = TypeVar("_Name", bound=str)

_ROUNDS = 3
_REPLY_TOKENS = 24


def measure(
    engines: Mapping[_Name, Callable[[], Engine]], prompt_ids: Sequence[int]
) -> dict[_Name, dict[str, float]]:
    """For each engine, `load_s` until it is ready, and `tokens_per_second` of a greedy reply after its first token.

    All are loaded before the first reply and then alternate, so that other load on the machine affects all of them;
    the rate is the median of three replies.
    """
    found: dict[_Name, dict[str, float]] = {}
    with ExitStack() as open_engines:
        loaded: dict[_Name, Engine] = {}
        for name, load in engines.items():
            began = time.monotonic()
            loaded[name] = open_engines.enter_context(closing(load()))
            found[name] = {"load_s": round(time.monotonic() - began, 2)}
        rates: dict[_Name, list[float]] = {name: [] for name in loaded}
        for _ in range(_ROUNDS):
            for name, engine in loaded.items():
                rates[name].append(asyncio.run(_tokens_per_second(engine, list(prompt_ids))))
    for name, of_rounds in rates.items():
        found[name]["tokens_per_second"] = round(statistics.median(of_rounds), 1)
    return found


async def _tokens_per_second(engine: Engine, prompt_ids: list[int]) -> float:
    """Without the first token, which includes the prompt."""
    times = []
    async with aclosing(engine.submit(GenerationRequest(prompt_ids, _REPLY_TOKENS, temperature=0))) as events:
        async for _ in events:
            times.append(time.perf_counter())
    return (len(times) - 1) / (times[-1] - times[0])
