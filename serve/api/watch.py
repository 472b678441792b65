"""The health check of a replica: every part that requests need must answer regularly.

watch = Watch(engine, tokens=lambda: metrics.num_tokens, max_seconds=600)
watch.add("the prompt threads", lambda: pool.submit(int))
watch.problem()             # None, or the part that is stuck; call it every few seconds
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from serve.engines.base import Engine, EngineHealth

# A part without an answer for this long is stuck: encoding the prompts of a full queue takes less.
STUCK_SECONDS = 60.0
# Added to the longest duration of a reply, after which a working engine has ended it.
_GRACE_SECONDS = 10.0
_ANSWER_SECONDS = 0.1


@dataclass
class _Part:
    ask: Callable[[], "Future[Any]"]
    asked: float
    answer: "Future[Any]"


class Watch:
    """`tokens` counts generated tokens; a reply takes at most `max_seconds`."""

    def __init__(
        self,
        engine: Engine,
        tokens: Callable[[], int],
        max_seconds: float,
        stuck_seconds: float = STUCK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokens = tokens
        self._stalled_seconds = max_seconds + _GRACE_SECONDS
        self._stuck_seconds = stuck_seconds
        self._clock = clock
        self._parts: dict[str, _Part] = {}
        self._seen_tokens, self._moved = -1, clock()
        # In a thread: a stuck engine may hold the lock that `health` needs.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="watch")
        self._engine = self.add("the engine", lambda: self._thread.submit(engine.health))

    def add(self, name: str, ask: Callable[[], "Future[Any]"]) -> _Part:
        """Add a part that requests need; the future from `ask` is done when the part answers."""
        part = self._parts[name] = _Part(ask, self._clock(), ask())
        return part

    def problem(self) -> str | None:
        """The current problem, or None."""
        now = self._clock()
        for name, part in self._parts.items():
            if part.answer.done():
                part.asked, part.answer = now, part.ask()
            elif now - part.asked > self._stuck_seconds:
                return f"{name}: no answer for {now - part.asked:.0f} seconds"
        return self._problem_of_engine(now)

    def close(self) -> None:
        """Stop checking."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _problem_of_engine(self, now: float) -> str | None:
        tokens = self._tokens()
        try:
            health: EngineHealth = self._engine.answer.result(_ANSWER_SECONDS)
        except TimeoutError:
            return None  # not yet
        if not health.is_alive:
            return "the engine has stopped"
        if tokens != self._seen_tokens or not health.num_active:
            self._seen_tokens, self._moved = tokens, now
        if now - self._moved > self._stalled_seconds:
            return f"the engine has generated no token for {now - self._moved:.0f} seconds"
        return None
