"""How often something costly may be done again.

pace = Pace(seconds=1.0, max_share=0.02)
if pace.is_due:
    with pace.taking():
        write()
"""

import contextlib
import time
from collections.abc import Iterator


class Pace:
    """Something is due some seconds after the last time, and later if it took more than its share of the time."""

    def __init__(self, seconds: float, max_share: float) -> None:
        self._seconds, self._max_share = seconds, max_share
        self.free_at = self.due_at = 0.0
        """by `time.monotonic`: when something else may be done for its share of the time; when it is due again"""

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self.due_at

    @contextlib.contextmanager
    def taking(self) -> Iterator[None]:
        """Measure how long it takes."""
        began = time.monotonic()
        yield
        now = time.monotonic()
        self.free_at = now + (now - began) / self._max_share
        self.due_at = max(now + self._seconds, self.free_at)
